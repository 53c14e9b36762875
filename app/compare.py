"""The command `compare`, and how scores of several units are shown. Thin, as all commands are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..prompts import InputError
from .cli import JsonOption, SetOption, err, out

if TYPE_CHECKING:
    from ..eval import NotApplicable, Score


def compare(
    erased: Annotated[Path, typer.Argument(help="Gallery drawn with the eraser: OUT/erased of `erasers draw`.")],
    original: Annotated[Path, typer.Argument(help="Gallery of the same prompts and seeds without it: OUT/original.")],
    concept: Annotated[
        str, typer.Option(help="What was erased, as the prompts' `concept` column names it. Default: the manifest's.")
    ] = "",
    only: Annotated[
        str | None, typer.Option(help="Evaluators, with commas. Default: lpips, clip_score and drift.")
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score two galleries that are there already: any pipeline, any prompts, no judge needed."""
    from ..eval import IMAGE_METRICS, Gallery, choose
    from ..eval import compare as run

    names = [n.strip() for n in only.split(",") if n.strip()] if only else None
    tools = choose(names or IMAGE_METRICS, settings or ())
    sides = [Gallery.open(erased), Gallery.open(original)]
    for image in (i for side in sides for i in side.images):
        image.close()  # each is read once: a damaged one is named before anything is measured
    scores = run(sides[0], sides[1], concept, only=tools)
    check_measured(scores)
    if as_json:
        print(json.dumps({k: v.to_json() for k, v in scores.items()}, indent=1, ensure_ascii=False))
        return
    show(f"{erased} beside {original}", scores)


def check_measured(scores: Mapping[str, Score | NotApplicable]) -> None:
    """Refuse scores none of which could be measured. Raises `InputError` with the reason of each."""
    reasons = [f"{n}: {row['reason']}" for n, s in scores.items() if "reason" in (row := s.to_json())]
    if len(reasons) == len(scores):
        raise InputError(f"nothing was measured; {'; '.join(reasons)}")


def show(title: str, scores: Mapping[str, Score | NotApplicable]) -> None:
    """Print scores as a table, and below it by which convention each figure is counted and what it warns of."""
    table = Table(title=title)
    for column in ("score", "value", "95 % interval", "n", "unerased", "change (paired 95 %)"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for name, s in scores.items():
        row = s.to_json()
        if "reason" in row:
            table.add_row(name, "-", row["reason"], "", "", "")
            continue
        digits = 1 if row["unit"] == "%" else 3

        def figure(key: str, sign: str = "", row: dict[str, float] = row, digits: int = digits) -> str:
            return f"{row[key]:{sign}.{digits}f}"

        paired = ["-", "no control given"]
        if row["control"] is not None:
            change = f"{figure('change', '+')} ({figure('change_low', '+')} .. {figure('change_high', '+')})"
            paired = [figure("control"), change]
        label = f"{name}, {row['unit']}" if row["unit"] else name
        table.add_row(label, figure("value"), f"{figure('low')} .. {figure('high')}", str(row["n"]), *paired)
    out.print(table)
    say_how(scores)


def say_how(scores: Mapping[str, Score | NotApplicable]) -> None:
    """Print by which convention each figure is counted, and what it warns of."""
    told = {name: row["details"] for name, s in scores.items() if "details" in (row := s.to_json())}
    for name, details in told.items():
        if convention := details.get("convention"):
            line = f"{name}: {convention}{''.join(_beside(details))}"
            out.print(line, markup=False, highlight=False, soft_wrap=True)
    for name, details in told.items():
        if note := details.get("warning"):
            err.print(f"{name}: {note}", markup=False, highlight=False, soft_wrap=True)


def _beside(details: Mapping[str, Any]) -> Iterator[str]:
    """What else tells how a figure is to be read: of how many images, by whom else, by other conventions."""
    if count := details.get("reference images"):
        yield f" ({count} images)"
    if (right := details.get("top 1 on real images")) is not None:
        n = details.get("real images")
        yield f"; on real images {f'right on {right} % of {n}' if n else right}"
    for words, value in details.get("other conventions", {}).items():
        yield f"; {value:.1f} by: {words}"
