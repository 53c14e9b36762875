"""How fast a machine is at what denoisers are made of."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pipelines import ATTENTION_BACKWARD, attention_flops
from ..prompts import InputError, first_line

REACHED = 0.6
"""What a network reaches of the rate that a data sheet names: an assumption."""
CALL = 1e-5
"""Seconds that an operation takes however small it is, where nothing was measured: an assumption."""


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second.

    Attributes:
        flops: operations of matrix products and convolutions that a network reaches, a second; the sums, norms and
            activations between them are in it.
        call: seconds that one operation of torch takes however small it is.
        attention: operations of attention's forward passes a second.
        attention_backward: of its backward passes, which on a CPU in half precision are several times slower than a
            product's.
    """

    flops: float
    call: float
    attention: float
    attention_backward: float

    @classmethod
    def rated(cls, flops: float) -> Speed:
        """Of a machine that is not here, from what its data sheet says: everything at one rate."""
        return cls(flops * REACHED, CALL, flops * REACHED, flops * REACHED)

    def seconds(self, flops: float, steps: float = 0, attention: float = 0, attention_backward: float = 0) -> float:
        """Of so many floating point operations: products and convolutions, in so many operations of torch; attention;
        attention's backward passes.
        """
        between = attention / self.attention + attention_backward / self.attention_backward
        return flops / self.flops + steps * self.call + between


class Piece(nn.Module):
    """A residual block and a transformer block, its attention apart, as in a denoiser's middle resolutions."""

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
        q, k, v = self.qkv(self.norms[1](h)).chunk(3, -1)
        h = h + self.out(q + k + v)
        a, b = self.up(self.norms[2](h)).chunk(2, -1)
        return (h + self.down(a * F.gelu(b))).mT.unflatten(-1, x.shape[2:])


def piece_flops(rows: int, width: int, side: int) -> int:
    """Operations of `Piece` on [rows, width, side, side], two for each multiplication: a convolution of nine weights,
    and Linears of 3, 1, 8 and 4 times the width.
    """
    return 2 * rows * side**2 * width * (9 * width + 16 * width)


def measured(device: str, dtype: torch.dtype) -> Speed:
    """The speed of a device, timed for a few seconds.

    Raises:
        InputError: the device is not there.
    """
    sizes = ((1, 640, 32), (1, 1280, 16)) if device.startswith("cpu") else ((8, 1280, 32),)
    try:
        with torch.random.fork_rng(devices=[]):
            passes = [_passes(*size, device, dtype) for size in sizes]
            with torch.no_grad():
                small = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.LayerNorm(64)).to(device, dtype)
                y = torch.randn(4, 64).to(device, dtype)
                chain = nn.Sequential(*[small] * 20)
                short = _best(lambda: chain(y)) / 60
            attention, backward = _attending(sizes[0], device, dtype)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot measure {device!r}: {first_line(error)}; say how fast it is with --flops") from error
    return Speed(sum(2 * piece_flops(*size) for size in sizes) / sum(passes), short, attention, backward)


def _passes(rows: int, width: int, side: int, device: str, dtype: torch.dtype) -> float:
    """Seconds of `Piece` forward and backward to what goes in, its weights frozen: each of `piece_flops`."""
    piece = Piece(width).to(device, dtype).requires_grad_(False)
    x = torch.randn(rows, width, side, side).to(device, dtype)
    with torch.no_grad():
        forward = _best(lambda: piece(x))
    return forward + _backward(piece, x)


def _attending(size: tuple[int, int, int], device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Operations a second of self-attention, forward and backward: of an image's tokens beside a text's 77, so that no
    block of a kernel divides their number, and the heads side by side in memory, as networks hand them over.
    """
    rows, width, side = size
    q, k, v = (torch.randn(rows, side**2 + 77, width // 64, 64).to(device, dtype).transpose(1, 2) for _ in range(3))
    forward = attention_flops(q.shape, k.shape, v.shape)
    with torch.no_grad():
        alone = _best(lambda: F.scaled_dot_product_attention(q, k, v))
    back = _backward(F.scaled_dot_product_attention, q, k, v)
    return forward / alone, forward * ATTENTION_BACKWARD / back


def _backward(work: Callable[..., Tensor], *given: Tensor) -> float:
    """Seconds of the gradients for what is given."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in given]
        out = work(*leaves)
        ones = torch.ones_like(out)
        return _best(lambda: torch.autograd.grad(out, leaves, ones, retain_graph=True)[0])


def _best(work: Callable[[], Tensor], runs: int = 3) -> float:
    """Seconds of the fastest of some runs, the result waited for."""
    best = math.inf
    for _ in range(runs):
        start = time.perf_counter()
        float(work().flatten()[0])
        best = min(best, time.perf_counter() - start)
    return best
