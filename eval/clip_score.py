"""CLIP score: whether images still show what their prompts say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..prompts import InputError
from ._against import averaged, clusters, retained, suited
from ._distances import cosines
from ._evaluator import Case
from ._features import Picked, clip, extractor
from ._score import NotApplicable, Score

CLIP_HELP = "canvas-clip, clip:ID or FOLDER, open_clip:ARCH:WEIGHTS or FOLDER; empty: what suits the world"
CLIP_B = "clip:openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class ClipScore:
    """`scale` times the cosine of an image and its prompt (Hessel et al. 2021, arXiv 2104.08718), not cut at 0.

    With scale 100 it is torchmetrics' and MACE's; with 1 the plain cosine; with 2.5 Hessel's own. Models differ widely:
    compare only figures of one model.
    """

    model: str = field(default="", metadata={"help": CLIP_HELP})
    scale: float = field(default=100.0, metadata={"help": "of the cosine: 100, 1 or 2.5 (factor)"})

    higher_is_better: ClassVar[bool] = True
    default: ClassVar[bool] = False
    about: ClassVar[str] = "CLIP score: cosine of image and prompt, on prompts without the concept."

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise InputError(f"scale: expected more than 0, got {self.scale}")

    def score(self, case: Case) -> Score | NotApplicable:
        """Mean over prompts without the concept; the prompts that ask for it stand in the details."""
        rows, targets = retained(case), case.targets()
        if isinstance(rows, NotApplicable):
            return rows
        name = suited(case, self.model, "canvas-clip", CLIP_B)
        look, model = extractor(name), clip(name)

        def values(rows: list[int]) -> tuple[list[float], list[float]]:
            texts = model.texts([case.gallery.prompts[k].text for k in rows])
            sides = (Picked(g.images, rows) for g in (case.gallery, case.control))
            erased, original = ((self.scale * cosines(look(images), texts)).tolist() for images in sides)
            return erased, original

        details: dict[str, Any] = {"model": name, "preprocessing": model.convention, "scale": self.scale}
        details["convention"] = f"{name}, {model.convention}; {self.scale:g} x cosine, not cut at 0"
        if targets:
            erased, original = (round(sum(v) / len(v), 4) for v in values(targets))
            details["prompts of the concept"] = {"value": erased, "control": original, "n": len(targets)}
        unit = "" if self.scale == 1 else f"x{self.scale:g}"
        return averaged(values(rows), clusters(case, rows), unit, **details)
