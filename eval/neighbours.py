"""Neighbour accuracy: judge accuracy for the concept's look-alikes, the first to suffer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._evaluator import Case
from ._score import NotApplicable, Score


@dataclass(frozen=True)
class Neighbours:
    """IRA on the concept's neighbours alone, in percent."""

    higher_is_better: ClassVar[bool] = True
    pictures: ClassVar[bool] = False
    about: ClassVar[str] = "Neighbour accuracy: judge accuracy for the concept's look-alikes, the first to suffer."

    def score(self, case: Case) -> Score | NotApplicable:
        """In percent, beside the unerased control; clustered by the other domain."""
        near = set(case.concept.neighbours)
        rows = [k for k in case.others() if getattr(case.gallery.prompts[k], case.domain) in near]
        return case.accuracy(case.domain, rows, case.other_domain, "the concept has no neighbours that were kept")
