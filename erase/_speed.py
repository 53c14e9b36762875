"""How fast a machine is at what denoisers are made of."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..prompts import InputError, first_line

REACHED = 0.6
"""What a network reaches of the rate that a data sheet names: an assumption."""
CALL = 1e-5
"""Seconds that an operation takes however small it is, where nothing was measured: an assumption."""


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second.

    Attributes:
        flops: operations of matrix products, convolutions and attention that a network reaches, a second; the sums,
            norms and activations between them are in it.
        call: seconds that one operation of torch takes however small it is.
    """

    flops: float
    call: float

    @classmethod
    def rated(cls, flops: float) -> Speed:
        """Of a machine that is not here, from what its data sheet says."""
        return cls(flops * REACHED, CALL)

    def seconds(self, flops: float, steps: float = 0) -> float:
        """Of so many floating point operations in so many operations of torch."""
        return flops / self.flops + steps * self.call


class Piece(nn.Module):
    """A residual block and a transformer block as in a denoiser's middle resolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(32, width), nn.LayerNorm(width), nn.LayerNorm(width)])
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Latent features [B, width, H, W] to the same shape."""
        h = x + self.conv(F.silu(self.norms[0](x)))
        h = h.flatten(2).mT
        q, k, v = self.qkv(self.norms[1](h)).unflatten(-1, (3, -1, 64)).permute(2, 0, 3, 1, 4)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        a, b = self.up(self.norms[2](h)).chunk(2, -1)
        return (h + self.down(a * F.gelu(b))).mT.unflatten(-1, x.shape[2:])


def piece_flops(rows: int, width: int, side: int) -> int:
    """Operations of `Piece` on [rows, width, side, side], two for each multiplication: a convolution of nine weights,
    Linears of 3, 1, 8 and 4 times the width, and attention's two products.
    """
    tokens = side**2
    return 2 * rows * tokens * width * (9 * width + 16 * width + 2 * tokens)


def measured(device: str, dtype: torch.dtype) -> Speed:
    """The speed of a device, timed for a second or so.

    Raises:
        InputError: the device is not there.
    """
    rows, width, side = (1, 640, 32) if device.startswith("cpu") else (8, 1280, 32)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            piece = Piece(width).to(device, dtype)
            x = torch.randn(rows, width, side, side).to(device, dtype)
            large = _best(lambda: piece(x))
            small = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.LayerNorm(64)).to(device, dtype)
            y = torch.randn(4, 64).to(device, dtype)
            chain = nn.Sequential(*[small] * 20)
            short = _best(lambda: chain(y)) / 60
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot measure {device!r}: {first_line(error)}; say how fast it is with --flops") from error
    return Speed(piece_flops(rows, width, side) / large, short)


def _best(work: Callable[[], Tensor], runs: int = 4) -> float:
    """Seconds of the fastest of some runs, the result waited for."""
    best = math.inf
    for _ in range(runs):
        start = time.perf_counter()
        float(work().flatten()[0])
        best = min(best, time.perf_counter() - start)
    return best
