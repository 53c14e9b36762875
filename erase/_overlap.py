"""What two erasers do to each other when both act."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..prompts import InputError
from . import _files as files
from ._delta import Delta
from ._eraser import Eraser
from ._hyper import Hyper
from ._lora import Lora
from ._saliency import MASK, Mask

NOTHING = 1e-6
"""Singular values below this share of the largest span nothing."""


def spans(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of what the update B A reads, [in, k], and of what it writes, [out, k]; k is its true rank."""
    q, r = torch.linalg.qr(b)
    u, s, v = torch.linalg.svd(r @ a, full_matrices=False)
    k = int((s > NOTHING * s.max()).sum()) if s.max() > 0 else 0
    return v[:k].T, q @ u[:, :k]


def shared(p: Tensor, q: Tensor) -> tuple[float, float]:
    """How much of the smaller of two subspaces lies in the other, 0 to 1 (the mean squared cosine of their principal
    angles), and the smallest of those angles in degrees. Orthonormal bases [n, k] and [n, l].
    """
    if not p.shape[1] or not q.shape[1]:
        return 0.0, 90.0
    cosines = torch.linalg.svdvals(p.T @ q).clamp(0, 1)
    return cosines.square().mean().item(), math.degrees(math.acos(cosines.max().item()))


def inner(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> float:
    """The Frobenius product of two updates B A, without forming them."""
    (a, b), (c, d) = one, two
    return ((b.T @ d) * (a @ c.T)).sum().item()


def overlap(one: str | os.PathLike[str] | Eraser, two: str | os.PathLike[str] | Eraser) -> dict[str, Any]:
    """Overlap and interference of two erasers of one kind.

    For LoRAs: `cosine` of the two updates; `norm of the sum` beside what it would be if they were orthogonal (a ratio
    above 1: they add up, below 1: they cancel); how much of what one reads (`reads`) and writes (`writes`) the other
    does too, averaged over the layers both edit, and the smallest principal angle of any layer. For deltas
    and mask files: how many weights of the parameters in both are in both masks, and what share of the smaller would be
    in both by chance.

    Raises:
        InputError: erasers of different kinds or of different families, or hypernetworks.
    """
    if not isinstance(one, Eraser) and not isinstance(two, Eraser) and (found := _masks(Path(one), Path(two))):
        return found
    a, b = (e if isinstance(e, Eraser) else Eraser.from_pretrained(e) for e in (one, two))
    labels = [", ".join(e.recipe.names) if isinstance(p, Eraser) else str(Path(p)) for e, p in ((a, one), (b, two))]
    for what, x, y in (("kind", a.recipe.kind, b.recipe.kind), ("family", a.recipe.family, b.recipe.family)):
        if x != y:
            raise InputError(f"cannot compare {labels[0]} ({what} {x}) with {labels[1]} ({what} {y})")
    if isinstance(a.payload, Hyper):
        raise InputError(
            f"cannot compare {labels[0]} with {labels[1]}: hypernetworks write another update for each prompt; "
            "materialize both for one prompt and compare those LoRAs"
        )
    both = [n for n in a.payload.shapes if n in b.payload.shapes]
    odd = [n for n in both if a.payload.shapes[n] != b.payload.shapes[n]]
    if odd:
        sizes = f"{a.payload.shapes[odd[0]]} and {b.payload.shapes[odd[0]]}"
        raise InputError(f"cannot compare {labels[0]} with {labels[1]}: {odd[0]} is {sizes}, of two base models")
    out: dict[str, Any] = {"pair": labels, "layers of both": len(both)}
    if isinstance(a.payload, Lora) and isinstance(b.payload, Lora):
        return out | _loras(_floats(a.payload), _floats(b.payload), both)
    assert isinstance(a.payload, Delta)
    assert isinstance(b.payload, Delta)
    return out | _bits([{n: p.changes[n].mask for n in both} for p in (a.payload, b.payload)])


def _bits(masks: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """What two masks over the same parameters have in common, and what they would have by chance."""
    one, two = masks
    common = sum(int((one[n] & two[n]).sum()) for n in one)
    sizes = [sum(int(m.sum()) for m in mask.values()) for mask in masks]
    total = sum(m.numel() for m in one.values())
    return {
        "weights changed": sizes,
        "changed by both": common,
        "share of the smaller": round(common / max(1, min(sizes)), 4),
        "by chance": round(max(sizes) / max(1, total), 4),
    }


def _masks(one: Path, two: Path) -> dict[str, Any] | None:
    """The overlap of two mask files; None where they are something else."""
    if not (one.is_file() and two.is_file()) or not all(MASK in files.read_tensors(p)[1] for p in (one, two)):
        return None
    a, b = Mask.load(one), Mask.load(two)
    both = [n for n in a.bitmaps if b.shapes.get(n) == a.shapes[n]]
    pair = {"pair": [str(one), str(two)], "layers of both": len(both)}
    return pair | _bits([{n: m.of(n) for n in both} for m in (a, b)])


def _floats(payload: Lora) -> dict[str, tuple[Tensor, Tensor]]:
    return {n: (a.double().flatten(1), b.double().flatten(1)) for n, (a, b) in payload.factors.items()}


def _loras(
    a: Mapping[str, tuple[Tensor, Tensor]], b: Mapping[str, tuple[Tensor, Tensor]], both: list[str]
) -> dict[str, Any]:
    norms = [math.sqrt(max(0.0, sum(inner(p, p) for p in x.values()))) for x in (a, b)]
    product = sum(inner(a[n], b[n]) for n in both)
    apart = math.hypot(*norms)
    together = math.sqrt(max(0.0, apart**2 + 2 * product))
    reads, writes, angles = [], [], {}
    for n in both:
        (read_a, write_a), (read_b, write_b) = spans(*a[n]), spans(*b[n])
        read, angle = shared(read_a, read_b)
        reads.append(read)
        writes.append(shared(write_a, write_b)[0])
        angles[n] = round(angle, 2)
    closest = sorted(angles, key=lambda n: angles[n])[:3]
    return {
        "norms": [round(v, 5) for v in norms],
        "norm of the sum": round(together, 5),
        "norm if orthogonal": round(apart, 5),
        "ratio": round(together / apart, 4) if apart else 1.0,
        "cosine": round(product / (norms[0] * norms[1]), 4) if all(norms) else 0.0,
        "reads": round(sum(reads) / len(reads), 4) if reads else 0.0,
        "writes": round(sum(writes) / len(writes), 4) if writes else 0.0,
        "smallest angle of inputs, degrees": {n: angles[n] for n in closest},
    }
