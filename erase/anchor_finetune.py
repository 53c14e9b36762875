"""Anchor fine-tuning: ordinary training on images of the anchor under the concept's name. The plainest control.

Concept ablation's noise variant without its regularisation is the same loss; this one has no other setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..pipelines import Backbone, Condition
from ._images import CANVAS, ImageTrainer, OnImages
from ._method import Task


@dataclass(frozen=True)
class AnchorFinetune(OnImages):
    """The ordinary denoising loss on the anchor's images, captioned with the concept."""

    paper: ClassVar[str] = "control: relabelled fine-tuning"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"train": "all", "dense": True, "steps": 600, "batch": 8, "lr": 1e-5},
        "sd": {"rank": 8, "steps": 200, "batch": 8, "lr": 1e-4},
        "canvas": {**CANVAS, "steps": 200},
    }

    def run(self, backbone: Backbone, task: Task) -> _Trainer:
        """What trains the student."""
        return _Trainer(self, backbone, task)


class _Trainer(ImageTrainer):
    @property
    def source(self) -> Condition:
        return self.anchor

    def mismatch(self, x: Tensor, t: Tensor, prompt: Tensor, truth: Tensor) -> Tensor:
        with self.student.on():
            return (self.backbone.denoise(x, t, self.forget[prompt]).float() - truth).square().mean()
