"""The verb: (eraser, pipeline) -> galleries -> scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..erase import Eraser
from ..pipelines import Backbone
from ..prompts import Concept, InputError, Prompt, canvas, canvas_plan
from ._evaluator import Case, evaluators, find
from ._gallery import Gallery, Sampling, check_place, draw, sampling
from ._judge import Judges, Verdict, judges
from ._score import NotApplicable, Score


@dataclass(frozen=True)
class Report:
    """Scores of one eraser.

    Attributes:
        scores: mean over the erased concepts, by evaluator.
        by_concept: the same for each concept.
        settings: model, eraser, sampling, judge accuracy of the unerased model, images drawn.
        prompts: what was drawn, in order.
        seen, seen_control: what the judges saw in each image with the eraser, and without.
    """

    scores: dict[str, Score | NotApplicable]
    by_concept: dict[str, dict[str, Score | NotApplicable]]
    settings: dict[str, Any]
    prompts: tuple[Prompt, ...]
    seen: Verdict
    seen_control: Verdict

    def to_json(self) -> dict[str, Any]:
        """The object that `erasers evaluate --json` prints."""
        return {
            "scores": {k: v.to_json() for k, v in self.scores.items()},
            "by_concept": {c: {k: v.to_json() for k, v in s.items()} for c, s in self.by_concept.items()},
            "settings": self.settings,
        }


class Control:
    """The unerased side, drawn and judged once per prompt and shared by every eraser of a session."""

    def __init__(self, backbone: Backbone, how: Sampling | None = None) -> None:
        self.backbone = backbone
        self.how = how or sampling(backbone)
        self.judges: Judges = judges(backbone)
        self._done: dict[Prompt, tuple[Any, str, str]] = {}

    def side(self, prompts: Sequence[Prompt]) -> tuple[Gallery, Verdict]:
        """Gallery and verdict of these prompts; what was drawn before is not drawn again."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._done]
        if new:
            gallery = draw(self.backbone, new, how=self.how, label="control")
            seen = self.judges.look(gallery.images)
            self._done |= {p: row for p, *row in zip(new, gallery.images, seen.objects, seen.styles, strict=True)}  # type: ignore[misc]
        rows = [self._done[p] for p in prompts]
        manifest = {"model": self.backbone.name, "erasers": [], "sampling": asdict(self.how)}
        images, objects, styles = zip(*rows, strict=True)
        return Gallery(tuple(prompts), images, manifest), Verdict(objects, styles)


def evaluate(
    eraser: Eraser | Sequence[Eraser],
    backbone: Backbone,
    *,
    only: Sequence[str] | None = None,
    control: Control | None = None,
    keep: Path | None = None,
    force: bool = False,
) -> Report:
    """Score forgetting and retaining, paired with the unerased model.

    For each erased concept: its cells with five seeds, all other cells with one, its synonyms and held-out sentences
    (`prompts.canvas_plan`). Several erasers are attached together and scored like one.

    Args:
        eraser: one, or several to be attached together and scored like one.
        backbone: the pipeline they were made for.
        only: names of evaluators; all by default.
        control: shares the unerased images between calls, and fixes the sampling.
        keep: folder in which to keep both galleries, as `original` and `erased`.
        force: replace galleries that are there already.

    Raises:
        InputError: the pipeline's world has no judges, or an unknown evaluator.
    """
    stack = [eraser] if isinstance(eraser, Eraser) else list(eraser)
    tools = {n: find(n)() for n in (only or evaluators())}
    if keep is not None:
        for side in ("original", "erased"):
            check_place(keep / side, force)
    control = control or Control(backbone)
    concepts = [_concept(c) for e in stack for c in e.recipe.concepts]
    if not concepts:
        raise InputError("expected at least one eraser to score, got none")
    prompts = tuple(dict.fromkeys(p for c in concepts for p in canvas_plan(c)))
    base, seen_base = control.side(prompts)
    gallery = draw(backbone, prompts, stack, how=control.how, label="erased")
    seen = control.judges.look(gallery.images)
    if keep is not None:
        base.save(keep / "original", force=force)
        gallery.save(keep / "erased", force=force)
    erased = frozenset(c.name for c in concepts)
    by_concept = {
        c.name: {n: t.score(Case(c, erased, gallery, base, seen, seen_base)) for n, t in tools.items()}
        for c in concepts
    }
    grid = [k for k, p in enumerate(prompts) if p.role == "grid"]
    settings = {
        "model": backbone.name,
        "erasers": [{"method": e.recipe.method, "concepts": e.recipe.names, **e.recipe.settings} for e in stack],
        "sampling": asdict(control.how),
        **({"sampling with the eraser": gallery.manifest["sampling"]} if any(e.drawing for e in stack) else {}),
        "images": len(prompts),
        "seconds": gallery.manifest["seconds"],
        "judge accuracy on the unerased model": {
            "object": round(100 * sum(seen_base.objects[k] == prompts[k].object for k in grid) / len(grid), 2),
            "style": round(100 * sum(seen_base.styles[k] == prompts[k].style for k in grid) / len(grid), 2),
        },
    }
    means = {n: mean([s[n] for s in by_concept.values()]) for n in tools}
    return Report(means, by_concept, settings, prompts, seen, seen_base)


def mean(scores: Sequence[Score | NotApplicable]) -> Score | NotApplicable:
    """Average over concepts; the interval of the average takes the concepts as independent."""
    real = [s for s in scores if isinstance(s, Score)]
    if not real:
        return scores[0]
    if len(real) == 1:
        return real[0]
    k = len(real)

    def average(name: str) -> float:
        return sum(getattr(s, name) for s in real) / k

    def bound(name: str, middle: str) -> float:
        return sum((getattr(s, name) - getattr(s, middle)) ** 2 for s in real) ** 0.5 / k

    value, change = average("value"), average("change")
    return Score(
        value,
        sum(s.n for s in real),
        max(0.0, value - bound("low", "value")),
        min(100.0, value + bound("high", "value")),
        average("control"),
        change,
        change - bound("change_low", "change"),
        change + bound("change_high", "change"),
        details={"concepts": k},
    )


def _concept(record: dict[str, Any]) -> Concept:
    if record["name"] not in canvas.CONCEPTS:
        raise InputError(f"{record['name']!r} is no Canvas concept, so no judge knows it")
    return Concept.from_json(record)
