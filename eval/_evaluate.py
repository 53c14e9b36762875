"""The verb: (eraser, pipeline) -> galleries -> scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..erase import Eraser
from ..pipelines import Backbone
from ..prompts import Concept, InputError, Prompt, World
from ._collect import clear, collect
from ._evaluator import Case, Evaluator, choose
from ._gallery import MANIFEST, PLAN, Gallery, Sampling, check_place, check_remembered, draw, record, sampling, size
from ._judge import UNMEASURED, Judges, Verdict
from ._judge import judges as own_judges
from ._score import NotApplicable, Score
from ._spool import Gathered, Spool, Unkept


@dataclass(frozen=True)
class Report:
    """Scores of one eraser.

    Attributes:
        scores: mean over the erased concepts, by evaluator.
        by_concept: the same for each concept.
        settings: model, eraser, sampling, judge accuracy of the unerased model, images drawn.
        prompts: what was drawn, in order.
        seen, seen_control: what the judges saw in each image with the eraser, and without; the second None where
            no control was given.
    """

    scores: dict[str, Score | NotApplicable]
    by_concept: dict[str, dict[str, Score | NotApplicable]]
    settings: dict[str, Any]
    prompts: tuple[Prompt, ...]
    seen: Verdict
    seen_control: Verdict | None

    def to_json(self) -> dict[str, Any]:
        """The object that `erasers evaluate --json` prints."""
        return {
            "scores": {k: v.to_json() for k, v in self.scores.items()},
            "by_concept": {c: {k: v.to_json() for k, v in s.items()} for c, s in self.by_concept.items()},
            "settings": self.settings,
        }

    def summary(self) -> dict[str, Any]:
        """What an eraser's own record keeps of it (`Eraser.record_scores`): the scores that could be measured, and
        under "settings" model, sampling and number of images.
        """
        wanted = ("value", "low", "high", "n", "control", "unit")
        kept = {n: {k: s.to_json()[k] for k in wanted} for n, s in self.scores.items() if isinstance(s, Score)}
        how = {"model": self.settings["model"], **self.settings["sampling"], "images": self.settings["images"]}
        return {**kept, "settings": how}


class Control:
    """The unerased side, drawn and judged once per prompt and shared by every eraser of a session.

    Args:
        backbone: the pipeline.
        how: the sampling; by default the protocol's, else what suits the pipeline.
        judges: of the world the pipeline was trained on; by default those of its own world.
        every_seed: draw the whole grid with every seed, as the published protocol does, not with one seed each.

    Raises:
        InputError: the pipeline's world has no judges, or one generator a seed, which needs the whole answer set.
    """

    def __init__(
        self,
        backbone: Backbone,
        how: Sampling | None = None,
        *,
        judges: Judges | None = None,
        every_seed: bool = False,
    ) -> None:
        self.backbone = backbone
        self.judges: Judges = judges or own_judges(backbone)
        self.world, self.every_seed = self.judges.world, every_seed
        self.how = how or protocol_sampling(self.world, backbone)
        if self.how.noise != "image":
            raise InputError("--noise sequence needs the whole answer set in its order: `erasers draw`, then `score`")
        self._done: dict[Prompt, tuple[tuple[Sequence[Image.Image], int], str, str]] = {}

    def plan(self, concept: Concept) -> list[Prompt]:
        """The prompts that score one erased concept."""
        rows = self.world.plan(concept)
        if not self.every_seed:
            return rows
        return [*self.world.answers(), *(p for p in rows if p.role != "grid")]

    def side(self, prompts: Sequence[Prompt], *, pictures: bool = True) -> tuple[Gallery, Verdict]:
        """Gallery and verdict of these prompts; what was drawn before is not drawn again.

        Args:
            prompts: what to draw.
            pictures: whether the gallery's images are looked at; without them the verdict alone is kept.
        """
        if new := self._missing(prompts, pictures):
            self._add(*self._drawn(new, pictures))
        return self._gathered(prompts, record(self.backbone, [], self.how))

    def _missing(self, prompts: Sequence[Prompt], pictures: bool) -> list[Prompt]:
        """Those that were not drawn yet, or whose pictures were let go and are now wanted."""

        def lacking(p: Prompt) -> bool:
            return p not in self._done or (pictures and isinstance(self._done[p][0][0], Unkept))

        return [p for p in dict.fromkeys(prompts) if lacking(p)]

    def _drawn(self, prompts: Sequence[Prompt], pictures: bool | Path) -> tuple[Gallery, Verdict]:
        return draw_and_judge(self.backbone, prompts, how=self.how, judges=self.judges, pictures=pictures)

    def _add(self, gallery: Gallery, seen: Verdict) -> None:
        rows = zip(gallery.prompts, seen.objects, seen.styles, strict=True)
        self._done |= {p: ((gallery.images, k), o, s) for k, (p, o, s) in enumerate(rows)}

    def _gathered(self, prompts: Sequence[Prompt], manifest: dict[str, Any]) -> tuple[Gallery, Verdict]:
        places, objects, styles = zip(*(self._done[p] for p in prompts), strict=True)
        return Gallery(tuple(prompts), Gathered(places), manifest), Verdict(objects, styles)


def draw_and_judge(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    erasers: Sequence[Eraser] = (),
    *,
    how: Sampling,
    judges: Judges,
    pictures: bool | Path,
) -> tuple[Gallery, Verdict]:
    """Draw and judge batch by batch: no more than a batch of images is in memory.

    Args:
        backbone: the pipeline.
        prompts: one image each.
        erasers: attached together.
        how: the sampling.
        judges: what looks at them.
        pictures: whether images are looked at again; then they wait in a file, else they are let go. Or a folder to
            draw them into: a gallery begun there is finished, a finished one is judged as it is (see `collect`).
    """
    if isinstance(pictures, Path):
        gallery = collect(pictures, backbone, prompts=prompts, erasers=erasers, how=how)
        return gallery, judges.look(gallery.images)
    watch, spool = judges.watch(), Spool() if pictures else None

    def take(images: Sequence[Image.Image]) -> None:
        watch.add(images)
        if spool is not None:
            spool.add(images)

    gallery = draw(backbone, prompts, erasers, how=how, label="erased" if erasers else "control", take=take)
    return gallery if spool is None else replace(gallery, images=spool), watch.verdict()


def evaluate(
    eraser: Eraser | Sequence[Eraser],
    backbone: Backbone,
    *,
    only: Sequence[str] | Mapping[str, Evaluator] | None = None,
    control: Control | None = None,
    keep: Path | None = None,
    force: bool = False,
) -> Report:
    """Score forgetting and retaining, paired with the unerased model.

    For each erased concept: its cells with five seeds, all other cells with one, its synonyms and held-out sentences
    (`prompts.canvas_plan`). Several erasers are attached together and scored like one. Images are judged as they are
    drawn: they wait in a file where an evaluator looks at them or `keep` is given, and are let go otherwise.

    Args:
        eraser: one, or several to be attached together and scored like one.
        backbone: the pipeline they were made for.
        only: names of evaluators, or evaluators with settings of their own by name; by default all that run unasked.
        control: shares the unerased images between calls, and fixes the sampling.
        keep: folder in which to keep both galleries, as `original` and `erased`. The erased side is drawn into it, so
            that the same call goes on where it was killed; the unerased one is drawn anew unless `control` has it.
        force: draw galleries anew that are there already.

    Raises:
        InputError: the pipeline's world has no judges, an unknown evaluator, `keep` holds other galleries, or prompts
            that a pipeline without text encoders does not remember.
    """
    stack = [eraser] if isinstance(eraser, Eraser) else list(eraser)
    tools = only if isinstance(only, Mapping) else choose(only)
    control = control or Control(backbone)
    world = control.world
    concepts = [_concept(c, world) for e in stack for c in e.recipe.concepts]
    if not concepts:
        raise InputError("expected at least one eraser to score, got none")
    prompts = tuple(dict.fromkeys(p for c in concepts for p in control.plan(c)))
    check_remembered(backbone, prompts, [world.plan_name(c.name) for c in concepts])
    if keep is not None:
        _ready(keep, prompts, force)
    looked = keep is not None or any(getattr(t, "pictures", True) for t in tools.values())
    place = looked if keep is None else keep / "erased"
    gallery, seen = draw_and_judge(backbone, prompts, stack, how=control.how, judges=control.judges, pictures=place)
    base, seen_base = control.side(prompts, pictures=looked)
    if keep is not None:
        _keep(base, keep / "original")
    erased = frozenset(c.name for c in concepts)
    found = {
        c.name: {n: scored(t, Case(c, erased, gallery, base, seen, seen_base, world)) for n, t in tools.items()}
        for c in concepts
    }
    settings = {
        "model": backbone.name,
        "erasers": [{"method": e.recipe.method, "concepts": e.recipe.names, **e.recipe.settings} for e in stack],
        "sampling": asdict(control.how),
        **({"sampling with the eraser": gallery.manifest["sampling"]} if any(e.drawing for e in stack) else {}),
        "images": len(prompts),
        "seconds": gallery.manifest["seconds"],
        "storage": sum(size(e.payload) for e in stack),
        **judged(control.judges, prompts, seen_base),
    }
    by_concept = {c: {n: score for n, (score, _) in scores.items()} for c, scores in found.items()}
    means = {n: mean([s[n][0] for s in found.values()], [s[n][1] for s in found.values()]) for n in tools}
    return Report(means, by_concept, settings, prompts, seen, seen_base)


def _ready(keep: Path, prompts: Sequence[Prompt], force: bool) -> None:
    """Make sure, before anything is drawn, that both galleries can be, or gone on with; with `force`, take away those
    that are there.

    Raises:
        InputError: something else is there.
    """
    sides = [keep / "original", keep / "erased"]
    ours = [s for s in sides if (s / MANIFEST).exists() or (s / PLAN).exists()]
    for side in sides:
        if side not in ours:
            check_place(side, force)
    if not force and sides[0] in ours:
        there = Gallery.open(sides[0])
        if there.prompts != tuple(prompts):
            raise InputError(f"{sides[0]} holds another gallery: choose another place, or draw it anew with --force")
        for _ in there.images:  # one that is lost or damaged is told before hours of drawing
            pass
    for side in ours if force else ():
        clear(side)


def _keep(gallery: Gallery, place: Path) -> None:
    """Save the unerased side where there is none.

    Raises:
        InputError: that of another model, or of other sampling, is there.
    """
    if not (place / MANIFEST).exists():
        gallery.save(place)
        return
    there, mine = Gallery.open(place).manifest, gallery.manifest
    for key in ("model", "fingerprint", "sampling"):
        if key in there and key in mine and _drawn_as(there[key]) != _drawn_as(mine[key]):
            raise InputError(
                f"{place} holds another gallery (its {key} differs): choose another place, or draw it anew with --force"
            )


def _drawn_as(value: object) -> object:
    """What of a manifest's entry images depend on: not how many are drawn at once."""
    return {k: v for k, v in value.items() if k != "batch"} if isinstance(value, Mapping) else value


def judged(judges: Judges, prompts: Sequence[Prompt], base: Verdict | None) -> dict[str, Any]:
    """What goes beside every score: the world, its judges, and how often they are right on real and on unerased
    images.
    """
    record = judges.record()
    grid = [k for k, p in enumerate(prompts) if p.role == "grid"]
    accuracy: dict[str, float] | str = UNMEASURED
    if base is not None and grid:
        accuracy = {
            "object": round(100 * sum(base.objects[k] == prompts[k].object for k in grid) / len(grid), 2),
            "style": round(100 * sum(base.styles[k] == prompts[k].style for k in grid) / len(grid), 2),
        }
    return {
        "world": judges.world.name,
        "judges": {domain: row["weights"] for domain, row in record.items()},
        "judge accuracy on real images": {d: row["accuracy on real images"] for d, row in record.items()},
        "judge accuracy on the unerased model": accuracy,
    }


def protocol_sampling(world: World, backbone: Backbone) -> Sampling:
    """How a protocol draws on a pipeline; what it leaves open is the pipeline's.

    Raises:
        InputError: the protocol wants images of another size than the pipeline draws.
    """
    if world.side and backbone.image_size != (world.side, world.side):
        h, w = backbone.image_size
        raise InputError(
            f"{world.name} is drawn at {world.side} x {world.side}, {backbone.name} draws {h} x {w}: name the sampling "
            "yourself to leave the protocol"
        )
    given = {"steps": world.steps, "guidance": world.guidance, "sampler": world.sampler}
    return replace(sampling(backbone), **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Watched(Case):
    """A case that notes on which images, by their places in the gallery, the judges were asked for a score."""

    rows: set[int] = field(default_factory=set, compare=False)

    def accuracy(self, domain: str, rows: list[int], cluster: str, why_not: str) -> Score | NotApplicable:
        self.rows.update(rows)
        return super().accuracy(domain, rows, cluster, why_not)

    def forgotten(self, role: str, why_not: str) -> Score | NotApplicable:
        self.rows.update(self.targets(role))
        return super().forgotten(role, why_not)


def scored(tool: Evaluator, case: Case) -> tuple[Score | NotApplicable, frozenset[int] | None]:
    """A score, and the images that it rests on, by their places in the gallery; None where the case cannot tell."""
    watched = _Watched(**vars(case))
    score = tool.score(watched)
    told = isinstance(score, Score) and score.n == len(watched.rows)
    return score, frozenset(watched.rows) if told else None


def mean(
    scores: Sequence[Score | NotApplicable], rows: Sequence[AbstractSet[int] | None] | None = None
) -> Score | NotApplicable:
    """Average over concepts.

    Scores on different images are taken as independent. Where any two share an image, or that is not known, all are
    taken to fail together: the bounds are the averages of theirs, and n counts each image once (not known: the largest
    n).

    Args:
        scores: one a concept.
        rows: the images that each rests on (see `scored`), None where that is not known. Left out where each has
            images of its own, as scores of different erasers have.
    """
    at = [k for k, s in enumerate(scores) if isinstance(s, Score)]
    real = [s for s in scores if isinstance(s, Score)]
    if not real:
        return scores[0]
    if len(real) == 1:
        return real[0]
    k, unit = len(real), real[0].unit
    n, apart = _images(real, None if rows is None else [rows[i] for i in at])
    least, most = (0.0, 100.0) if unit == "%" else (-math.inf, math.inf)
    same = {d: v for d, v in real[0].details.items() if all(s.details.get(d) == v for s in real)}
    warned = dict.fromkeys(s.details["warning"] for s in real if "warning" in s.details)

    def average(name: str) -> float:
        return sum(getattr(s, name) for s in real) / k

    def reach(upper: str, lower: str) -> float:
        parts = [getattr(s, upper) - getattr(s, lower) for s in real]
        return (math.hypot(*parts) if apart else sum(parts)) / k

    value, change, control = average("value"), average("change"), average("control")
    unsure = math.isnan(control) or any(math.isnan(s.control_low) for s in real)
    return Score(
        value,
        n,
        max(least, value - reach("value", "low")),
        min(most, value + reach("high", "value")),
        control,
        change,
        change - reach("change", "change_low"),
        change + reach("change_high", "change"),
        math.nan if unsure else max(least, control - reach("control", "control_low")),
        math.nan if unsure else min(most, control + reach("control_high", "control")),
        unit=unit,
        details={**same, **({"warning": "; ".join(warned)} if warned else {}), "concepts": k, **_conventions(real)},
    )


def _images(scores: Sequence[Score], rows: Sequence[AbstractSet[int] | None] | None) -> tuple[int, bool]:
    """How many different images scores rest on, as far as is known, and whether no two of them share any."""
    total = sum(s.n for s in scores)
    if rows is None:
        return total, True
    known = [r for r in rows if r is not None]
    if len(known) < len(rows):
        return max(s.n for s in scores), False
    n = len(frozenset().union(*known))
    return n, n == total


def _conventions(scores: Sequence[Score]) -> dict[str, Any]:
    """By the other conventions too, where all concepts have the same ones."""
    told = [s.details.get("other conventions", {}) for s in scores]
    if len({(s.details.get("convention"), *sorted(t)) for s, t in zip(scores, told, strict=True)}) != 1:
        return {}
    if "convention" not in scores[0].details:
        return {}
    means = {name: round(sum(t[name] for t in told) / len(told), 4) for name in told[0]}
    return {"convention": scores[0].details["convention"], **({"other conventions": means} if means else {})}


def _concept(record: dict[str, Any], world: World) -> Concept:
    try:
        known = world.find(record["name"])
    except InputError as error:
        label = "Canvas" if world.name == "canvas" else world.name
        raise InputError(f"{record['name']!r} is no {label} concept, so no judge knows it") from error
    if known.name != record["name"] or known.kind != record["kind"]:
        return known  # erased under another spelling, or by a user who did not say what it is
    return Concept.from_json(record)
