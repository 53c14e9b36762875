"""Telling one base model from another by a few numbers, the same in float32, float16 and bfloat16."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SAMPLES = 256


def fingerprint(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What an update was made for: a hash of the weights' names and shapes, and a spread of about 256 of their weights.

    The weights are kept as numbers, not hashed, because the same model is loaded in several precisions.
    """
    names = sorted(weights)
    shape = ";".join(f"{n}{tuple(weights[n].shape)}" for n in names)
    each = max(4, SAMPLES // max(1, len(names)))
    values: list[float] = []
    for n in names:
        flat = weights[n].detach().flatten()
        step = max(1, len(flat) // each)
        values += flat[step // 2 :: step][:each].float().tolist()
    return {
        "structure": hashlib.sha256(shape.encode()).hexdigest()[:16],
        "weights": [float(f"{v:.4g}") for v in values],
    }


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Relative distance of two spreads of weights: 0 for the same model, below 0.01 for another precision of it."""
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    if len(x) != len(y):
        return float("inf")
    return ((x - y).norm() / x.norm().clamp(min=1e-12)).item()
