"""Which weights matter for a concept, and masks over them (SalUn, Fan et al., arXiv 2310.12508).

A mask is a bitmap per parameter. Weights are ranked over many parameters together, by one threshold that is found
without sorting: exact, and in little memory beside the scores.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..prompts import InputError
from . import _files as files
from ._delta import pack, unpack

Choice = Literal["saliency", "random", "none", "lowest"]
Combination = Literal["interpolate", "extrapolate"]
MASK = "erasers-mask"
MASK_FILE = "mask.safetensors"
CHUNK = 2**22
HALF_SCALE = 2.0**10
"""Of the loss in half precision, whose small gradients are zero otherwise; ranks do not depend on it."""


def combined(free: Tensor, led: Tensor, scale: float, how: Combination) -> Tensor:
    """The guided prediction whose error is the forgetting loss, from the predictions without and with the prompt.

    "interpolate" is the paper's e(0) + g (e(c) - e(0)), "extrapolate" the published code's (1 + g) e(c) - g e(0).
    """
    return free + (scale + (how == "extrapolate")) * (led - free)


def forgetting(free: Tensor, led: Tensor, truth: Tensor, *, scale: float, how: Combination) -> Tensor:
    """The loss whose gradient ranks weights: minus the guided prediction's mean square error against the family's
    training target (equation 4). All of one shape.
    """
    return -(truth - combined(free, led, scale, how)).square().mean()


def gradient_sum(
    network: nn.Module, ranked: Mapping[str, nn.Parameter], *, losses: Iterable[Tensor]
) -> dict[str, Tensor]:
    """The magnitude of each ranked parameter's gradient, added up with its sign over all losses, in float32. In eval
    mode, unless activations are computed twice (which needs training mode); the network is left as it was.

    Args:
        network: whose parameters are frozen meanwhile, but for the ranked ones.
        ranked: by name.
        losses: made one after the other; nothing is kept of one when the next is made.
    """
    flags, mode = [(p, p.requires_grad) for p in network.parameters()], network.training
    for p, _ in flags:
        p.requires_grad_(False)
    for p in ranked.values():
        p.requires_grad_(True)
    network.train(mode and bool(getattr(network, "is_gradient_checkpointing", False)))
    sums: dict[str, Tensor] = {}
    half = any(p.dtype != torch.float32 for p in ranked.values())
    try:
        for loss in losses:
            (HALF_SCALE * loss if half else loss).backward()
            for n, p in ranked.items() if half else ():  # half precision adds up badly; float32 sums lie in p.grad
                if p.grad is not None:
                    sums[n] = sums.get(n, torch.zeros_like(p, dtype=torch.float32)) + p.grad.float()
                    p.grad = None
        sums |= {n: p.grad for n, p in ranked.items() if p.grad is not None}
        return {n: sums[n].abs_() if n in sums else torch.zeros_like(p) for n, p in ranked.items()}
    finally:
        network.train(mode)
        for p, flag in flags:
            p.grad = None
            p.requires_grad_(flag)


def digest(tensors: Mapping[str, Tensor], words: object = None) -> str:
    """A short name for exactly these numbers, and these words (JSON values)."""
    sha = hashlib.sha256(json.dumps(words).encode())
    for name in sorted(tensors):
        sha.update(name.encode() + tensors[name].detach().cpu().contiguous().float().numpy().tobytes())
    return sha.hexdigest()[:16]


def kth_largest(scores: Mapping[str, Tensor], k: int) -> tuple[float, int]:
    """The k-th largest of all numbers (1 <= k <= their count), and how many equal to it are among the k largest.

    Args:
        scores: non-negative float32 tensors; their bit patterns are ordered like the numbers, so two histograms of 2^16
            bins, of the upper and then of the lower half of the bits, find it.
        k: which.

    Raises:
        InputError: a number is not finite.
    """

    def bits() -> Any:  # noqa: ANN401
        for value in scores.values():
            for part in value.detach().flatten().split(CHUNK):
                yield part.float().contiguous().view(torch.int32)

    upper = torch.zeros(2**16, dtype=torch.int64)
    for b in bits():
        upper += torch.bincount(b >> 16, minlength=2**16).cpu()
    if int(upper[0x7F80:].sum()):
        raise InputError("the saliency is not finite: the forget set or the network gives infinite gradients")
    head, before = _bin(upper, k)
    lower = torch.zeros(2**16, dtype=torch.int64)
    for b in bits():
        lower += torch.bincount((b & 0xFFFF)[(b >> 16) == head], minlength=2**16).cpu()
    tail, more = _bin(lower, k - before)
    value = torch.tensor(head << 16 | tail, dtype=torch.int32).view(torch.float32)
    return float(value), k - before - more


def _bin(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th from the top, and how many lie above that bin."""
    from_top = counts.flip(0).cumsum(0)
    place = int((from_top < k).sum())
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, above


@dataclass(frozen=True)
class Mask:
    """Bitmaps over parameters.

    Attributes:
        bitmaps: by parameter name, uint8 [ceil(n / 8)], the first weight in the highest bit.
        shapes: of the parameters.
        about: how it was made, as JSON values.
    """

    bitmaps: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    about: Mapping[str, Any]

    def of(self, name: str) -> Tensor:
        """Which weights of a parameter are in, boolean, of its shape."""
        return unpack(self.bitmaps[name], self.shapes[name])

    def counts(self) -> dict[str, tuple[int, int]]:
        """How many weights of each parameter are in, and how many there are."""
        return {n: (int(self.of(n).sum()), math.prod(self.shapes[n])) for n in self.bitmaps}

    @property
    def density(self) -> float:
        """The share of all its weights that are in."""
        inside, total = (sum(c) for c in zip(*self.counts().values(), strict=True))
        return inside / total

    def only(self, names: list[str]) -> Mask:
        """The same over fewer parameters."""
        return Mask({n: self.bitmaps[n] for n in names}, {n: self.shapes[n] for n in names}, self.about)

    def save(self, path: Path) -> None:
        """Write it, atomically: one bit a weight."""
        note = {"about": self.about, "shapes": self.shapes}
        files.write_tensors(path, self.bitmaps, {MASK: json.dumps(note)})

    @classmethod
    def load(cls, path: Path) -> Mask:
        """From its file.

        Raises:
            InputError: missing, damaged, or no mask.
        """
        tensors, header = files.read_tensors(path)
        if MASK not in header:
            raise InputError(f"{path} is no mask: its header has no {MASK!r} record")
        try:
            note = json.loads(header[MASK])
            shapes = {n: tuple(int(s) for s in note["shapes"][n]) for n in tensors}
            about = dict(note["about"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: its {MASK!r} record is damaged ({error}): make it again") from error
        for n, bitmap in tensors.items():
            if bitmap.dtype != torch.uint8 or bitmap.shape != (math.ceil(math.prod(shapes[n]) / 8),):
                raise InputError(f"{path}: the bitmap of {n} does not fit its shape {shapes[n]}: make it again")
        return cls(tensors, shapes, about)


def choose(
    magnitudes: Mapping[str, Tensor],
    density: float,
    *,
    choice: Choice,
    generator: torch.Generator,
    about: Mapping[str, Any],
) -> Mask:
    """A mask of exactly floor(density * n) of the n weights, ranked over all parameters together.

    Args:
        magnitudes: of each parameter's gradient sum, float32; for "random" and "none" any tensors of their shapes.
        density: the share of weights in the mask, above 0 and at most 1.
        choice: "saliency" the largest, "lowest" the smallest, "random" any, "none" no mask: all weights.
        generator: of the random choice.
        about: what to write into the mask's file.

    Raises:
        InputError: a density so small that no weight is left, magnitudes that are not finite.
    """
    shapes = {n: tuple(m.shape) for n, m in magnitudes.items()}
    total = sum(m.numel() for m in magnitudes.values())
    count = total if choice == "none" else int(density * total)
    if not count:
        raise InputError(f"density {density} of {total} weights is none at all: choose a larger one")
    if count == total:
        return Mask({n: pack(torch.ones(s, dtype=torch.bool)) for n, s in shapes.items()}, shapes, about)
    if choice == "random":
        magnitudes = {n: torch.rand(s, generator=generator) for n, s in shapes.items()}
    bitmaps = _top(magnitudes, total - count if choice == "lowest" else count)
    if choice == "lowest":
        bitmaps = {n: pack(~unpack(b, shapes[n])) for n, b in bitmaps.items()}
    return Mask(bitmaps, shapes, about)


def _top(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Bitmaps of the `count` largest; of equal ones at the threshold, the first."""
    edge, ties = kth_largest(scores, count)
    out = {}
    for name, value in scores.items():
        flat = value.flatten().float()
        inside, equal = flat > edge, (flat == edge).nonzero().flatten()[:ties]
        inside[equal] = True
        ties -= len(equal)
        out[name] = pack(inside)
    return out


def cached(folder: Path | None, about: Mapping[str, Any], *, make: Callable[[], Mask]) -> Mask:
    """The mask in a run's work folder, if it is whole and was made in the same way; else a new one, left there for the
    next run.

    Raises:
        InputError: it cannot be written.
    """
    path = None if folder is None else folder / MASK_FILE
    if path is not None and path.exists():
        with suppress(InputError):  # a damaged one is made again
            if (there := Mask.load(path)).about == json.loads(json.dumps(about)):
                return there
    mask = make()
    if path is not None:
        try:
            mask.save(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write {path}: {error}; make room there") from error
    return mask


def salient_layers(mask: Mask, density: float, *, choice: Choice, generator: torch.Generator) -> list[str]:
    """Linears for a LoRA that acts only where the mask is: those with the largest share of their weights in it, until
    they hold `density` of all the Linears' weights.

    Args:
        mask: over the weights [out, in] of Linears, by names ending in ".weight".
        density: the share of weights, above 0 and at most 1.
        choice: of that mask; for "random" any Linears are taken, for "none" all.
        generator: of the random choice.
    """
    counts = {n.removesuffix(".weight"): c for n, c in mask.counts().items()}
    names, total = list(counts), sum(size for _, size in counts.values())
    if choice == "none":
        return names
    order = sorted(names, key=lambda n: -counts[n][0] / counts[n][1])
    if choice == "random":
        order = [names[k] for k in torch.randperm(len(names), generator=generator).tolist()]
    picked: list[str] = []
    for name in order:
        if sum(counts[n][1] for n in picked) >= density * total:
            break
        picked.append(name)
    return sorted(picked, key=names.index)
