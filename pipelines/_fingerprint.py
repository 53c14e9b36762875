"""Telling one base model from another by a few numbers, the same in float32, float16 and bfloat16."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SAMPLES = 256
SAME = 0.01
"""Distance up to which weights are of one model in several precisions."""
ROUNDED = 0.3
"""The same where one of them was kept in few bits: of normally distributed weights 8 bits move it by 0.008, NF4 by 0.09
and FP4 by 0.12. Close relatives of a model are not told apart then."""


def fingerprint(weights: Mapping[str, Tensor], names: Iterable[str] | None = None) -> dict[str, Any]:
    """What an update was made for: a hash of the weights' names and shapes, and a spread of about 256 of their weights.

    The weights are kept as numbers, not hashed, because the same model is loaded in several precisions. They are read
    one after another.

    Args:
        weights: by name.
        names: which of them; all by default.
    """
    chosen = sorted(weights if names is None else names)
    each = max(4, SAMPLES // max(1, len(chosen)))
    values: list[float] = []
    shapes: list[str] = []
    for n in chosen:
        weight = weights[n].detach()
        shapes.append(f"{n}{tuple(weight.shape)}")
        flat = weight.flatten()
        step = max(1, len(flat) // each)
        values += flat[step // 2 :: step][:each].float().tolist()
    return {
        "structure": hashlib.sha256(";".join(shapes).encode()).hexdigest()[:16],
        "weights": [float(f"{v:.4g}") for v in values],
    }


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Relative distance of two spreads of weights: 0 for the same model, below 0.01 for another precision of it."""
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    if len(x) != len(y):
        return float("inf")
    return ((x - y).norm() / x.norm().clamp(min=1e-12)).item()
