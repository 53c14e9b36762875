"""Kernel inception distance: like FID, but right on average at any number of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..prompts import InputError
from ._against import DRAWS_HELP, FEATURES_HELP, REFERENCE_HELP, counted_by, measured, sides, suited
from ._distances import kid, mmd_to, polynomial, scaled
from ._evaluator import Case
from ._score import NotApplicable, Score


@dataclass(frozen=True)
class KID:
    """Unbiased squared MMD under (x.y / d + 1)^3 (Binkowski et al. 2018, arXiv 1801.01401), times 1000.

    Unbiased: below 0 now and then, where nothing differs.
    """

    features: str = field(default="", metadata={"help": FEATURES_HELP})
    reference: str = field(default="", metadata={"help": REFERENCE_HELP})
    subset: int = field(default=1000, metadata={"help": "images a side in each subset; fewer in all: all (count)"})
    subsets: int = field(default=100, metadata={"help": "subsets that are averaged (count)"})
    seed: int = field(default=0, metadata={"help": "of the subsets (whole number)"})
    draws: int = field(default=200, metadata={"help": DRAWS_HELP})

    higher_is_better: ClassVar[bool] = False
    default: ClassVar[bool] = False
    about: ClassVar[str] = "Kernel inception distance of the images without the concept from a reference set, x1000."

    def __post_init__(self) -> None:
        if self.subset < 2 or self.subsets < 1:
            raise InputError(f"expected subsets of 2 or more images, got {self.subsets} of {self.subset}")

    def score(self, case: Case) -> Score | NotApplicable:
        """Beside the unerased model's distance from the same reference."""
        both = sides(case, suited(case, self.features, "canvas-judges", "inception-clean"), self.reference)
        if isinstance(both, NotApplicable):
            return both
        y = both.reference
        few = min(len(both.erased), len(y)) <= self.subset
        score = measured(
            both,
            scaled(mmd_to(y, polynomial, biased=False), 1000),
            value=lambda x: 1000 * kid(x, y, subset=self.subset, subsets=self.subsets, seed=self.seed),
            unit="x1000",
            draws=self.draws,
            signed=True,
        )
        how = "all images at once" if few else f"mean of {self.subsets} subsets of {self.subset}, seed {self.seed}"
        return counted_by(score, f"unbiased, {how}")
