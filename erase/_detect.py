"""How a compact hypernetwork's code starts: each number as a detector of one erased concept.

A code drawn at random says something of every prompt. Silencing the kept ones then shifts all of it below zero before
the erased concepts are told apart, and a concept whose whole code is silent is written nothing and learns next to
nothing. So the code's last layer is fitted first, in closed form, and while the rest learns a hinge holds every number
on its side: without, numbers of other concepts join in, or the concept's own goes out, for some of the sentences.
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
MARGIN = 0.2
"""How far on its side each number is held; a fitted one is at 1 or -1 in the mean."""
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


def switched(about: Tensor, code: int) -> Tensor:
    """Which numbers of the code a prompt is to switch on, bool [A, code], of which concepts it names, bool [A, C]:
    number j stands for concept j mod C, or where there are more concepts than numbers for every concept whose index is
    j mod `code`.
    """
    several = min(about.shape[1], code)
    return torch.stack([about[:, j % several :: several].any(1) for j in range(code)], 1)


def apart(z: Tensor, on: Tensor) -> Tensor:
    """Hinge loss of each number of the code against its side of zero, max(0, margin -+ z), z [A, code] before negative
    ones are cut, `on` [A, code]; both sides weigh the same, however many they are, and the numbers are averaged.
    """
    loss = torch.where(on, MARGIN - z, MARGIN + z).relu()
    one, other = on.float(), (~on).float()
    sides = one / one.sum(0).clamp(min=1) + other / other.sum(0).clamp(min=1)
    return (sides * loss).sum(0).mean()


def _features(network: Hypernetwork, signals: Tensor, share: float) -> Tensor:
    """What the code's last layer is given for signals [A, D] at a share of virtual time, [A, hidden]."""
    given = (signals.float() - network.centre) / network.spread
    times = torch.full((len(given),), share, device=given.device)
    return network.trunk[:2](torch.cat([given, fourier(times, network.plan.waves)], 1))


def codes(network: Hypernetwork, signals: Tensor, share: float) -> Tensor:
    """A compact network's code for signals [A, D] at a share of virtual time, [A, code], negative ones not cut yet."""
    return network.trunk[2](_features(network, signals, share))


@torch.no_grad()
def start_detecting(network: Hypernetwork, asked: Tensor, about: Tensor, kept: Tensor) -> None:
    """Fit a compact network's code: each number to the prompts that are to switch it on.

    Args:
        network: fresh, on the CPU, its signal's shift and scale set.
        asked: signals of prompts that name erased concepts, [A, D].
        about: whether they name it, for each erased concept, bool [A, C].
        kept: signals of prompts that are to be written nothing, [K, D].
    """
    plan, signals = network.plan, torch.cat([asked, kept]).cpu()
    features = torch.cat([_features(network, signals, share) for share in TIMES])
    off = torch.zeros(len(kept), plan.code, dtype=torch.bool)
    on = torch.cat([switched(about.cpu(), plan.code), off]).repeat(len(TIMES), 1)
    several, last = min(about.shape[1], plan.code), network.trunk[2]
    assert isinstance(last, nn.Linear)
    found = [detector(features, on[:, k]) for k in range(several)]
    for j in range(plan.code):
        weights, bias = found[j % several]
        row = last.weight[j].double()
        last.weight[j] = (weights + DRAWN * row * weights.norm() / row.norm()).float()
        last.bias[j] = bias.float()
