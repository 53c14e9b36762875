"""Cross-domain retain accuracy: judge accuracy for the other domain on prompts without the concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._evaluator import Case
from ._score import NotApplicable, Score


@dataclass(frozen=True)
class CRA:
    """CRA(X) = mean acc over the other domain (UnlearnCanvas, arXiv 2402.11846), in percent.

    Prompts that ask for X are left out, as in the paper.
    """

    higher_is_better: ClassVar[bool] = True
    about: ClassVar[str] = (
        "Cross-domain retain accuracy: judge accuracy for the other domain on prompts without the concept."
    )

    def score(self, case: Case) -> Score | NotApplicable:
        """In percent, beside the unerased control."""
        return case.accuracy(
            case.other_domain, case.others(), case.other_domain, "no grid prompt leaves the concept out"
        )
