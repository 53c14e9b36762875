"""Improved precision: which of the images that should have stayed still look like the reference's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..prompts import InputError
from ._against import FEATURES_HELP, REFERENCE_HELP, counted_by, sides, suited
from ._distances import density, inside
from ._evaluator import Case
from ._score import NotApplicable, Score, share


@dataclass(frozen=True)
class Precision:
    """Share of images within the k-nearest-neighbour manifold of the reference (Kynkaanniemi et al. 2019, arXiv
    1904.06991), in percent. `density` (Naeem et al. 2020, arXiv 2002.09797) stands in the details.
    """

    features: str = field(default="", metadata={"help": FEATURES_HELP})
    reference: str = field(default="", metadata={"help": REFERENCE_HELP})
    k: int = field(default=3, metadata={"help": "neighbours that make a sphere (count)"})

    higher_is_better: ClassVar[bool] = True
    default: ClassVar[bool] = False
    about: ClassVar[str] = "Precision: share of the images without the concept that look like the reference's."

    def score(self, case: Case) -> Score | NotApplicable:
        """Beside the unerased model's, against the same reference."""
        both = sides(case, suited(case, self.features, "canvas-judges", "inception-clean"), self.reference)
        if isinstance(both, NotApplicable):
            return both
        enough(len(both.reference), self.k)
        erased, original = (inside(x, both.reference, self.k).tolist() for x in (both.erased, both.original))
        spread = {
            name: round(density(x, both.reference, self.k), 4)
            for name, x in (("density", both.erased), ("density unerased", both.original))
        }
        return counted_by(
            share(erased, original, both.clusters, k=self.k, **both.details, **spread), f"{self.k} nearest neighbours"
        )


def enough(n: int, k: int) -> None:
    """Refuse a manifold of too few images."""
    if not 1 <= k < n:
        raise InputError(f"k: expected 1 to {n - 1} neighbours among {n} images, got {k}")
