"""In-prompt retain: judge accuracy for the other domain on the prompts that do name the concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._evaluator import Case
from ._score import NotApplicable, Score


@dataclass(frozen=True)
class InPrompt:
    """acc of the other domain on prompts of X (UnlearnCanvas, arXiv 2402.11846), in percent."""

    higher_is_better: ClassVar[bool] = True
    pictures: ClassVar[bool] = False
    about: ClassVar[str] = (
        "In-prompt retain: judge accuracy for the other domain on the prompts that do name the concept."
    )

    def score(self, case: Case) -> Score | NotApplicable:
        """In percent, beside the unerased control."""
        return case.accuracy(
            case.other_domain, case.targets(), case.other_domain, "no grid prompt asks for the concept"
        )
