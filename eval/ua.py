"""Unlearning accuracy: share of images asked to show the concept in which the judge does not see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._evaluator import Case
from ._score import NotApplicable, Score


@dataclass(frozen=True)
class UA:
    """UA(X) = 1 - acc(X) (UnlearnCanvas, arXiv 2402.11846), in percent."""

    higher_is_better: ClassVar[bool] = True
    pictures: ClassVar[bool] = False
    about: ClassVar[str] = (
        "Unlearning accuracy: share of images asked to show the concept in which the judge does not see it."
    )

    def score(self, case: Case) -> Score | NotApplicable:
        """In percent, beside the unerased control."""
        return case.forgotten("grid", "no grid prompt asks for the concept")
