"""Prompt sets: one CSV each, or a name. Also the grids and plans that evaluations draw from."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from functools import partial
from itertools import product
from pathlib import Path

from . import canvas
from ._errors import InputError, unknown
from .concept import Concept
from .prompt import SEEDS, Prompt
from .templates import EVERYDAY, REQUESTS, fill
from .world import CANVAS, UNLEARN_CANVAS, world


def canvas_grid(seeds: Sequence[int] = SEEDS) -> list[Prompt]:
    """Every object in every style in UnlearnCanvas' layout and sentence, seeds innermost: 12 x 10 x len(seeds)."""
    cells = product(canvas.STYLES, canvas.OBJECTS, seeds)
    return [CANVAS.cell(o.name, s.name, seed) for s, o, seed in cells]


def canvas_plan(concept: Concept, seeds: Sequence[int] = SEEDS) -> list[Prompt]:
    """The images that score one erased Canvas concept: its own cells with every seed, all other cells with one seed
    each (seeds taken in turn, so that no seed weighs more), its cells once under each synonym and once in each
    sentence never used in training.

    Raises:
        InputError: the concept is not of the Canvas world.
    """
    return CANVAS.plan(concept, seeds)


def paraphrase(concept: Concept, seed: int = 0) -> list[Prompt]:
    """Many syntactic forms of one request for the concept: questions, orders, descriptions. One prompt a form."""
    field = {"object": concept.name} if concept.kind == "object" else {}
    field |= {"style": concept.name} if concept.kind == "style" else {}
    return [
        Prompt(fill(t, x=concept.name), seed + k, concept.name, role="paraphrase", **field)
        for k, t in enumerate(REQUESTS[concept.kind])
    ]


SETS: dict[str, tuple[str, Callable[[], list[Prompt]]]] = {
    "canvas": ("every Canvas object in every style, five seeds (600 prompts)", canvas_grid),
    "unlearncanvas": (
        "UnlearnCanvas' answer set: 51 themes x 20 objects x 5 seeds (5100 prompts)",
        UNLEARN_CANVAS.answers,
    ),
    "canvas-1": ("every Canvas object in every style, one seed (120 prompts)", lambda: canvas_grid(SEEDS[:1])),
    "everyday": (
        f"what people ask any model for ({len(EVERYDAY)} prompts)",
        lambda: [Prompt(text) for text in EVERYDAY],
    ),
    "canvas-demo": (
        "twelve Canvas objects, a style each (12 prompts)",
        lambda: [
            CANVAS.cell(o.name, canvas.STYLES[k % len(canvas.STYLES)].name, SEEDS[0])
            for k, o in enumerate(canvas.OBJECTS)
        ],
    ),
    **{
        f"paraphrase:{c.name}": (f"{len(REQUESTS[c.kind])} ways to ask for {c.name}", partial(paraphrase, c))
        for c in canvas.CONCEPTS.values()
    },
}
"""Named prompt sets: description and maker."""


def load(source: str | os.PathLike[str]) -> list[Prompt]:
    """A named set (`SETS`), the plan that scores one concept ("plan:canvas:moon"), or a CSV file with a `text` column
    and, as wanted, the other columns of `Prompt`.

    Raises:
        InputError: no such set or file, no `text` column, an unknown column, a seed that is no whole number, no rows.
    """
    name = os.fspath(source)
    if name in SETS:
        return SETS[name][1]()
    if name.startswith("plan:"):
        _, place, concept = [*name.split(":", 2), ""][:3]
        return world(place).plan(world(place).find(concept))
    path = Path(name)
    if not path.exists():
        raise unknown("prompt set or CSV file", name, SETS)
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            reader = csv.DictReader(f)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"cannot read {name} as CSV ({error}): expected UTF-8 text with a header line") from error
    allowed = [f.name for f in fields(Prompt)]
    if "text" not in columns:
        raise InputError(f"{name} has no 'text' column, got {columns}: name one of {allowed} in the header line")
    for column in columns:
        if column not in allowed:
            raise unknown(f"column in {name}", str(column), allowed)
    if not rows:
        raise InputError(f"{name} has a header and no prompts: add at least one row")
    return [_row(name, line, row) for line, row in enumerate(rows, start=2)]


def _row(name: str, line: int, row: dict[str, str]) -> Prompt:
    if None in row or None in row.values():
        raise InputError(f"{name} line {line} has {'more' if None in row else 'fewer'} fields than the header: {row}")
    try:
        seed = int(row.get("seed") or 0)
    except ValueError:
        raise InputError(f"{name} line {line}: expected a whole number as seed, got {row['seed']!r}") from None
    if not 0 <= seed < 2**63:
        raise InputError(f"{name} line {line}: expected a seed from 0 to 2^63 - 1, got {seed}")
    return Prompt(**{k: v for k, v in row.items() if k != "seed"}, seed=seed)


def save(prompts: Iterable[Prompt], path: str | os.PathLike[str]) -> None:
    """Write prompts as CSV, atomically; `load` gives them back."""
    target = Path(path)
    partial = target.with_name(target.name + ".part")
    with partial.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, [c.name for c in fields(Prompt)])
        writer.writeheader()
        writer.writerows(asdict(p) for p in prompts)
    partial.replace(target)
