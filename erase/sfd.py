"""Score Forgetting Distillation: a one-step generator learns the teacher's scores, and for the concept's prompts those
of its anchor's (Chen et al., arXiv 2409.11219; the generator's loss: Zhou et al., arXiv 2404.04057). No image of any
data set is read. What comes out draws in one step; `sfd_many_step` keeps the network of many steps instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..pipelines import Backbone
from . import _published
from ._distil import Distil, Distiller
from ._method import Task

CANVAS: Mapping[str, Any] = {
    "train": "all",
    "rank": 12,
    "batch": 4,
    "contexts": 3,
    "compose": True,
    "k1": 4.0,
    "k2": 4.0,
    "k4": 4.0,
    "steps": 240,
    "lr": 7e-4,
    "lr_fake": 2e-3,
    "decay": True,
    "clip": 300.0,
    "ema": 0.9,
    "sampler_steps": 12,
}
"""What SFD and its variant share in their presets for the Canvas pipelines."""


@dataclass(frozen=True)
class SFD(Distil):
    """Distilling the model into a one-step generator that has forgotten."""

    paper: ClassVar[str] = "arXiv 2409.11219"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **_published.SFD,
        "sd": {
            "train": "all",
            "rank": 64,
            "steps": 5000,
            "batch": 8,
            "lr": 1e-5,
            "lr_fake": 3e-5,
            "contexts": 3,
            "k1": 4.5,
            "k2": 4.5,
            "k4": 4.5,
            "ema": 0.99,
        },
        "canvas": CANVAS,
    }

    def run(self, backbone: Backbone, task: Task) -> Distiller:
        """What trains the generator.

        Raises:
            InputError: the model draws in a few steps already, or has no times for so many from t-init.
        """
        return Distiller(self, backbone, task)
