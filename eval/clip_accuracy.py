"""CLIP zero-shot accuracy: whether CLIP still names what was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ._against import averaged, clusters, retained, suited
from ._evaluator import Case
from ._score import NotApplicable, Score, share
from ._zero_shot import on_real, right, zero_shot
from .clip_score import CLIP_B, CLIP_HELP

CLASSES_HELP = "names to choose from, with commas; empty: all that the prompts ask for"
TEMPLATE_HELP = "sentence around a name, {x} its place, several with | between; empty: what suits the world"
REAL_HELP = "real images, style/object/1.jpg, to measure CLIP's own accuracy on; empty: Canvas' drawings on Canvas"


@dataclass(frozen=True)
class ClipAccuracy:
    """Share of images whose nearest class sentence is the one asked for, in percent (Radford et al. 2021, arXiv
    2103.00020). `soft` takes the mean probability instead, as MACE does (arXiv 2403.06135).
    """

    model: str = field(default="", metadata={"help": CLIP_HELP})
    classes: str = field(default="", metadata={"help": CLASSES_HELP})
    template: str = field(default="", metadata={"help": TEMPLATE_HELP})
    real: str = field(default="", metadata={"help": REAL_HELP})
    soft: bool = field(default=False, metadata={"help": "mean probability instead of the share of hits"})

    higher_is_better: ClassVar[bool] = True
    default: ClassVar[bool] = False
    about: ClassVar[str] = "CLIP zero-shot accuracy for the concept's own domain, on prompts without the concept."

    def score(self, case: Case) -> Score | NotApplicable:
        """On prompts without the concept; the prompts that ask for it stand in the details."""
        kept = retained(case)
        if isinstance(kept, NotApplicable):
            return kept
        judge = zero_shot(case, suited(case, self.model, "canvas-clip", CLIP_B), self.classes, self.template)
        if isinstance(judge, NotApplicable):
            return judge
        chances, hits, rows = right(case, judge, kept)
        if not rows:
            return NotApplicable("no prompt without the concept asks for one of the classes")
        details: dict[str, Any] = {"model": judge.model, "classes": len(judge.classes), "template": judge.template}
        details["measure"] = "mean probability at 100 x cosine" if self.soft else "top 1"
        details["convention"] = (
            f"{judge.model}; {details['measure']} of {len(judge.classes)} classes as {judge.template!r}"
        )
        details |= on_real(case, judge, rows, self.real)
        target_chances, target_hits, targets = right(case, judge, case.targets())
        if targets:
            figures = (target_chances if self.soft else target_hits).double().mean(1).tolist()
            erased, original = (round(100 * v, 4) for v in figures)
            details["prompts of the concept"] = {"value": erased, "control": original, "n": len(targets)}
        names = clusters(case, rows)
        if self.soft:
            return averaged((100 * chances).tolist(), names, "%", **details)
        erased, original = hits.tolist()
        return share(erased, original, names, **details)
