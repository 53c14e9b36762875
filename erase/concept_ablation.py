"""Concept ablation: the concept's prompt learns to predict what the anchor's prompt predicts (Kumari et al.,
arXiv 2303.13516).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..pipelines import Backbone, Condition
from ..prompts import InputError, unknown
from . import _published
from ._images import CANVAS, ImageTrainer, OnImages
from ._method import Task
from ._needs import Call, Sheet

Variant = Literal["model", "noise"]


@dataclass(frozen=True)
class ConceptAblation(OnImages):
    """Anchor distribution matching on the teacher's images of the anchor."""

    variant: Variant = field(
        default="model",
        metadata={"help": "target: model (the anchor prompt's own prediction, equation 5) or noise (equation 6)"},
    )
    keep: float = field(
        default=1.0, metadata={"help": "weight of the ordinary loss on the anchor's images, the paper's lambda (>= 0)"}
    )

    paper: ClassVar[str] = "arXiv 2303.13516"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **_published.CONCEPT_ABLATION,
        "sd": {"train": "text-kv", "rank": 8, "steps": 200, "batch": 8, "lr": 1e-4},
        "canvas": {**CANVAS, "steps": 200, "batch": 12, "lr": 2e-3},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in get_args(Variant):
            raise unknown("variant", self.variant, get_args(Variant))
        if not 0 <= self.keep < float("inf"):
            raise InputError(f"keep: expected a number of at least 0, got {self.keep}")

    def passes(self, sheet: Sheet, rows: int) -> tuple[Call, ...]:
        """The anchor's prediction, and a pass that learns on both prompts."""
        learn = Call(2 * rows if self.keep else rows, learns=self.learns)
        return (Call(rows), learn) if self.variant == "model" else (learn,)

    def run(self, backbone: Backbone, task: Task) -> _Trainer:
        """What trains the student."""
        return _Trainer(self, backbone, task)


class _Trainer(ImageTrainer):
    settings: ConceptAblation

    @property
    def source(self) -> Condition:
        return self.anchor

    def mismatch(self, x: Tensor, t: Tensor, prompt: Tensor, truth: Tensor) -> Tensor:
        s, forget, anchor = self.settings, self.forget[prompt], self.anchor[prompt]
        with self.student.on():
            target = truth
            if s.variant == "model":
                with torch.no_grad():  # the student's own answer, as the paper has it, not the teacher's
                    target = self.backbone.denoise(x, t, anchor).float()
            if not s.keep:
                return (self.backbone.denoise(x, t, forget).float() - target).square().mean()
            out, kept = self.backbone.denoise(torch.cat([x, x]), torch.cat([t, t]), forget + anchor).float().chunk(2)
        return (out - target).square().mean() + s.keep * (kept - truth).square().mean()
