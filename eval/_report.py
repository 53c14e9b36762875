"""A benchmark's folder as one HTML file that loads nothing: tables, pictures, heat maps, frontier, settings."""

from __future__ import annotations

import base64
import io
import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from PIL import Image

from ..erase import check_target, write_text
from ..prompts import CANVAS, InputError
from ._benchmark import RECORD, rows_of
from ._cells import Cells, Row, import_rows, key_of, slug
from ._charts import Point, frontier, grid_of, heat_map
from ._gallery import UNREADABLE
from ._grid import grid, save_image
from ._paired import DOMAINS, JUDGED, comparable, plan_of, world_of
from ._table import (
    BALANCE,
    COLUMNS,
    CONTROLS,
    GAP,
    ORIGINAL,
    conventions_of,
    counts,
    gap_of,
    leaderboard,
    split,
    table,
    title,
    warnings_of,
)

TEMPLATE = Path(__file__).with_name("_report.html")
SIDE = 128
"""Side of a picture in the file, in pixels, at most."""
LIBRARIES = ("erasers", "torch", "diffusers", "transformers", "peft", "pandas", "pyarrow", "numpy", "pillow")


def report(source: Path | Sequence[Path], out: Path, *, figures: Path | None = None, force: bool = False) -> Path:
    """Write the report of a benchmark's folder, or of results files.

    Args:
        source: what `benchmark` filled; or files of rows (`docs/results/*.jsonl`), one or several.
        out: the `.html` file.
        figures: folder for the same charts and grids as files, for other documents.
        force: replace `out`.

    Raises:
        InputError: no cells, a picture that cannot be read, or a place that cannot be written.
    """
    files = [source] if isinstance(source, Path) else list(source)
    if len(files) == 1 and files[0].is_dir():
        return _written(files[0], files[0].resolve().name, out, figures, force)
    if folders := [f for f in files if f.suffix != ".jsonl"]:
        raise InputError(f"expected a benchmark's folder, or files of rows (.jsonl), got {folders[0]}")
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            import_rows(file, Cells(Path(folder)))
        return _written(Path(folder), ", ".join(f.stem for f in files), out, figures, force)


def _written(folder: Path, name: str, out: Path, figures: Path | None, force: bool) -> Path:
    if out.suffix.lower() != ".html":
        raise InputError(f"--out: expected a file name ending in .html, got {str(out)!r}")
    check_target(out, force)
    rows = rows_of(folder)
    frame = table(rows)
    boards = leaderboard(rows, frame)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        notes=warnings_of(rows, frame, boards),
        conventions=conventions_of(frame),
        boards=[_board(b) for b in boards],
        frontiers=[Markup(svg) for svg in _frontiers(rows, boards).values()],
        matrices=[Markup(svg) for svg in _matrices(rows).values()],
        galleries=_galleries(rows, folder),
        columns=list(COLUMNS),
        gap=GAP,
        lines=_lines(frame),
        entries=_entries(rows),
        record=_record(folder),
        environment={**_environment(), **_recorded_versions(rows)},
        count=len(rows),
        controls=CONTROLS,
    )
    if figures is not None:
        _figures(rows, boards, folder, figures)
    write_text(out, text)
    return out


# ---------------------------------------------------------------- tables


def _board(board: Mapping[str, Any]) -> dict[str, Any]:
    """A board as the template wants it: cells are (text, sort key, words on hovering)."""
    ranked, others = split(board)

    def cell(s: Mapping[str, Any] | None) -> tuple[str, float | str, str]:
        if s is None:
            return "-", "", "not applicable, or not measured"
        interval = "" if s["low"] is None else f" [{s['low']:.1f}, {s['high']:.1f}]"
        gap = "" if s["gap"] is None else f"; gap to retrained {s['gap']:+.1f} on {s['gap_concepts']} concepts"
        words = f"{s['concepts']} concepts, {s['images']} images; worst {s['worst']:.1f} ({s['worst_concept']}){gap}"
        return f"{s['mean']:.1f}{interval}", s["mean"], words

    entries = [
        {
            **e,
            "ranked": [cell(e["scores"].get(n)) for n in ranked],
            "others": [cell(e["scores"].get(n)) for n in others],
            "gap": (gap_of(e["scores"]), _away(e["scores"])),
        }
        for e in board["entries"]
    ]
    pairs = [
        {
            "a": " ".join(p["a"]),
            "b": " ".join(p["b"]),
            "cells": [_difference(p["difference"].get(n)) for n in BALANCE],
            "concepts": max(len(d["concepts"]) for d in p["difference"].values()),
        }
        for p in board["paired"]
    ]
    names = {"ranked": ranked, "others": others}
    return {
        "title": title(board),
        "judges": f"{counts(board)} {board['judges']}",
        **names,
        "concepts": board["concepts"],
        "entries": entries,
        "pairs": pairs,
    }


def _away(scores: Mapping[str, Mapping[str, Any]]) -> float | str:
    """How far from the retrained model, to sort by: mean distance of UA, IRA and CRA."""
    gaps = [scores[n]["gap"] for n in BALANCE if n in scores and scores[n]["gap"] is not None]
    return sum(abs(g) for g in gaps) / len(gaps) if len(gaps) == len(BALANCE) else ""


def _difference(d: Mapping[str, Any] | None) -> tuple[str, float | str, str]:
    if d is None:
        return "-", "", ""
    return f"{d['value']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}]", d["value"], f"{d['n']} images a side"


def _lines(frame: pd.DataFrame) -> list[list[str]]:
    """The tidy table as text."""

    def text(value: Any) -> str:  # noqa: ANN401
        return "" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)

    return [[text(v) for v in line] for line in frame.itertuples(index=False, name=None)]


def _entries(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every method with its settings: what was asked for, and all that it came to."""
    out: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        whole = "not recorded" if row["effective"] is None else json.dumps(row["effective"], ensure_ascii=False)
        out.setdefault(
            key_of(row).entry,
            {
                "model": row["model"],
                "method": row["method"],
                "digest": row["digest"],
                "given": json.dumps(row["settings"], ensure_ascii=False),
                "effective": whole,
                "derived": json.dumps(row["derived"], ensure_ascii=False) if row["derived"] else "",
                "sampling": json.dumps(row["sampling"]) if row["sampling"] else "not recorded",
            },
        )
    return list(out.values())


def _record(folder: Path) -> str:
    """How the cells are scored: the folder's record, less the models' fingerprints."""
    if not (folder / RECORD).exists():
        return "All rows are imported; how they were drawn is said where they come from."
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    for model in record["models"].values():
        model["fingerprint"] = model["fingerprint"]["structure"]
    return json.dumps(record, indent=1)


def _environment() -> dict[str, str]:
    """What wrote the report."""
    out = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in LIBRARIES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "unknown"
    return out


def _recorded_versions(rows: Sequence[Row]) -> dict[str, str]:
    """What made the erasers."""
    found = {json.dumps(r["versions"], sort_keys=True) for r in rows if r["versions"]}
    return {
        f"the erasers were made with{f' ({k})' if len(found) > 1 else ''}": v for k, v in enumerate(sorted(found), 1)
    }


# ---------------------------------------------------------------- charts


def _frontiers(rows: Sequence[Row], boards: Sequence[Mapping[str, Any]], loose: bool = False) -> dict[str, str]:
    """Of each board with something in common: UA against the mean of IRA and CRA, with every concept's own point."""
    out = {}
    for board in boards:
        points = []
        for e in board["entries"]:
            if not all(n in e["scores"] for n in BALANCE):
                continue
            ua, ira, cra = (e["scores"][n] for n in BALANCE)
            ranges = [None if s["low"] is None else (s["low"], s["high"]) for s in (ua, ira, cra)]
            points.append(
                Point(
                    f"{e['method']} {e['settings']}".strip(),
                    ua["mean"],
                    (ira["mean"] + cra["mean"]) / 2,
                    ranges[0],
                    None if ranges[1] is None or ranges[2] is None else _half(ranges[1], ranges[2]),
                    e["role"] == "control",
                    _each(rows, board, e),
                )
            )
        if points:
            out[title(board)] = frontier(
                points, x="UA (forgotten)", y="mean of IRA and CRA (kept)", title=title(board), loose=loose
            )
    return out


def _half(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """Bounds of the mean of two figures, taken to fail together: never too narrow."""
    return (a[0] + b[0]) / 2, (a[1] + b[1]) / 2


def _each(
    rows: Sequence[Row], board: Mapping[str, Any], entry: Mapping[str, Any]
) -> tuple[tuple[float, float, str], ...]:
    out = []
    for r in rows:
        mine = (r["model"], r["method"], r["digest"]) == (board["model"], entry["method"], entry["settings"])
        values = [r["scores"].get(n, {}).get("value") for n in BALANCE]
        if mine and r["concept"] in board["concepts"] and all(v is not None for v in values):
            out.append((values[0], (values[1] + values[2]) / 2, r["concept"]))
    return tuple(out)


def _control_hits(row: Row) -> dict[str, str] | None:
    """The unerased model's verdict of each image: kept, or known because every control figure is perfect."""
    if row["hits_control"]:
        return row["hits_control"]  # type: ignore[no-any-return]
    perfect = {"ua": 0.0, "synonym_ua": 0.0, "held_out_ua": 0.0, "ira": 100.0, "cra": 100.0, "in_prompt": 100.0}
    known = {n: s["control"] for n, s in row["scores"].items() if n in perfect and s["value"] is not None}
    if all(n in known for n in (*JUDGED, "in_prompt")) and all(perfect[n] == v for n, v in known.items()):
        return {d: "1" * len(row["hits"][d]) for d in DOMAINS}
    return None


def changes(row: Row) -> list[tuple[str, str, float, float]]:
    """Of each grid image of a cell: object, style, and the change (1, 0, -1) of either judge's verdict."""
    before, world = _control_hits(row), world_of(row)
    if before is None or world is None:
        return []
    sides = [[int(a) - int(b) for a, b in zip(row["hits"][d], before[d], strict=True)] for d in DOMAINS]
    plan = plan_of(row["concept"], world)
    grid_rows = [k for k, p in enumerate(plan) if p.role == "grid"]
    return [(plan[k].object, plan[k].style, sides[0][k], sides[1][k]) for k in grid_rows]


def object_by_style(row: Row) -> dict[tuple[str, str], float]:
    """Change of accuracy in each cell of the object x style grid, percent points, mean of both judges."""
    sums: dict[tuple[str, str], list[float]] = {}
    for o, s, a, b in changes(row):
        sums.setdefault((s, o), []).append(50 * (a + b))
    return {k: sum(v) / len(v) for k, v in sums.items()}


def erased_by_asked(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """For each erased concept the change of accuracy of every concept asked for, percent points, by its own judge."""
    sums: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for o, s, a, b in changes(row):
            sums.setdefault((row["concept"], o), []).append(100 * a)
            sums.setdefault((row["concept"], s), []).append(100 * b)
    return {k: sum(v) / len(v) for k, v in sums.items()}


def _by_entry(rows: Sequence[Row]) -> dict[str, list[Row]]:
    out: dict[str, list[Row]] = {}
    for row in rows:
        if comparable([row]):
            out.setdefault(f"{row['model']}: {row['method']} {row['digest']}", []).append(row)
    return out


def _matrices(rows: Sequence[Row], loose: bool = False) -> dict[str, str]:
    """Per entry: erased concept x concept asked for."""
    out = {}
    for name, part in _by_entry(rows).items():
        asked = list((world_of(part[0]) or CANVAS).concepts)
        found = erased_by_asked(part)
        erased = [c for c in dict.fromkeys([*asked, *(r["concept"] for r in part)]) if any(k[0] == c for k in found)]
        if erased:
            words = f"{name}: rows erased, columns asked for" if loose else name
            out[name] = heat_map(grid_of(found, erased, asked), erased, asked, title=words, loose=loose)
    return out


# ---------------------------------------------------------------- pictures


def _galleries(rows: Sequence[Row], folder: Path) -> list[dict[str, Any]]:
    """Per model and concept: the same prompts and seeds, unerased and by every entry; maps of what changed."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["pictures"] or comparable([row]):
            groups.setdefault((row["model"], row["concept"]), []).append(row)
    return [_gallery(model, concept, part, folder) for (model, concept), part in sorted(groups.items())]


def _gallery(model: str, concept: str, part: Sequence[Row], folder: Path) -> dict[str, Any]:
    part = sorted(part, key=lambda r: (r["method"] not in CONTROLS, r["method"], r["digest"], r["seed"]))
    pictured = [r for r in part if r["pictures"]]
    columns = [ORIGINAL, *(f"{r['method']} {r['digest']} seed {r['seed']}" for r in pictured)]
    gone = set(concept.split("+"))
    lines = []
    drawn = [{_which(p): p for p in r["pictures"]} for r in pictured]
    for first in pictured[0]["pictures"] if pictured else []:
        images: list[dict[str, str] | None] = [_cell(first, "original", "saw_original", folder, None)]
        mine = (d.get(_which(first)) for d in drawn)
        images += [None if p is None else _cell(p, "file", "saw", folder, gone) for p in mine]
        lines.append({"text": first["text"], "seed": first["seed"], "asks": first["asks"], "images": images})
    maps = []
    objects, styles = ((world_of(part[0]) or CANVAS).names(d) for d in DOMAINS)
    for row in part:
        if comparable([row]) and (found := object_by_style(row)):
            label = f"{row['method']} {row['digest']} seed {row['seed']}"
            maps.append(Markup(heat_map(grid_of(found, styles, objects), styles, objects, title=label, cell=11)))
    return {"title": f"{model}: {concept}", "columns": columns, "lines": lines, "maps": maps}


def _which(picture: Row) -> tuple[str, int]:
    """What tells one picture of a cell from another: rows of elsewhere may show other ones."""
    return picture["text"], picture["seed"]


def _cell(picture: Row, file: str, saw: str, folder: Path, gone: set[str] | None) -> dict[str, str]:
    seen = picture[saw]
    if gone is None:
        state = ""
    elif picture["asks"]:
        state = "bad" if gone & set(seen) & {picture["object"], picture["style"]} else "good"
    elif seen == [picture["object"], picture["style"]]:
        state = "good"
    else:
        state = "bad" if picture["saw_original"] == [picture["object"], picture["style"]] else ""
    return {"src": _data(folder / picture[file]), "saw": ", ".join(seen), "state": state}


def _open_picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as f:
            return f.convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"cannot read the picture {path} ({error}): delete its cell, and it is drawn again") from error


def _data(path: Path) -> str:
    """A picture as an address that holds it."""
    image = _open_picture(path)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figures(rows: Sequence[Row], boards: Sequence[Mapping[str, Any]], folder: Path, out: Path) -> None:
    """The charts as SVG files and the galleries as PNG grids."""
    for kind, charts in (("frontier", _frontiers(rows, boards, True)), ("changes", _matrices(rows, True))):
        for name, svg in charts.items():
            write_text(out / f"{kind}-{slug(name)}.svg", svg + "\n")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["pictures"]:
            groups.setdefault((row["model"], row["concept"]), []).append(row)
    for (model, concept), part in groups.items():
        gone = set(concept.split("+"))
        both = [set(map(_which, r["pictures"])) for r in part]
        first = [p for p in part[0]["pictures"] if all(_which(p) in b for b in both)]
        if not first:
            continue
        columns = {ORIGINAL: [_open_picture(folder / p["original"]) for p in first]}
        marks: dict[str, list[bool | None]] = {}
        for row in part:
            name = f"{row['method']} {row['digest']}" + (f" seed {row['seed']}" if row["seed"] else "")
            mine = {_which(p): p for p in row["pictures"]}
            shown = [mine[_which(p)] for p in first]
            columns[name] = [_open_picture(folder / p["file"]) for p in shown]
            states = [_cell(p, "file", "saw", folder, gone)["state"] for p in shown]
            marks[name] = [None if s == "" else s == "good" for s in states]
        labels = [f"{p['text']} ({p['seed']})" for p in first]
        sheet = grid(columns, labels, cell=96, title=f"{model}: {concept} erased", marks=marks)
        save_image(sheet, out / f"grid-{slug(model)}-{slug(concept)}.png")
