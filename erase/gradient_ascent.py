"""Gradient ascent: climb the ordinary denoising loss on images of the concept. A control: it forgets by breaking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..pipelines import Backbone, Condition
from ._images import CANVAS, ImageTrainer, OnImages
from ._method import Task


@dataclass(frozen=True)
class GradientAscent(OnImages):
    """The loss of the concept's own images, with its sign turned. It has no bound, so stop early."""

    paper: ClassVar[str] = "control: Thudi et al., arXiv 2109.13398, on the diffusion loss"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # SalUn's own control of this kind adds a retain loss, which this one has not: its learning rate and batch
        "paper": {"train": "all", "dense": True, "steps": 600, "batch": 8, "lr": 1e-5},
        "sd": {"rank": 8, "steps": 50, "batch": 4, "lr": 1e-4},
        "canvas": {**CANVAS, "steps": 30},
    }

    def run(self, backbone: Backbone, task: Task) -> _Trainer:
        """What trains the student."""
        return _Trainer(self, backbone, task)


class _Trainer(ImageTrainer):
    @property
    def source(self) -> Condition:
        return self.forget

    def mismatch(self, x: Tensor, t: Tensor, prompt: Tensor, truth: Tensor) -> Tensor:
        with self.student.on():
            return -(self.backbone.denoise(x, t, self.forget[prompt]).float() - truth).square().mean()
