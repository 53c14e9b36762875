"""How a compact hypernetwork's code starts: each number as a detector of one erased concept.

A code drawn at random says something of every prompt. Silencing the kept ones then shifts all of it below zero before
the erased concepts are told apart, and a concept whose whole code is silent is written nothing and learns next to
nothing. So the code's last layer is fitted first, in closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._hypernet import Hypernetwork, fourier

RIDGE = 1e-3
"""Ridge of the fit, beside weights that sum to two and features of about one."""
DRAWN = 0.05
"""Length of what was drawn, beside the fitted weights, that is left on top, so that numbers of one concept differ. With
six times as much, a third of the kept prompts start with a code above zero, and silencing them costs concepts again.
"""
TIMES = tuple(k / 16 for k in range(1, 17))
"""Shares of virtual time at which it is fitted."""


def detector(features: Tensor, hit: Tensor) -> tuple[Tensor, Tensor]:
    """The linear function of features [N, F] nearest to 1 where `hit` [N] and to -1 elsewhere, in squares, with a
    ridge; both sides weigh the same, however many they are. Float64.

    Returns:
        Weights [F] and bias.
    """
    x = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], 1)
    one, other = hit.double(), (~hit).double()
    weight = one / one.sum().clamp(min=1) + other / other.sum().clamp(min=1)
    gram = x.T @ (weight[:, None] * x) + RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
    found = torch.linalg.solve(gram, x.T @ (weight * (one - other)))
    return found[:-1], found[-1]


@torch.no_grad()
def start_detecting(network: Hypernetwork, asked: Tensor, owner: Tensor, kept: Tensor) -> None:
    """Fit a compact network's code: number j to concept j mod n, or where there are more concepts than numbers to every
    concept whose index is j mod `code`.

    Args:
        network: fresh, on the CPU, its signal's shift and scale set.
        asked: signals of prompts that name an erased concept, [A, D].
        owner: which one, [A], from 0.
        kept: signals of prompts that are to be written nothing, [K, D].
    """
    plan, signals = network.plan, torch.cat([asked, kept]).float().cpu()
    given = (signals - network.centre) / network.spread
    shares = [torch.full((len(given),), share) for share in TIMES]
    features = torch.cat([network.trunk[:2](torch.cat([given, fourier(s, plan.waves)], 1)) for s in shares])
    which = torch.cat([owner.cpu(), torch.full((len(kept),), -1)]).repeat(len(TIMES))
    several, last = min(int(owner.max()) + 1, plan.code), network.trunk[2]
    assert isinstance(last, nn.Linear)
    found = [detector(features, (which >= 0) & (which % several == k)) for k in range(several)]
    for j in range(plan.code):
        weights, bias = found[j % several]
        row = last.weight[j].double()
        last.weight[j] = (weights + DRAWN * row * weights.norm() / row.norm()).float()
        last.bias[j] = bias.float()
