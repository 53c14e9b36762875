"""In-domain retain accuracy: judge accuracy for the concept's own domain on prompts without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._evaluator import Case
from ._score import NotApplicable, Score


@dataclass(frozen=True)
class IRA:
    """IRA(X) = mean acc over the other concepts of X's domain (UnlearnCanvas, arXiv 2402.11846), in percent.

    Attributes:
        photo: count UnlearnCanvas' photographs as a style, as the published script does (50 styles stay, not 49).

    The details of the score name the convention and give the value by the others.
    """

    photo: bool = True

    higher_is_better: ClassVar[bool] = True
    pictures: ClassVar[bool] = False
    about: ClassVar[str] = (
        "In-domain retain accuracy: judge accuracy for the concept's own domain on prompts without it."
    )

    def score(self, case: Case) -> Score | NotApplicable:
        """In percent, beside the unerased control."""
        return case.retained(case.domain, photo=self.photo)
