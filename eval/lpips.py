"""LPIPS: how much the pictures that should have stayed have changed, image by image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ._against import averaged, clusters, retained, suited
from ._evaluator import Case
from ._features import Picked
from ._perceptual import perceptual
from ._score import NotApplicable, Score


@dataclass(frozen=True)
class LPIPS:
    """Learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924) between the erased and the original model's
    image of the same prompt and seed. The original's distance from itself is 0, and so is the control. In the details:
    the distance between two different images of the original model, for scale, and that of the prompts which do ask for
    the concept, where it should be large.
    """

    network: str = field(
        default="", metadata={"help": "alex, vgg, squeeze (each [:FILE]) or canvas; empty: canvas on Canvas, else alex"}
    )

    higher_is_better: ClassVar[bool] = False
    default: ClassVar[bool] = False
    about: ClassVar[str] = "LPIPS from the original model's image of the same prompt and seed, without the concept."

    def score(self, case: Case) -> Score | NotApplicable:
        """Mean over the images whose prompt does not ask for the concept."""
        rows, targets = retained(case), case.targets()
        if isinstance(rows, NotApplicable):
            return rows
        look = perceptual(suited(case, self.network, "canvas", "alex"))
        images, originals = case.gallery.images, case.control.images

        def mean(pairs: list[tuple[int, int]], *, within: bool = False) -> float:
            left = originals if within else images
            values = look(Picked(left, [i for i, _ in pairs]), Picked(originals, [j for _, j in pairs]))
            return round(sum(values) / len(values), 4)

        values = look(Picked(images, rows), Picked(originals, rows))
        details: dict[str, Any] = {"network": look.name, "convention": look.convention}
        if len(rows) > 1:
            turned = [*rows[1:], rows[0]]
            details["two different images"] = mean(list(zip(rows, turned, strict=True)), within=True)
        if targets:
            details["prompts of the concept"] = mean([(k, k) for k in targets])
        return averaged([values, [0.0] * len(rows)], clusters(case, rows), "", **details)
