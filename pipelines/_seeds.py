"""Draws that depend on the seed and the step alone, so that a resumed run repeats them."""

from __future__ import annotations

import torch


def step_generator(seed: int, step: int) -> torch.Generator:
    """The draws of one training step: a CPU generator, the same on every machine and in every process."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))
