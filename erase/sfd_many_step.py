"""The many-step variant of Score Forgetting Distillation (Chen et al., arXiv 2409.11219): the training of `sfd`, of
which the fake score is kept. It has learnt what the forgetting generator draws, and draws with the model's own sampler.
The paper keeps the generator; this is no result of the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..pipelines import Backbone
from ._distil import Distil, ScoreKeeper
from ._method import Task
from .sfd import SFD


@dataclass(frozen=True)
class ManyStep(Distil):
    """The fake score of SFD, kept as an ordinary eraser of many steps."""

    paper: ClassVar[str] = "a variant of arXiv 2409.11219, not in the paper"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = SFD.presets

    def run(self, backbone: Backbone, task: Task) -> ScoreKeeper:
        """What trains it.

        Raises:
            InputError: the model draws in a few steps already, or has no times for so many from t-init.
        """
        return ScoreKeeper(self, backbone, task)
