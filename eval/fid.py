"""Frechet inception distance: how far the images that should have stayed are from a reference."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ._against import DRAWS_HELP, FEATURES_HELP, REFERENCE_HELP, measured, sides, suited
from ._distances import frechet_to
from ._evaluator import Case
from ._score import NotApplicable, Score

FEW = 5000


@dataclass(frozen=True)
class FID:
    """Frechet distance of Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500), 0 or more.

    Below a few thousand images it is mostly bias: compare it only with the control beside it, at the same n, or use
    `kid` or `cmmd`.
    """

    features: str = field(default="", metadata={"help": FEATURES_HELP})
    reference: str = field(default="", metadata={"help": REFERENCE_HELP})
    draws: int = field(default=100, metadata={"help": DRAWS_HELP})

    higher_is_better: ClassVar[bool] = False
    default: ClassVar[bool] = False
    about: ClassVar[str] = "Frechet inception distance of the images without the concept from a reference set."

    def score(self, case: Case) -> Score | NotApplicable:
        """Beside the unerased model's distance from the same reference."""
        both = sides(case, suited(case, self.features, "canvas-judges", "inception-clean"), self.reference)
        if isinstance(both, NotApplicable):
            return both
        score = measured(both, frechet_to(both.reference), draws=self.draws)
        if min(score.n, len(both.reference)) >= FEW:
            return score
        note = (
            f"FID of {score.n} images against {len(both.reference)} is mostly bias: compare it only with the unerased "
            "model's at the same n, or use kid or cmmd"
        )
        warnings.warn(note, stacklevel=2)
        return replace(score, details={**score.details, "warning": note})
