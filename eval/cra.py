"""Cross-domain retain accuracy: judge accuracy for the other domain on prompts without the concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._evaluator import Case
from ._score import NotApplicable, Score


@dataclass(frozen=True)
class CRA:
    """CRA(X) = mean acc over the other domain (UnlearnCanvas, arXiv 2402.11846), in percent.

    Attributes:
        targets: count prompts that ask for X too, as the published script does; the paper leaves them out.
        photo: count UnlearnCanvas' photographs as a style, as the published script does (51 styles, not 50).

    The details of the score name the convention and give the value by the others.
    """

    targets: bool = False
    photo: bool = True

    higher_is_better: ClassVar[bool] = True
    pictures: ClassVar[bool] = False
    about: ClassVar[str] = (
        "Cross-domain retain accuracy: judge accuracy for the other domain on prompts without the concept."
    )

    def score(self, case: Case) -> Score | NotApplicable:
        """In percent, beside the unerased control."""
        return case.retained(case.other_domain, targets=self.targets, photo=self.photo)
