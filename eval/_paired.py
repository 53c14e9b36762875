"""Two erasers image by image: the same prompts, the same seeds, one against the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..prompts import CANVAS, WORLDS, InputError, Prompt, World
from ._evaluate import mean, scored
from ._evaluator import Case, find
from ._gallery import Gallery
from ._judge import Verdict
from ._score import NotApplicable, clustered

if TYPE_CHECKING:
    from ._cells import Row
    from ._evaluate import Report

DOMAINS = ("object", "style")
JUDGED = ("ua", "ira", "cra")
"""Compared by default. Any evaluator that asks the judges only can be."""


@dataclass(frozen=True)
class Difference:
    """One figure of a minus the same of b.

    Attributes:
        value: mean over the concepts, in percent points.
        low, high: 95 % interval: a bootstrap that draws whole concepts; of one concept alone, its clusters.
        n: images of each side; one that several concepts of a stack are scored on counts once.
        concepts: what both had.
    """

    value: float
    low: float
    high: float
    n: int
    concepts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, rounded to 4 decimals."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def plan_of(concept: str, world: World = CANVAS) -> tuple[Prompt, ...]:
    """What is drawn for a concept or a stack "a+b", in the order of a row's hits."""
    return tuple(dict.fromkeys(p for name in concept.split("+") for p in world.plan(world.find(name))))


def world_of(row: Row) -> World | None:
    """Whose concepts a row is about; None where they are of no world known here."""
    world = WORLDS.get(row.get("world", CANVAS.name))
    return world if world and all(n in world.concepts for n in row["concept"].split("+")) else None


def hits(report: Report, control: bool = False) -> dict[str, str]:
    """For the object and the style judge one digit an image, in the order of the prompts: whether the judge saw what
    the prompt asked for; with the eraser, or without.

    Raises:
        ValueError: there was no unerased side.
    """
    seen = report.seen_control if control else report.seen
    if seen is None:
        raise ValueError("no unerased side was judged")
    sides = {"object": seen.objects, "style": seen.styles}
    return {
        d: "".join(str(int(s == getattr(p, d))) for s, p in zip(sides[d], report.prompts, strict=True)) for d in DOMAINS
    }


def verdict(bits: dict[str, str], prompts: Sequence[Prompt]) -> Verdict:
    """Judges that saw what the digits say: what was asked for, or nothing."""

    def names(domain: str) -> tuple[str, ...]:
        return tuple(getattr(p, domain) if b == "1" else "" for b, p in zip(bits[domain], prompts, strict=True))

    return Verdict(names("object"), names("style"))


def comparable(rows: Iterable[Row]) -> dict[tuple[str, int], Row]:
    """The rows that hold a verdict of each image, by concept and seed."""
    out = {}
    for row in rows:
        if row["hits"] and (world := world_of(row)):
            size = len(plan_of(row["concept"], world))
            if all(len(row["hits"][d]) == size for d in DOMAINS):
                out[row["concept"], row["seed"]] = row
    return out


def paired(a: Iterable[Row], b: Iterable[Row], *, only: Sequence[str] = JUDGED) -> dict[str, Difference]:
    """Rows of one method with its settings against rows of another, on the concepts and seeds that both have.

    Each evaluator scores a with b in the place of the unerased control, so its own definition and its own clusters
    make the difference.

    Args:
        a: cells of a benchmark (`Cells.rows`, or lines of a results file).
        b: the others.
        only: names of evaluators that ask the judges only.

    Raises:
        InputError: no concept and seed in common among the rows that hold a verdict of each image.
    """
    left, right = comparable(a), comparable(b)
    common = [k for k in left if k in right and world_of(left[k]) == world_of(right[k])]
    if not common:
        raise InputError(
            "the two have no concept and seed in common with a verdict of each image: score both on the same concepts"
        )
    out = {}
    for name in only:
        tool = find(name)()
        found: dict[str, list[Any]] = {}
        for concept, seed in common:
            world = world_of(left[concept, seed]) or CANVAS
            prompts = plan_of(concept, world)
            gallery = Gallery(prompts, (), {})
            mine, other = (verdict(side[concept, seed]["hits"], prompts) for side in (left, right))
            parts = concept.split("+")
            cases = [Case(world.find(p), frozenset(parts), gallery, gallery, mine, other, world) for p in parts]
            scores = [scored(tool, case) for case in cases]
            score = mean([s for s, _ in scores], [rows for _, rows in scores])
            if not isinstance(score, NotApplicable):
                found.setdefault(concept, []).append(score)
        if found:
            out[name] = _mean(found)
    return out


def _mean(found: dict[str, list[Any]]) -> Difference:
    """Mean over concepts, each weighing the same whatever its number of seeds."""
    means = {c: sum(s.change for s in scores) / len(scores) for c, scores in found.items()}
    n = sum(s.n for scores in found.values() for s in scores)
    value = sum(means.values()) / len(means)
    alone = next(iter(found.values()))
    if len(found) > 1:
        low, high = clustered(list(means.values()), list(means))
    else:
        low, high = (sum(getattr(s, e) for s in alone) / len(alone) for e in ("change_low", "change_high"))
    return Difference(value, low, high, n, tuple(found))
