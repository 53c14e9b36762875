"""How a family mixes images with noise, and what its denoiser answers: diffusion (epsilon, v) and rectified flow.

Times are those of the pipeline's scheduler, [B]; latents and noise [B, ...] of any shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Law(Protocol):
    """What noise does to latents, and what the raw output means."""

    def noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t, the clean latent x0 noised to time t with eps."""
        ...

    def x0(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        """The clean latent that the raw output implies."""
        ...

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the raw output should be in training."""
        ...

    def forward(self, out: Tensor) -> Tensor:
        """The raw output as the pipeline hands it to its scheduler."""
        ...

    def times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N training times, [n]."""
        ...


def shifted(s: Tensor, shift: float) -> Tensor:
    """Noise levels moved towards pure noise, their odds multiplied by `shift`."""
    return s if shift == 1.0 else shift * s / (1 + (shift - 1) * s)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device).view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Diffusion:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps (Ho et al., arXiv 2006.11239).

    Attributes:
        alphas: abar, [T] in float32.
        velocity: the output is v = sqrt(abar_t) eps - sqrt(1 - abar_t) x0 (arXiv 2202.00512), not eps.
    """

    alphas: Tensor
    velocity: bool = False

    def _coefficients(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        abar = _column(self.alphas.to(x.device)[t.to(x.device).long()], x)
        return abar.sqrt(), (1 - abar).sqrt()

    def noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        a, s = self._coefficients(x0, t)
        return (a * x0 + s * eps).to(x0.dtype)

    def x0(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        a, s = self._coefficients(x, t)
        value = a * x - s * out if self.velocity else (x - s * out) / a
        return value.to(x.dtype)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        if not self.velocity:
            return eps
        a, s = self._coefficients(x0, t)
        return (a * eps - s * x0).to(x0.dtype)

    def forward(self, out: Tensor) -> Tensor:
        return out

    def times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(len(self.alphas), (n,), generator=generator)


@dataclass(frozen=True)
class Flow:
    """x_t = (1 - s) x0 + s eps with s = t / 1000 (Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003).

    Attributes:
        sign: the output is sign * (eps - x0); some families answer the negative.
        scale: the scheduler's time at pure noise.
        shift: of the training times, s' = shift s / (1 + (shift - 1) s) (Esser et al., arXiv 2403.03206, equation 23).
        warp: the same between t / 1000 and s, where the denoiser is told the time before the shift (CogView4).
    """

    sign: int = 1
    scale: float = 1000.0
    shift: float = 1.0
    warp: float = 1.0

    def _level(self, t: Tensor, like: Tensor) -> Tensor:
        return _column(shifted(t.float() / self.scale, self.warp), like)

    def noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        s = self._level(t, x0)
        return ((1 - s) * x0 + s * eps).to(x0.dtype)

    def x0(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        return (x - self.sign * self._level(t, x) * out).to(x.dtype)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return self.sign * (eps - x0)

    def forward(self, out: Tensor) -> Tensor:
        return self.sign * out

    def times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Logit-normal (arXiv 2403.03206, section 3.1), then shifted."""
        return self.scale * shifted(torch.randn(n, generator=generator).sigmoid(), self.shift)
