"""The hypernetwork of UnHype: from a prompt's signal and a virtual time to low-rank factors of every layer
(arXiv 2602.03410).

This file needs torch and the standard library only: the text of it goes into the `pipeline.py` of every eraser of this
kind, for apps without this package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Architecture = Literal["per-layer", "compact"]


@dataclass(frozen=True)
class Plan:
    """Everything that a hypernetwork's shape follows from.

    Attributes:
        layers: full name, inputs and outputs of each Linear it writes for.
        text: D, numbers in a prompt's signal.
        read: where that signal is read.
        architecture: "per-layer", two small networks for each layer, as published; "compact", one trunk for all layers
            that makes a short code of a prompt, and a linear map from the code for each layer.
        rank: r, of what it writes.
        hidden: width of the hidden layers.
        code: numbers in the code (compact).
        times: S, the end of virtual time.
        waves: frequencies of the Fourier features of virtual time.
    """

    layers: tuple[tuple[str, int, int], ...]
    text: int
    read: Literal["pooled", "last", "mean"]
    architecture: Architecture = "per-layer"
    rank: int = 1
    hidden: int = 100
    code: int = 16
    times: int = 300
    waves: int = 16

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """From a JSON object, whose lists become tuples.

        Raises:
            TypeError, ValueError: a field is missing, unknown or of another form.
        """
        layers = tuple((str(name), int(n), int(m)) for name, n, m in value["layers"])
        return cls(**{**value, "layers": layers})


def fourier(share: Tensor, waves: int) -> Tensor:
    """Sines and cosines of pi k s / S for k = 1 .. waves, [B, 2 waves], of s / S [B]. Half periods, so that the two
    ends of virtual time differ.
    """
    angle = math.pi * share[:, None] * torch.arange(1, waves + 1, device=share.device)
    return torch.cat([angle.sin(), angle.cos()], 1)


class Revived(nn.Module):
    """max(z, 0), whose gradient where z < 0 is not 0 but a tenth: a number of the code that has gone silent for a
    prompt can come back, while what it writes until then is exactly nothing.
    """

    def forward(self, z: Tensor) -> Tensor:
        return z.relu() + 0.1 * torch.where(z < 0, z - z.detach(), 0.0)


class Pair(nn.Module):
    """What the published hypernetwork has for one layer: a network for each factor."""

    def __init__(self, plan: Plan, inputs: int, outputs: int) -> None:
        super().__init__()
        width = plan.text + 2 * plan.waves
        self.left = nn.Sequential(nn.Linear(width, plan.hidden), nn.ReLU(), nn.Linear(plan.hidden, inputs * plan.rank))
        self.right = nn.Sequential(
            nn.Linear(width, plan.hidden), nn.ReLU(), nn.Linear(plan.hidden, plan.rank * outputs)
        )

    @torch.no_grad()
    def silence(self) -> None:
        """Start with a right factor of zero."""
        for p in self.right[-1].parameters():
            p.zero_()

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(u), self.right(u)


class Heads(nn.Module):
    """What the compact one has for one layer: a linear map from the code for each factor, without a bias, so that a
    prompt whose code is zero is written nothing, exactly.
    """

    def __init__(self, plan: Plan, inputs: int, outputs: int) -> None:
        super().__init__()
        self.left = nn.Linear(plan.code, inputs * plan.rank, bias=False)
        self.right = nn.Linear(plan.code, plan.rank * outputs, bias=False)

    @torch.no_grad()
    def silence(self) -> None:
        """Start with factors that no prompt changes, the right one zero: then there is nothing to retain yet."""
        self.left.weight.zero_()
        self.right.weight.zero_()

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(code), self.right(code)


class Hypernetwork(nn.Module):
    """H(c, s): of each layer x_L [B, in, r] and x_R [B, r, out], by which y = W x + (x x_L) x_R.

        u = [signal of c; Fourier features of s]
        x_L = alpha(s) (X_const + (s/S) left(u)),   alpha(s) = a_b + (s/S) a_l
        x_R = (s/S) right(u)

    At s = 0 the update is zero, exactly. X_const is drawn once and kept with the weights: N(0, 1) / sqrt(r) as
    published, in the compact one N(0, 1) / sqrt(r d_in), so that x X_const is about as large as x is. The signal is
    first shifted and scaled by two stored vectors, 0 and 1 as published.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.register_buffer("centre", torch.zeros(plan.text))
        self.register_buffer("spread", torch.ones(plan.text))
        compact = plan.architecture == "compact"
        width = plan.text + 2 * plan.waves
        trunk = (nn.Linear(width, plan.hidden), nn.ReLU(), nn.Linear(plan.hidden, plan.code), Revived())
        self.trunk = nn.Sequential(*(trunk if compact else ()))
        part = Heads if compact else Pair
        self.parts = nn.ModuleList(part(plan, n, m) for _, n, m in plan.layers)  # type: ignore[operator]
        self.base = nn.Parameter(torch.ones(len(plan.layers)))
        self.slope = nn.Parameter(torch.zeros(len(plan.layers)))
        for k, (_, n, _m) in enumerate(plan.layers):
            size = math.sqrt(plan.rank * (n if compact else 1))
            self.register_buffer(f"constant_{k}", torch.randn(n, plan.rank) / size)

    @classmethod
    def fresh(cls, plan: Plan, seed: int) -> Hypernetwork:
        """A new one: the same for the same seed, and no draw of anybody else's is used up."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = cls(plan)
        for part in net.parts:
            part.silence()  # type: ignore[operator]
        if plan.architecture == "compact":  # unless it is fitted, every number of the code starts alive
            nn.init.constant_(net.trunk[2].bias, 0.3)  # type: ignore[arg-type]
        return net

    @classmethod
    def stored(cls, plan: Plan, tensors: Mapping[str, Tensor]) -> Hypernetwork:
        """One from its tensors, silent to gradients.

        Raises:
            RuntimeError: they do not fit the plan.
        """
        with torch.device("meta"):
            net = cls(plan)
        net.load_state_dict(dict(tensors), assign=True)
        return net.requires_grad_(False).eval()

    def on(self, device: torch.device) -> Hypernetwork:
        """Itself, moved there unless it is there: going through all its parts takes longer than what they compute."""
        return self if self.centre.device == device else self.to(device)

    def forward(self, signal: Tensor, s: Tensor | float) -> dict[str, tuple[Tensor, Tensor]]:
        plan, rows = self.plan, len(signal)
        share = torch.as_tensor(s, dtype=torch.float32, device=signal.device).expand(rows) / plan.times
        u = torch.cat([(signal.float() - self.centre) / self.spread, fourier(share, plan.waves)], 1)
        code, part = self.trunk(u), share[:, None, None]
        out = {}
        for k, (name, n, m) in enumerate(plan.layers):
            left, right = self.parts[k](code)
            alpha = self.base[k] + part * self.slope[k]
            constant = getattr(self, f"constant_{k}")
            x_l = alpha * (constant + part * left.view(rows, n, plan.rank))
            out[name] = x_l, part * right.view(rows, plan.rank, m)
        return out


def size(plan: Plan) -> int:
    """How many numbers a hypernetwork's file holds, without making it."""
    with torch.device("meta"):
        return sum(t.numel() for t in Hypernetwork(plan).state_dict().values())


def norms(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Frobenius norm of each prompt's whole update, sqrt(sum over layers of |x_L x_R|^2), [B], without forming it."""
    total: Tensor | float = 0.0
    for left, right in pairs.values():
        total = total + ((left.mT @ left) * (right @ right.mT)).sum((1, 2)).clamp(min=0)
    return torch.as_tensor(total).sqrt()
