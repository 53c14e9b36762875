"""In-domain retain accuracy: judge accuracy for the concept's own domain on prompts without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._evaluator import Case
from ._score import NotApplicable, Score


@dataclass(frozen=True)
class IRA:
    """IRA(X) = mean acc over the other concepts of X's domain (UnlearnCanvas, arXiv 2402.11846), in percent.

    Prompts that ask for X are left out, as in the paper.
    """

    higher_is_better: ClassVar[bool] = True
    about: ClassVar[str] = (
        "In-domain retain accuracy: judge accuracy for the concept's own domain on prompts without it."
    )

    def score(self, case: Case) -> Score | NotApplicable:
        """In percent, beside the unerased control."""
        return case.accuracy(case.domain, case.others(), case.domain, "no grid prompt leaves the concept out")
