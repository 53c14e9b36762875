"""Improved recall: how much of the reference's variety the images that should have stayed still cover."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ._against import FEATURES_HELP, REFERENCE_HELP, counted_by, sides, suited
from ._distances import coverage, inside
from ._evaluator import Case
from ._score import NotApplicable, Score, share
from .precision import enough


@dataclass(frozen=True)
class Recall:
    """Share of reference images within the k-nearest-neighbour manifold of the model's images (Kynkaanniemi et al.
    2019, arXiv 1904.06991), in percent; n counts reference images. `coverage` (Naeem et al. 2020, arXiv 2002.09797)
    stands in the details.
    """

    features: str = field(default="", metadata={"help": FEATURES_HELP})
    reference: str = field(default="", metadata={"help": REFERENCE_HELP})
    k: int = field(default=3, metadata={"help": "neighbours that make a sphere (count)"})

    higher_is_better: ClassVar[bool] = True
    default: ClassVar[bool] = False
    about: ClassVar[str] = "Recall: share of the reference's images that the images without the concept cover."

    def score(self, case: Case) -> Score | NotApplicable:
        """Beside the unerased model's, against the same reference."""
        both = sides(case, suited(case, self.features, "canvas-judges", "inception-clean"), self.reference)
        if isinstance(both, NotApplicable):
            return both
        enough(min(len(both.erased), len(both.reference)), self.k)
        erased, original = (inside(both.reference, x, self.k).tolist() for x in (both.erased, both.original))
        spread = {
            name: round(100 * coverage(x, both.reference, self.k), 4)
            for name, x in (("coverage", both.erased), ("coverage unerased", both.original))
        }
        details = {**both.details, "images of the model": len(both.erased), "k": self.k, **spread}
        return counted_by(share(erased, original, both.reference_clusters, **details), f"{self.k} nearest neighbours")
