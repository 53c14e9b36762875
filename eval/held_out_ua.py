"""Unlearning accuracy in sentences that were used neither in training nor by any method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._evaluator import Case
from ._score import NotApplicable, Score


@dataclass(frozen=True)
class HeldOutUA:
    """as UA, on held-out templates (UnlearnCanvas, arXiv 2402.11846), in percent."""

    higher_is_better: ClassVar[bool] = True
    pictures: ClassVar[bool] = False
    about: ClassVar[str] = "Unlearning accuracy in sentences that were used neither in training nor by any method."

    def score(self, case: Case) -> Score | NotApplicable:
        """In percent, beside the unerased control."""
        return case.forgotten("held-out", "there are no held-out prompts")
