"""The losses of UnHype (arXiv 2602.03410), on factors by layer: x_L [B, in, r] and x_R [B, r, out] of B prompts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..pipelines import Pairs


def flat(pairs: Pairs) -> list[Tensor]:
    """All factors, layer by layer."""
    return [t for pair in pairs.values() for t in pair]


def rowed(tensors: list[Tensor]) -> Tensor:
    """The numbers of each prompt's factors side by side, [B, n]."""
    return torch.cat([t.flatten(1) for t in tensors], 1)


def direct(out: Tensor, target: Tensor) -> Tensor:
    """The erasing loss of each row, MSE(student, target), [B], of predictions [B, ...]."""
    return (out - target).square().flatten(1).mean(1)


def virtual_step(now: Pairs, later: Pairs, gradient: list[Tensor], eta: float) -> Tensor:
    """MSE(H(c, s+1) - H(c, s), -eta g): one step of virtual time should be one step of gradient descent on the factors
    themselves. The mean over all their numbers.

    Args:
        now: H(c, s).
        later: H(c, s+1).
        gradient: g, of each row's erasing loss with respect to its own factors H(c, s), in `flat`'s order.
        eta: learning rate of the imitated descent.
    """
    moved = rowed(flat(later)) - rowed(flat(now))
    return (moved + eta * rowed(gradient)).square().mean()


def retained(now: Pairs, start: Pairs) -> Tensor:
    """Mean over the prompts of |H(c_r, s) - H(c_r, 0)|^2, the sum over all numbers of a prompt's factors."""
    return (rowed(flat(now)) - rowed(flat(start))).square().sum(1).mean()


def leaves(pairs: Pairs) -> Mapping[str, tuple[Tensor, Tensor]]:
    """The same factors, as what gradients are taken of."""
    return {n: (a.detach().requires_grad_(), b.detach().requires_grad_()) for n, (a, b) in pairs.items()}
