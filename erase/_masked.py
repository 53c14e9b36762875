"""Training under a mask, in place: weights outside it are never written, and nothing is stored for them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..pipelines import Backbone, check_unfused
from ..prompts import InputError
from ._delta import Change, Delta, unpack
from ._saliency import Mask, kth_largest
from ._train import Diverged, Session

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


class MaskedStudent:
    """Trainable weights under a mask, held in the network itself. Beside them are kept, only where the mask is on,
    their first values (on disk) and Adam's two moments. Gradients live for one parameter at a time: Adam steps inside
    the backward pass, unless the gradient must first be added up over parts or processes, or clipped.

    Building one freezes the rest of the network; `close` puts every weight back, bit for bit.

    Args:
        backbone: the network, in float32.
        mask: what learns.
        session: how it is trained.
        lr: learning rate, until `param_groups` says otherwise.
        clip: ceiling of the gradient's norm (0: none).

    Raises:
        InputError: half precision weights, fp16 training, a LoRA fused into the network, no room on disk.
    """

    def __init__(self, backbone: Backbone, mask: Mask, session: Session, *, lr: float, clip: float) -> None:
        if backbone.dtype != torch.float32:
            raise InputError(
                f"training under a mask needs float32 weights, got {backbone.dtype}: load with --dtype float32 (and "
                "train with --mixed-precision bf16 if memory is short)"
            )
        if session.accelerator.mixed_precision == "fp16":
            raise InputError("mixed precision 'fp16' scales gradients, which a mask does not know: use bf16 or no")
        check_unfused(backbone.denoiser, "cannot train")
        self.backbone, self.mask, self.session, self.clip = backbone, mask, session, clip
        self.param_groups: list[dict[str, Any]] = [{"lr": lr, "params": []}]
        self.count = 0
        everything = backbone.parameters("all")
        self.parameters: dict[str, nn.Parameter] = {n: everything[n] for n in mask.bitmaps}
        self._flags = [(p, p.requires_grad) for p in backbone.denoiser.parameters()]
        self._bits = {n: b.to(backbone.device) for n, b in mask.bitmaps.items()}
        self._scratch = tempfile.TemporaryDirectory(prefix="erasers-", ignore_cleanup_errors=True)
        self._away: dict[str, Tensor] | None = None
        self._summed: dict[str, Tensor] = {}
        self._squares = 0.0
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        with backbone.using(None):
            self._first = {n: self._keep(k, n) for k, n in enumerate(self.parameters)}
        for p, _ in self._flags:
            p.requires_grad_(False)
        self._hooks = []
        for n, p in self.parameters.items():
            p.requires_grad_(True)
            self._hooks.append(p.register_post_accumulate_grad_hook(self._arrived(n)))

    def _keep(self, number: int, name: str) -> Tensor:
        """The first values under the mask, in a file that the system may page out."""
        values = self._read(name)
        if not len(values):
            return values.cpu()
        path = Path(self._scratch.name) / str(number)
        try:
            held = torch.from_file(str(path), shared=True, size=len(values), dtype=torch.float32)
        except RuntimeError as error:
            raise InputError(f"cannot keep the first weights in {path.parent}: {error}; make room there") from error
        return held.copy_(values)

    def _where(self, name: str) -> Tensor:
        return unpack(self._bits[name], tuple(self.parameters[name].shape))

    def _read(self, name: str) -> Tensor:
        return self.parameters[name].data[self._where(name)]

    def _write(self, name: str, values: Tensor) -> None:
        p = self.parameters[name]
        p.data[self._where(name)] = values.to(p.device)

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
            if self.session.whole and not self.clip:
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
        if self._summed or not (self.session.whole and not self.clip):
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
        total = sum(len(v) for v in self._first.values())
        if not (held := int(share * total)):
            return
        edge, _ = kth_largest({n: (self._read(n).cpu() - f).abs() for n, f in self._first.items()}, total - held + 1)
        for n, first in self._first.items():
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
            if not self.count or self._away is not None:
                yield
                return
            self._away = {n: self._read(n) for n in self.parameters}
            try:
                for n, first in self._first.items():
                    self._write(n, first)
                yield
            finally:
                for n, values in self._away.items():
                    self._write(n, values)
                self._away = None

    def state(self) -> dict[str, Tensor]:
        """Weights, mask and moments."""
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
        """What was learnt: the values under the mask, and the mask as the bitmap."""
        out = {}
        with self.on():
            for n, p in self.parameters.items():
                values = self._read(n).cpu()
                if len(values):
                    norm = (values - self._first[n]).norm().item()
                    out[n] = Change(values.clone(), self.mask.bitmaps[n].cpu(), tuple(p.shape), norm)
        return Delta(out)

    def close(self) -> None:
        """Put every weight back; the network is as it was."""
        for hook in self._hooks:
            hook.remove()
        with self.backbone.using(None):
            for n, first in self._first.items():
                self._write(n, first)
        for p, flag in self._flags:
            p.grad = None
            p.requires_grad_(flag)
        self._first.clear()
        self._scratch.cleanup()
