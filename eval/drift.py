"""Drift: how far the erased model's images have moved from the original model's (FID-SD)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ._against import DRAWS_HELP, FEATURES_HELP, suited
from ._distances import frechet
from ._evaluator import Case
from ._features import Picked, extractor
from ._score import NotApplicable, Score
from .fid import FID


@dataclass(frozen=True)
class Drift:
    """FID against the ORIGINAL model's images on prompts that do not ask for the concept: FID-SD (HUB, arXiv
    2410.05664). No reference images are needed.

    The value compares one half of the prompts, drawn by the erased model, with the other half drawn by the original;
    the control does so with the original on both sides. So the control is not 0: it is how far two halves of one model
    are apart at this n, and an eraser that moves nothing has exactly that. The distance on the same prompts and seeds,
    which papers print, is 0 for such an eraser and stands in the details.
    """

    features: str = field(default="", metadata={"help": FEATURES_HELP})
    draws: int = field(default=100, metadata={"help": DRAWS_HELP})

    higher_is_better: ClassVar[bool] = False
    default: ClassVar[bool] = False
    about: ClassVar[str] = "FID from the original model's images, on prompts without the concept (FID-SD)."

    def score(self, case: Case) -> Score | NotApplicable:
        """Beside the distance between two halves of the original model's images."""
        score = FID(self.features, "original", self.draws).score(case)
        if isinstance(score, NotApplicable):
            return score
        look = extractor(suited(case, self.features, "canvas-judges", "inception-clean"))
        erased, original = (look(Picked(g.images, case.others())) for g in (case.gallery, case.control))
        paired = round(frechet(erased, original), 4)
        return replace(score, details={**score.details, "same prompts and seeds": paired, "of": len(erased)})
