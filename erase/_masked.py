"""Training under a mask, in place: weights outside it are never written, and nothing is stored for them."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..pipelines import Backbone, Group, check_trainable, check_unfused
from ..prompts import InputError
from ._delta import Change, Delta, unpack
from ._needs import NUMBER, Needs, Sheet, Stage, delta_files, saves
from ._saliency import Mask, kth_largest
from ._train import KEPT, Diverged, Optimizer, Session

if TYPE_CHECKING:
    from ._finetune import Finetune

BETAS = (0.9, 0.999)
EPS = 1e-8


def adam_(value: Tensor, grad: Tensor, mean: Tensor, square: Tensor, *, lr: float, step: int) -> None:
    """One step of Adam without weight decay (Kingma and Ba, arXiv 1412.6980), in place.

    Args:
        value: parameters, any shape.
        grad: their gradient.
        mean: running mean of the gradient, beta 0.9.
        square: running mean of its square, beta 0.999.
        lr: learning rate.
        step: of the optimiser, from 1.
    """
    mean.lerp_(grad, 1 - BETAS[0])
    square.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
    scale = (square.sqrt() / math.sqrt(1 - BETAS[1] ** step)).add_(EPS)
    value.addcdiv_(mean, scale, value=-lr / (1 - BETAS[0] ** step))


def shrunk(change: Tensor, by: float) -> Tensor:
    """Soft threshold: every number moved towards zero by `by` and not beyond it."""
    return change.sign() * (change.abs() - by).clamp(min=0)


def check_precision(backbone: Backbone) -> None:
    """Refuse weights that cannot be trained one by one.

    Raises:
        InputError: they are in half precision, quantised or offloaded.
    """
    check_trainable(backbone.denoiser, f"cannot train {backbone.name} under a mask", dense=True)
    if backbone.dtype != torch.float32:
        raise InputError(
            f"training under a mask needs float32 weights, got {backbone.dtype}: load with --dtype float32 (and "
            "train with --mixed-precision bf16 if memory is short)"
        )


def check_optimizer(name: Optimizer) -> None:
    """Refuse another optimiser than the one that is written here.

    Raises:
        InputError: it is another.
    """
    if name != "adam":
        raise InputError(
            f"--optimizer {name}: training under a mask has an Adam of its own, with moments under the mask only; "
            "leave it out"
        )


class MaskedStudent:
    """Trainable weights under a mask, held in the network itself. Beside them are kept, only where the mask is on,
    Adam's two moments and (in a file) the first values. In a plain run gradients live for one parameter at a time: Adam
    steps inside the backward pass. Where they must first be added up over parts or processes, or clipped, they are kept
    too, under the mask.

    Building one freezes the rest of the network; `close` puts every weight back, bit for bit.

    Args:
        backbone: the network, in float32.
        mask: what learns.
        session: how it is trained.
        lr: learning rate, until `param_groups` says otherwise.
        clip: ceiling of the gradient's norm (0: none).

    Raises:
        InputError: half precision weights, another optimiser, a mask without weights, a LoRA fused into the network, no
            room on disk.
    """

    def __init__(self, backbone: Backbone, mask: Mask, session: Session, *, lr: float, clip: float) -> None:
        check_precision(backbone)
        check_unfused(backbone.denoiser, "cannot train")
        check_optimizer(session.optimizer)
        self.backbone, self.mask, self.session, self.clip = backbone, mask, session, clip
        self.param_groups: list[dict[str, Any]] = [{"lr": lr, "params": []}]
        self.count = 0
        everything = backbone.parameters("all")
        self.parameters: dict[str, nn.Parameter] = {n: everything[n] for n in mask.bitmaps}
        self._flags = [(p, p.requires_grad) for p in backbone.denoiser.parameters()]
        self._bits = {n: b.to(backbone.device) for n, b in mask.bitmaps.items()}
        self._at_once = session.whole and not clip
        """Whether a gradient is complete as it arrives, so that Adam can step inside the backward pass."""
        self._swapped = False
        self._summed: dict[str, Tensor] = {}
        self._squares = 0.0
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        sizes = [inside for inside, _ in mask.counts().values()]
        if not sum(sizes):
            raise InputError("no weight that learns is in the mask: choose a larger --density, or --rank-over")
        self._other = dict(zip(self.parameters, mapped(sum(sizes), session.work).split(sizes), strict=True))
        """What the network does not hold now: the first values, or (while the teacher acts) the student's."""
        with backbone.using(None):
            for n in self.parameters:
                self._other[n].copy_(self._read(n))
        for p, _ in self._flags:
            p.requires_grad_(False)
        self._hooks = []
        for n, p in self.parameters.items():
            p.requires_grad_(True)
            self._hooks.append(p.register_post_accumulate_grad_hook(self._arrived(n)))

    def _where(self, name: str) -> Tensor:
        return unpack(self._bits[name], tuple(self.parameters[name].shape))

    def _read(self, name: str) -> Tensor:
        return self.parameters[name].data[self._where(name)]

    def _write(self, name: str, values: Tensor) -> None:
        p = self.parameters[name]
        p.data[self._where(name)] = values.to(p.device)

    def _swap(self) -> None:
        """First values into the network and the student's out, or back."""
        self._swapped = not self._swapped
        for n, held in self._other.items():
            now = self._read(n)
            self._write(n, held)
            held.copy_(now)

    def _step(self, name: str, where: Tensor, grad: Tensor) -> None:
        if name not in self._moments:
            self._moments[name] = torch.zeros_like(grad), torch.zeros_like(grad)
        weights = self.parameters[name].data
        values = weights[where]
        adam_(values, grad, *self._moments[name], lr=self.param_groups[0]["lr"], step=self.count + 1)
        weights[where] = values

    # ------------------------------------------------------------ gradients

    def _arrived(self, name: str) -> Any:  # noqa: ANN401
        """What happens when a parameter's gradient is complete."""

        def take(p: Tensor) -> None:
            assert p.grad is not None
            where = self._where(name)
            grad, p.grad = p.grad[where], None
            if self._at_once:
                self._squares += float(grad.square().sum())
                self._step(name, where, grad)
            elif name in self._summed:
                self._summed[name] += grad
            else:
                self._summed[name] = grad

        return take

    def update(self) -> float:
        """Finish a step after its backward passes. Returns the norm of the gradient under the mask.

        Raises:
            Diverged: the norm is not finite.
        """
        if not self._at_once:
            names = list(self.parameters)
            for n in names:
                self._summed.setdefault(n, torch.zeros_like(self._read(n)))
            self.session.reduce([self._summed[n] for n in names])
            self._squares = float(sum(g.square().sum() for g in self._summed.values()))
            norm = math.sqrt(self._squares) if math.isfinite(self._squares) else self._squares
            shrink = min(1.0, self.clip / (norm + 1e-6)) if self.clip else 1.0
            for n in names:
                self._step(n, self._where(n), self._summed.pop(n) * shrink)
        norm, self._squares = self._squares**0.5, 0.0
        self.count += 1
        if not math.isfinite(norm):
            raise Diverged(f"the gradient is {norm}")
        return norm

    def soften(self, share: float) -> None:
        """Soft-threshold all changes at the value below which this share of them lies (0: leave them)."""
        total = sum(len(v) for v in self._other.values())
        if not (held := int(share * total)):
            return
        edge, _ = kth_largest({n: (self._read(n).cpu() - f).abs() for n, f in self._other.items()}, total - held + 1)
        for n, first in self._other.items():
            self._write(n, first + shrunk(self._read(n).cpu() - first, edge))

    # ------------------------------------------------------------ student and teacher

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, the student acts, and no adapter."""
        with self.backbone.using(None):
            yield

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """Inside, the untouched base acts: the first values are put back for as long. Never call backward in here."""
        with self.backbone.using(None):
            if not self.count or self._swapped:
                yield
                return
            self._swap()
            try:
                yield
            finally:
                self._swap()

    def state(self) -> dict[str, Tensor]:
        """Weights and moments."""
        with self.on():
            out = {f"student/{n}": self._read(n).cpu() for n in self.parameters}
        for n, (mean, square) in self._moments.items():
            out |= {f"mean/{n}": mean.cpu(), f"square/{n}": square.cpu()}
        return out | {"count": torch.tensor(self.count)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.count, device = int(state["count"]), self.backbone.device
        with self.on():
            for n in self.parameters:
                self._write(n, state[f"student/{n}"])
        self._moments = {
            n: (state[f"mean/{n}"].to(device), state[f"square/{n}"].to(device))
            for n in self.parameters
            if f"mean/{n}" in state
        }

    def payload(self) -> Delta:
        """What was learnt: the values under the mask, and the mask as the bitmap. Ends the training."""
        self._moments.clear()
        out = {}
        with self.on():
            for n, p in self.parameters.items():
                values = self._read(n).cpu().clone()
                norm = (values - self._other[n]).norm().item()
                out[n] = Change(values, self.mask.bitmaps[n].cpu(), tuple(p.shape), norm)
        return Delta(out)

    def close(self) -> None:
        """Put every weight back; the network is as it was."""
        for hook in self._hooks:
            hook.remove()
        with self.backbone.using(None):
            if not self._swapped:
                self._swap()
        for p, flag in self._flags:
            p.grad = None
            p.requires_grad_(flag)
        self._other.clear()


def mapped(size: int, folder: Path | None) -> Tensor:
    """Room for so many float32 numbers in a file without a name, which the system may page out: in a run's work folder,
    or where temporary files go.

    Raises:
        InputError: there is no room.
    """
    try:
        with tempfile.NamedTemporaryFile(prefix=".first-", dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, 4 * size)
            return torch.from_file(file.name, shared=True, size=size, dtype=torch.float32)
    except (OSError, RuntimeError) as error:
        place = folder or tempfile.gettempdir()
        raise InputError(f"cannot keep {4 * size / 1e6:.0f} MB of weights in {place}: {error}; make room") from error


def under_mask(sheet: Sheet, settings: Finetune, *, ranked: Group, share: float) -> Needs:
    """For planning: training in place, with moments and first values for the weights under the mask.

    Args:
        sheet: of the run.
        settings: of the method.
        ranked: what the mask was chosen among.
        share: of the weights that are under it.

    Raises:
        InputError: what a run so would refuse.
    """
    s, backbone = settings, sheet.backbone
    check_precision(backbone)
    check_optimizer(sheet.loop.optimizer)
    shapes, total = s.learns.shapes(backbone), s.learns.count(backbone)
    n, bits = int(share * total), sum(p.numel() for p in backbone.parameters(ranked).values()) // 8
    rows, count = sheet.parts(s.batch)
    before, prompts = s.before(sheet), s.prompted(sheet.task)
    always = {"prompts": sheet.encoded(prompts), **before[0].held} if before else {"prompts": sheet.encoded(prompts)}
    held, first = {**always, "mask": bits + total // 8}, {"first values (a file)": NUMBER * n}
    moments = {"moments": 2 * NUMBER * n}
    summed = {} if sheet.whole and not s.clip else {"gradients": NUMBER * n}
    calls = tuple(replace(c, times=c.times * count) for c in s.passes(sheet, rows))
    learning = {**held, **(moments if s.steps > 1 or not summed else {}), **summed}
    stages = [*(replace(b, held={**always, **b.held}) for b in before)]
    stages += [Stage("step", calls, learning, first, repeats=s.steps)]
    stages += [Stage("update", (), {**held, **moments, **summed}, first, repeats=s.steps)]
    if kept := saves(sheet.loop, s.steps):
        copy = {**first, "copy for the checkpoint": NUMBER * n}
        stages.append(Stage("checkpoint", (), {**held, **moments}, copy, repeats=kept))
    stages.append(Stage("result", (), held, {**first, "result": NUMBER * n}))
    work = (KEPT + 1) * 3 * NUMBER * n * bool(kept) + NUMBER * n + bits
    return Needs(tuple(stages), n, prompts, delta_files(shapes, share), work)
