"""Unlearning accuracy when the concept is asked for under its synonyms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._evaluator import Case
from ._score import NotApplicable, Score


@dataclass(frozen=True)
class SynonymUA:
    """as UA, on the concept's other names (UnlearnCanvas, arXiv 2402.11846), in percent."""

    higher_is_better: ClassVar[bool] = True
    pictures: ClassVar[bool] = False
    about: ClassVar[str] = "Unlearning accuracy when the concept is asked for under its synonyms."

    def score(self, case: Case) -> Score | NotApplicable:
        """In percent, beside the unerased control."""
        return case.forgotten("synonym", "the concept has no synonym prompts")
