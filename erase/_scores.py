"""The formulas of score distillation: what the fake score and the generator learn, and how a gradient gets from the one
through the frozen networks into the other.

x_g are latents that the generator drew; f_phi and f_psi the clean latents that the teacher and the fake score see in
x_t, which is x_g noised to time t. All are [B, ...] of one shape.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pipelines import Backbone, Condition


def fake_score_loss(out: Tensor, target: Tensor) -> Tensor:
    """What the fake score learns, [B]: ||eps_psi(x_t, t, c) - eps||^2, ordinary denoising of what the generator drew
    (Chen et al., arXiv 2409.11219); for v and flow outputs against those families' own targets.
    """
    return (out - target).square().flatten(1).sum(1)


def sid_loss(x_g: Tensor, f_phi: Tensor, f_psi: Tensor, alpha: float, *, floor: float = 1e-5) -> Tensor:
    """Score identity Distillation's generator loss, [B]:
    < f_phi - f_psi, (f_phi - x_g) - alpha (f_phi - f_psi) > / omega, omega = mean |x_g - f_phi| of each latent, without
    gradient and at least `floor` (Zhou et al., arXiv 2404.04057; with prompts arXiv 2406.01561). Gradients flow into
    all three arguments.
    """
    apart = f_phi - f_psi
    omega = (x_g - f_phi).abs().flatten(1).mean(1).detach().clamp(min=floor)
    return (apart * ((f_phi - x_g) - alpha * apart)).flatten(1).sum(1) / omega


@dataclass(frozen=True)
class View:
    """A frozen network that looks at x_t.

    Attributes:
        x0: from x_t to the clean latent it sees there.
        state: inside, the network acts; entered again for its backward pass, which may compute layers anew.
    """

    x0: Callable[[Tensor], Tensor]
    state: Callable[[], AbstractContextManager[None]]


def through(
    x_g: Tensor,
    noise: Callable[[Tensor], Tensor],
    *,
    phi: View,
    psi: View,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """A loss of (x_g, f_phi, f_psi) and its gradient for x_g, the paths through both frozen networks included. Each
    network's backward pass runs in that network's own state: the three may be one network in three states.

    Args:
        x_g: [B, ...].
        noise: from x_g to x_t.
        phi: the teacher.
        psi: the fake score.
        loss: a scalar.
    """
    x = x_g.detach().requires_grad_(True)
    x_t = noise(x)
    seen = x_t.detach().requires_grad_(True)
    clean = []
    for view in (phi, psi):
        with view.state():
            clean.append(view.x0(seen))
    ends = [f.detach().requires_grad_(True) for f in clean]
    value = loss(x, *ends)
    direct, *inner = torch.autograd.grad(value, [x, *ends])
    total = torch.zeros_like(seen)
    for view, f, g in zip((phi, psi), clean, inner, strict=True):
        with view.state():
            total = total + torch.autograd.grad(f, seen, g)[0]
    return value.detach(), direct + torch.autograd.grad(x_t, x, total)[0]


@dataclass(frozen=True)
class Asked:
    """What a network is asked: prompts, the other side of guidance, and the scale.

    Attributes:
        cond: of B prompts.
        null: of one, `Backbone.unconditional(1)`.
        guidance: scale; 1 is off.
    """

    cond: Condition
    null: Condition
    guidance: float = 1.0


def predict(backbone: Backbone, x: Tensor, t: Tensor, asked: Asked) -> Tensor:
    """The raw output under guidance, float32 of the shape of x: both sides in one call of the network. For epsilon, v
    and flows alike this guides the clean latent too: the coefficients sum to 1.
    """
    cond = backbone.guided(asked.cond, asked.guidance)
    if asked.guidance == 1.0 or cond is not asked.cond:
        return backbone.denoise(x, t, cond).float()
    both = asked.null[[0] * len(cond)] + cond
    free, led = backbone.denoise(torch.cat([x, x]), t.repeat(2), both).float().chunk(2)
    return backbone.combine(free, led, asked.guidance)


def onward(backbone: Backbone, x: Tensor, x0: Tensor, *, t: Tensor, to: Tensor) -> Tensor:
    """From time t to an earlier one along the straight way to x0, [B, ...]: the noise that x holds beside x0, less of
    it (DDIM without noise; Euler's method for flows).
    """
    one, none = torch.ones_like(x), torch.zeros_like(x)
    eps = (x - backbone.noise(x0, t, none)) / backbone.noise(none, t, one)
    return backbone.noise(x0, to, eps)
