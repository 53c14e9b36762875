"""From a benchmark's cells to one tidy table, and from the table to a leaderboard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from ..erase import write_text
from ..prompts import CANVAS, WORLDS, InputError, World, canvas
from ._cells import Row
from ._evaluator import evaluators, find
from ._paired import comparable, paired
from ._score import clustered, wilson

COLUMNS: dict[str, str] = {
    "model": "string",
    "method": "string",
    "settings": "string",
    "concept": "string",
    "domain": "string",
    "split": "string",
    "seed": "Int64",
    "evaluator": "string",
    "higher_is_better": "boolean",
    "value": "Float64",
    "n": "Int64",
    "low": "Float64",
    "high": "Float64",
    "control": "Float64",
    "change": "Float64",
    "change_low": "Float64",
    "change_high": "Float64",
    "control_low": "Float64",
    "control_high": "Float64",
    "unit": "string",
    "convention": "string",
    "judge_real": "Float64",
    "judge_unerased": "Float64",
    "not_applicable": "string",
    "seconds": "Float64",
    "extra_mb": "Float64",
    "bytes": "Int64",
    "retrained": "Float64",
    "gap": "Float64",
}
"""The tidy table's columns and their types: one row per model, method, settings, concept, seed and evaluator."""

LATER = ("control_low", "control_high", "convention", "judge_real", "judge_unerased")
"""Of them, those that older tables lack."""
TEXT = {name: kind for name, kind in COLUMNS.items() if kind == "string"}
"""Of them, those that hold words, though they may look like numbers: a digest can be 41234567 or 1234e567."""
TIMES = ("seconds", "extra_mb")
"""Columns that differ between two runs of the same benchmark."""
ORIGINAL = "original"
RETRAINED = "retrained"
GOLD = (RETRAINED, "untrained")
"""What was trained anew, which is had for few concepts: no board is cut down to them."""
GAP = "gap to retrained"
CONTROLS = (ORIGINAL, "untrained", "random", "gradient_ascent", "anchor_finetune")
"""What is no method of erasing; first in every table."""
BALANCE = ("ua", "ira", "cra")
"""What is ranked by: their harmonic mean, which is low as soon as one of them is."""
FEW_CONCEPTS, FEW_IMAGES = 5, 30
READ_IT = (
    "Mean over the concepts that all entries of a board have (what was trained anew, `retrained` and `untrained`, over "
    "those of them that it has), [95 % interval: bootstrap over concepts, no width where "
    "all concepts agree], (worst concept). In italics "
    "what is no method: the unerased original, controls, the retrained model. `harmonic` is the harmonic mean of UA, "
    "IRA and CRA; methods are ranked by it. `gap to retrained` is UA, IRA and CRA minus those of the model retrained "
    "without the concept, over the concepts for which there is one (their number), and - where there is none. "
    "`settings` is a digest of all settings; below the boards stands what was changed from the preset."
)

Entry = tuple[str, str]
"""A method and the digest of its settings."""


def domain(concept: str, world: World = CANVAS) -> str:
    """Either "object" or "style", "both" for a stack of both, "" for what is no concept of the world."""
    kinds = {world.domain(n) if n in world.concepts else "" for n in concept.split("+")}
    return "both" if len(kinds) > 1 else kinds.pop()


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """The tidy table of some cells: `COLUMNS`, the unerased model as the method "original", and beside each figure that
    of the model retrained without the concept, where there is one.
    """
    lines: list[Row] = []
    for row in rows:
        lines += _lines(row)
    frame = pd.DataFrame(lines, columns=[c for c in COLUMNS if c not in ("retrained", "gap")])
    numbers = [c for c in frame.columns if COLUMNS[c] in ("Float64", "Int64")]
    frame[numbers] = frame[numbers].apply(pd.to_numeric)
    frame = pd.concat([_originals(frame), frame], ignore_index=True)
    gold = frame[frame.method == RETRAINED].groupby(["model", "concept", "evaluator"])["value"].mean().rename(RETRAINED)
    frame = frame.join(gold, on=["model", "concept", "evaluator"])
    frame["gap"] = (frame["value"] - frame[RETRAINED]).round(4)
    frame = frame[list(COLUMNS)].astype(COLUMNS)
    ranks = {"method": _method_rank, "concept": _concept_rank}
    keys = ["model", "method", "settings", "concept", "seed", "evaluator"]
    order = pd.DataFrame({k: frame[k].map(ranks[k]) if k in ranks else frame[k] for k in keys})
    return frame.loc[order.sort_values(keys, na_position="first", kind="stable").index].reset_index(drop=True)


def _lines(row: Row) -> list[Row]:
    world = WORLDS.get(row.get("world", CANVAS.name))
    same = {
        "model": row["model"],
        "method": row["method"],
        "settings": row["digest"],
        "concept": row["concept"],
        "domain": domain(row["concept"], world) if world else "",
        "split": _split(row),
        "seed": row["seed"],
        **{k: row[k] for k in ("seconds", "extra_mb", "bytes")},
    }
    sure = ("change_low", "change_high", "control_low", "control_high")
    figures = ("value", "n", "low", "high", "control", "change", *sure, "unit")
    tools = {n: find(n) for n in row["scores"] if n in evaluators()}
    better = {n: getattr(t, "higher_is_better", None) for n, t in tools.items()}
    by_judges = {n for n, t in tools.items() if getattr(t, "pictures", True) is False}
    return [
        same
        | {"evaluator": n, "higher_is_better": better.get(n), "not_applicable": s.get("reason")}
        | {f: s.get(f) for f in figures}
        | {"convention": (s.get("details") or {}).get("convention")}
        | _right(row, s.get("details") or {}, by_judges=n in by_judges)
        for n, s in sorted(row["scores"].items())
    ]


def _right(row: Row, details: Mapping[str, Any], *, by_judges: bool) -> Row:
    """How often whoever gave a score is right on real images and on the unerased model's, in percent: the weaker of the
    two judges, or CLIP, which only has the former.
    """
    if by_judges or details.get("by") == "judge":
        return {"judge_real": _weaker(row.get("judge_real")), "judge_unerased": _weaker(row.get("judge"))}
    by_clip = details.get("top 1 on real images")
    return {"judge_real": by_clip if isinstance(by_clip, (int, float)) else None, "judge_unerased": None}


def _split(row: Row) -> str:
    """Either "dev" or "held-out"; only Canvas' concepts are parted so."""
    return canvas.split(row["concept"]) if row.get("world", CANVAS.name) == CANVAS.name else ""


def _weaker(judges: Mapping[str, float] | None) -> float | None:
    """Accuracy of the weaker of both judges, if both are known."""
    return min(judges.values()) if judges and len(judges) == 2 else None


def _originals(frame: pd.DataFrame) -> pd.DataFrame:
    """The unerased control's own rows: one per model, concept and evaluator."""
    keys = ["model", "concept", "evaluator"]
    same = ["domain", "split", "higher_is_better", "n", "unit", *LATER, "share"]
    known = frame[frame["control"].notna() & frame["value"].notna()]
    known = known.assign(share=[_is_share(*v) for v in zip(known.value, known.n, known.low, known.high, strict=True)])
    known = known.sort_values(
        "control_low", key=pd.isna, kind="stable"
    )  # figure, n and interval of one row that has all
    out = known.groupby(keys, sort=False, as_index=False).agg(dict.fromkeys([*same, "control"], "first"))
    out["value"] = out["control"].astype(float).round(4)
    apart = [
        wilson(v / 100 * n, n) if ok else (math.nan, math.nan)
        for v, n, ok in zip(out.value, out.n, out.pop("share"), strict=True)
    ]
    for k, end in enumerate(("low", "high")):
        older = pd.Series([round(100 * b[k], 4) for b in apart], out.index, dtype="Float64")
        out[end] = out[f"control_{end}"].astype("Float64").fillna(older)
    out[["change", "change_low", "change_high"]] = 0.0
    return out.assign(method=ORIGINAL, settings="")


def _is_share(value: float, n: float, low: float, high: float) -> bool:
    """Whether a figure is a share of images in percent, whose interval is Wilson's or holds it (`bounds`): then a
    control without an interval of its own, in older rows, has Wilson's.
    """
    if not (n > 0 and 0 <= value <= 100):
        return False
    hits = value / 100 * n
    apart = wilson(hits, int(n))
    return abs(hits - round(hits)) < 0.01 and low < 100 * apart[0] + 0.01 and 100 * apart[1] - 0.01 < high


def _method_rank(name: str) -> str:
    return f"{CONTROLS.index(name):02d}" if name in CONTROLS else f"98{name}" if name != RETRAINED else "97"


def _concept_rank(name: str) -> str:
    places = {c: k for k, c in enumerate(canvas.CONCEPTS)}
    return f"{name.count('+'):03d} " + " ".join(f"{places.get(n, 999):03d}{n}" for n in name.split("+"))


def write_table(frame: pd.DataFrame, folder: Path) -> tuple[Path, Path]:
    """Write `table.parquet` and `table.csv`, each in one step."""
    parquet, csv = folder / "table.parquet", folder / "table.csv"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{parquet.name}.{os.getpid()}.part"
    frame.to_parquet(partial, index=False)
    partial.replace(parquet)
    write_text(csv, frame.to_csv(index=False))
    return parquet, csv


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The tidy table of a benchmark's folder, or of a `.parquet` or `.csv` file.

    Raises:
        InputError: there is none, or it lacks columns.
    """
    file = Path(path) / "table.parquet" if Path(path).is_dir() else Path(path)
    try:
        frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file, dtype=TEXT)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the table {file}: {error}") from error
    for column in LATER:
        if column not in frame:
            frame[column] = pd.NA
    if lacking := [c for c in COLUMNS if c not in frame]:
        raise InputError(f"{file} is no benchmark's table: it lacks the columns {', '.join(lacking)}")
    if file.suffix == ".csv":
        for column in ("settings", "split", "domain"):
            frame[column] = frame[column].fillna("")
        frame["unit"] = frame["unit"].mask(frame["unit"].isna() & frame["value"].notna(), "")
    return frame[list(COLUMNS)].astype(COLUMNS)


# ---------------------------------------------------------------- the leaderboard


def leaderboard(rows: Sequence[Row], frame: pd.DataFrame | None = None) -> list[dict[str, Any]]:
    """One board for each model, split, and single concepts or stacks, as JSON values; where some entries lack concepts,
    a board of those that have all of them, and one of everything on what is left in common.

    Figures are means over the concepts that ALL entries of a board have, each concept weighing the same whatever its
    number of seeds; an entry is a method with its settings. What was trained anew (`GOLD`) decides nothing where there
    are others: it stands on every board that has one of its concepts, with its means over those. Controls come first,
    then what was retrained, then the methods by the harmonic mean of UA, IRA and CRA. Intervals are bootstraps over
    concepts.
    """
    frame = table(rows) if frame is None else frame
    boards = []
    stacked = frame["concept"].str.contains("+", regex=False)
    for model in frame["model"].drop_duplicates():
        for split in ("held-out", "dev", ""):
            for stack in (False, True):
                part = frame[(frame["model"] == model) & (frame["split"] == split) & (stacked == stack)]
                about = {"model": model, "split": split, "stacks": stack}
                boards += [_board(p, rows, {**about, "complete": whole}) for p, whole in _parts(part)]
    return boards


def _deciding(part: pd.DataFrame) -> pd.DataFrame:
    """The rows whose concepts are a board's: not the original's, which has any concept that anybody has, nor those of
    what was trained anew, unless there are no others.
    """
    made = part[part["method"] != ORIGINAL]
    others = made[~made["method"].isin(GOLD)]
    return others if len(others) else made


def _parts(part: pd.DataFrame) -> list[tuple[pd.DataFrame, bool]]:
    """The entries that have all concepts, and all entries; once, where that is the same or nobody lacks anything."""
    if not len(part):
        return []
    deciding = _deciding(part)
    count = deciding.groupby(["method", "settings"])["concept"].transform("nunique")
    lacking = deciding.index[count < deciding["concept"].nunique()]
    if 0 < len(lacking) < len(deciding):
        return [(part.drop(lacking), True), (part, False)]
    return [(part, not len(lacking))]


def _board(part: pd.DataFrame, rows: Sequence[Row], about: dict[str, Any]) -> dict[str, Any]:
    entries: dict[Entry, pd.DataFrame] = {
        (str(m), str(s)): g for (m, s), g in part.groupby(["method", "settings"], sort=False)
    }
    deciding = _deciding(part)
    held = [set(g["concept"]) for _, g in deciding.groupby(["method", "settings"])]
    common = [c for c in deciding["concept"].drop_duplicates() if all(c in h for h in held)]
    measured = {n: _measured(g) for n, g in deciding[deciding["value"].notna()].groupby("evaluator")}
    given = {(r["method"], r["digest"]): r["settings"] for r in rows if r["model"] == about["model"]}
    lines = []
    for entry, group in entries.items():
        shared = group[group["concept"].isin(common)]
        if entry[0] in GOLD and not len(shared):
            continue
        line: dict[str, Any] = {
            "method": entry[0],
            "settings": entry[1],
            "given": given.get(entry, {}),
            "role": "control" if entry[0] in CONTROLS else "gold" if entry[0] == RETRAINED else "method",
            "has": int(group["concept"].nunique()),
            "concepts": int(shared["concept"].nunique()),
            "seeds": int(group["seed"].nunique()) or None,
        }
        line["scores"] = {
            str(n): _mean(part_of)
            for n, g in shared.groupby("evaluator")
            if len(part_of := g[g["value"].notna() & g["concept"].isin(measured.get(n, common))])
        }
        line["harmonic"] = harmonic([line["scores"].get(n, {}).get("mean") for n in BALANCE])
        for cost in ("seconds", "extra_mb", "bytes"):
            line[cost] = _number(shared.groupby("concept")[cost].mean().mean()) if len(shared) else None
        lines.append(line)
    lines.sort(key=_place)
    return {
        **about,
        "concepts": common,
        "images": _least(deciding[deciding["concept"].isin(common)]),
        "judges": _judges([r for r in rows if r["model"] == about["model"] and r["concept"] in common]),
        "entries": lines,
        "paired": _image_by_image(lines, rows, about, common),
    }


def _judges(rows: Sequence[Row]) -> str:
    """How often the judges were right on real images and on unerased ones, in words; and of how many cells that is
    known.
    """
    words = []
    for what, key in (("real images", "judge_real"), ("the unerased model's images", "judge")):
        known = [r[key] for r in rows if r.get(key) and len(r[key]) == 2]
        if known:
            least = [min(k[d] for k in known) for d in ("object", "style")]
            of = "" if len(known) == len(rows) else f" (known of {len(known)} of {len(rows)} cells)"
            words.append(f"on {what} in {least[0]:.1f} / {least[1]:.1f} %{of}")
        else:
            words.append(f"on {what}: not recorded")
    return "The judges of objects / styles are right, at least: " + "; ".join(words) + "."


def _least(rows: pd.DataFrame) -> dict[str, int]:
    """By evaluator, how many images a figure of a concept rests on, at least."""
    known = rows[rows["n"].notna()].groupby("evaluator")["n"].min()
    return {str(name): int(n) for name, n in known.items()}


def _measured(values: pd.DataFrame) -> set[str]:
    """The concepts for which all entries have a value of an evaluator, of those entries that have any."""
    return set.intersection(*(set(g["concept"]) for _, g in values.groupby(["method", "settings"])))


def _mean(group: pd.DataFrame) -> dict[str, Any]:
    """Mean over concepts of one evaluator, with its interval and the worst concept."""
    by = group.groupby("concept", sort=False)
    values, changes = by["value"].mean().astype(float), by["change"].mean().astype(float)
    better = group["higher_is_better"].iloc[0]
    worst = values.idxmin() if pd.isna(better) or better else values.idxmax()
    several = len(values) > 1
    low, high = clustered(list(values), list(values.index)) if several else (None, None)
    gaps = by["gap"].mean().dropna()
    return {
        "mean": round(float(values.mean()), 4),
        "low": None if low is None else round(low, 4),
        "high": None if high is None else round(high, 4),
        "change": round(float(changes.mean()), 4),
        "worst": round(float(values[worst]), 4),
        "worst_concept": str(worst),
        "concepts": len(values),
        "images": int(group["n"].fillna(0).sum()),
        "least_images": int(group["n"].fillna(0).min()),
        "unit": str(group["unit"].iloc[0]),
        "higher_is_better": None if pd.isna(better) else bool(better),
        "gap": round(float(gaps.mean()), 4) if len(gaps) else None,
        "gap_concepts": len(gaps),
    }


def harmonic(values: Sequence[float | None]) -> float | None:
    """Harmonic mean of percentages; None where one is missing, 0 where one is 0."""
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return None
    return round(len(known) / sum(1 / v for v in known), 4) if min(known) > 0 else 0.0


def _place(line: Mapping[str, Any]) -> tuple[Any, ...]:
    rank = {"control": 0, "gold": 1, "method": 2}[line["role"]]
    within = CONTROLS.index(line["method"]) if rank == 0 else 0
    score = line["harmonic"]
    return rank, within, score is None, -(score or 0.0), line["method"], line["settings"]


def _number(value: float) -> float | None:
    return None if pd.isna(value) else round(float(value), 3)


def _image_by_image(
    lines: Sequence[Mapping[str, Any]], rows: Sequence[Row], about: Mapping[str, Any], concepts: Sequence[str]
) -> list[dict[str, Any]]:
    """Each method against the first of the ranking, and against the model retrained without the concept, which is its
    gap with an interval; where the rows hold a verdict of each image.
    """

    def of(line: Mapping[str, Any]) -> list[Row]:
        key = (about["model"], line["method"], line["settings"])
        return [r for r in rows if (r["model"], r["method"], r["digest"]) == key and r["concept"] in concepts]

    ranked, gold = ([line for line in lines if line["role"] == r and line["scores"]] for r in ("method", "gold"))
    out = []
    for one, other in [*product(ranked[1:], ranked[:1]), *product(ranked, gold)]:
        a, b = comparable(of(one)), comparable(of(other))
        if not a.keys() & b.keys():
            continue
        found = paired(a.values(), b.values())
        out.append(
            {
                "a": [one["method"], one["settings"]],
                "b": [other["method"], other["settings"]],
                "difference": {n: d.to_json() for n, d in found.items()},
            }
        )
    return out


def best(rows: Sequence[Row], models: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """For each method the settings with the highest harmonic mean on the dev concepts that all of its settings have.

    Args:
        rows: cells of one model.
        models: what the settings are for: they are changes from the preset of the model that they were chosen on, and
            mean something else on another one. By default nothing is checked.

    Raises:
        InputError: no dev concepts; several models, which may want different settings; or others than `models`.
    """
    dev = [r for r in rows if _split(r) == "dev"]
    if not dev:
        raise InputError("no dev concepts among the cells: settings are chosen with `erasers benchmark --split dev`")
    if len(seen := sorted({r["model"] for r in dev})) > 1:
        raise InputError(f"expected cells of one model to choose settings by, got {', '.join(seen)}")
    if others := [m for m in models or () if m not in seen]:
        raise InputError(
            f"expected dev cells of {', '.join(others)} to choose settings by, got cells of {seen[0]}: run "
            f"`erasers benchmark --split dev --models {others[0]}` for a folder of its own, and each model by itself"
        )
    out = {}
    for method in dict.fromkeys(r["method"] for r in dev if r["method"] not in (*CONTROLS, RETRAINED)):
        own = [r for r in dev if r["method"] == method]
        boards = leaderboard(own)
        board = ([b for b in boards if not b["stacks"]] or boards)[-1]  # the last: what all settings have
        line = next(e for e in board["entries"] if e["role"] == "method")
        if line["harmonic"] is None:
            raise InputError(f"the settings of {method} have no dev concept with UA, IRA and CRA in common")
        out[method] = [line["given"]]
    return out


def warnings_of(rows: Sequence[Row], frame: pd.DataFrame, boards: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before believing a figure: few concepts, images or seeds, mixed controls, weak judges."""
    out = []
    for board in boards:
        name = title(board)
        if not board["concepts"]:
            out.append(f"{name}: no concept that all entries have, so nothing is compared")
        elif len(board["concepts"]) < FEW_CONCEPTS:
            out.append(f"{name}: means rest on {len(board['concepts'])} concept(s); their intervals say little")
        for e in board["entries"]:
            if e["concepts"] < len(board["concepts"]):
                out.append(f"{name}: {e['method']} has {e['concepts']} of {len(board['concepts'])} concepts")
    few = frame[(frame["n"] < FEW_IMAGES) & (frame["method"] != ORIGINAL)]
    for name, group in few.groupby("evaluator"):
        out.append(f"{name}: {int(group['n'].min())} images a concept at least; below {FEW_IMAGES} read the interval")
    if frame["seed"].nunique() == 1:
        out.append("one seed: how much a figure varies from one making of an eraser to the next is not measured")
    spread = frame.groupby(["model", "concept", "evaluator"])["control"].agg(lambda v: v.max() - v.min()).max()
    if not pd.isna(spread) and spread > 0:
        out.append(f"the unerased control differs between cells by up to {spread:.1f}; its mean is shown")
    out += _loaded_otherwise(rows)
    for domain_name in ("object", "style"):
        weak = min((r["judge"][domain_name] for r in rows if r["judge"]), default=100.0)
        if weak < 90:
            out.append(f"the {domain_name} judge is right on {weak:.1f} % of the unerased model's images only")
    if any(not r["judge"] for r in rows):
        out.append("some cells are imported and do not say how right the judges were on the unerased model")
    return out + _warned(rows)


def _warned(rows: Sequence[Row]) -> list[str]:
    """What the scores themselves warn of, once for each evaluator."""
    told: dict[str, list[str]] = {}
    for row in rows:
        for name, s in row["scores"].items():
            if note := (s.get("details") or {}).get("warning"):
                told.setdefault(name, []).append(note)
    return [f"{n}: {w[0]}" + (f" (so in {len(w)} cells)" if len(w) > 1 else "") for n, w in told.items()]


def conventions_of(frame: pd.DataFrame) -> dict[str, list[str]]:
    """By which conventions each evaluator's figures are counted, as far as the rows say it."""
    known = frame[frame["convention"].notna()]
    return {str(n): sorted(set(g["convention"])) for n, g in known.groupby("evaluator")}


def _loaded_otherwise(rows: Sequence[Row]) -> list[str]:
    """A line for each model whose rows were not all drawn in one precision, version and kind of device, as far as they
    say it.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        if row.get("loaded"):
            how = ", ".join(str(v) for _, v in sorted(row["loaded"].items()))
            found.setdefault(row["model"], {}).setdefault(how, set()).add(row["method"])
    return [
        f"{model} was not loaded alike for all rows, which may be part of their differences: "
        + "; ".join(f"{how}: {', '.join(sorted(methods))}" for how, methods in ways.items())
        for model, ways in found.items()
        if len(ways) > 1
    ]


def title(board: Mapping[str, Any]) -> str:
    """A board's name."""
    kind = "stacks" if board["stacks"] else "concepts"
    name = f"{board['model']}, {board['split']} {kind}" if board["split"] else f"{board['model']}, {kind}"
    return name if board["complete"] else f"{name} in common"


def markdown(
    boards: Sequence[Mapping[str, Any]], notes: Sequence[str], conventions: Mapping[str, Sequence[str]] | None = None
) -> str:
    """The leaderboard as a page."""
    parts = ["# Leaderboard", "", READ_IT, "", *(f"- {n}" for n in notes)]
    for board in boards:
        parts += ["", f"## {title(board)[0].upper()}{title(board)[1:]}", "", *_section(board)]
    entries = [e for b in boards for e in b["entries"] if e["method"] not in (ORIGINAL, *GOLD)]
    if given := {(e["method"], e["settings"]): e["given"] for e in entries}:
        parts += ["", "## Settings", "", *(f"- {m} `{s}`: {_changed(g)}" for (m, s), g in sorted(given.items()))]
    if conventions:
        parts += ["", "## Conventions", "", "By which figures are counted, where their rows say it.", ""]
        parts += [f"- `{n}`: {' / '.join(words)}" for n, words in sorted(conventions.items())]
    return "\n".join(parts) + "\n"


def _changed(given: Mapping[str, Any]) -> str:
    """Settings as they were asked for, in words."""
    return f"`{json.dumps(given, ensure_ascii=False)}`" if given else "the preset"


def _section(board: Mapping[str, Any]) -> list[str]:
    if not board["concepts"]:
        return ["No concept that all entries have."]
    ranked, others = split(board)
    heads = ["method", "settings", *ranked, "harmonic", GAP, *others, "s", "MB", "KB"]
    lines = [
        f"{len(board['concepts'])} concept(s): {', '.join(board['concepts'])}. {counts(board)} {board['judges']}",
        "",
        "| " + " | ".join(heads) + " |",
        "|---|---|" + "---:|" * (len(heads) - 2),
    ]
    for e in board["entries"]:
        first, more = ([_cell(e["scores"].get(n)) for n in names] for names in (ranked, others))
        costs = [_plain(e["seconds"], 1), _plain(e["extra_mb"], 0), _plain(e["bytes"] and e["bytes"] / 1e3, 0)]
        whole = "-" if e["harmonic"] is None else f"{e['harmonic']:.1f}"
        name = f"*{e['method']}*" if e["role"] != "method" else e["method"]
        if e["concepts"] < len(board["concepts"]):
            name += f" ({e['concepts']} of {len(board['concepts'])} concepts)"
        cells = [name, e["settings"], *first, whole, gap_of(e["scores"]), *more, *costs]
        lines.append("| " + " | ".join(cells) + " |")
    if board["paired"]:
        lines += ["", "Image by image, the same prompts and seeds (a minus b, percent points):", ""]
        lines += ["| a | b | " + " | ".join(BALANCE) + " | concepts |", "|---|---|" + "---:|" * (len(BALANCE) + 1)]
        for p in board["paired"]:
            cells = [_difference(p["difference"].get(n)) for n in BALANCE]
            concepts = max(len(d["concepts"]) for d in p["difference"].values())
            lines.append("| " + " | ".join([" ".join(p["a"]), " ".join(p["b"]), *cells, str(concepts)]) + " |")
    return lines


def counts(board: Mapping[str, Any]) -> str:
    """How many images the figures of each concept rest on, at least."""
    return f"Images a concept, at least: {', '.join(f'{n} {k}' for n, k in board['images'].items()) or 'none'}."


def split(board: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The evaluators of a board: those it is ranked by, and the others; of those that a method has, where there are
    methods.
    """
    methods = [e for e in board["entries"] if e["role"] == "method"]
    there = {n for e in methods or board["entries"] for n in e["scores"]}
    return [n for n in BALANCE if n in there], sorted(there - set(BALANCE))


def gap_of(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """UA, IRA and CRA minus the retrained model's, and of how many concepts; "-" where none was retrained."""
    known = [scores[n] for n in BALANCE if n in scores and scores[n]["gap"] is not None]
    if len(known) < len(BALANCE):
        return "-"
    return ", ".join(f"{s['gap']:+.1f}" for s in known) + f" ({min(s['gap_concepts'] for s in known)})"


def _cell(s: Mapping[str, Any] | None) -> str:
    if s is None:
        return "-"
    interval = "" if s["low"] is None else f" [{s['low']:.1f}, {s['high']:.1f}]"
    worst = "" if s["worst"] == s["mean"] else f" ({s['worst']:.1f} {s['worst_concept']})"
    return f"{s['mean']:.1f}{interval}{worst}"


def _difference(d: Mapping[str, Any] | None) -> str:
    return "-" if d is None else f"{d['value']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}]"


def _plain(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def write_all(rows: Sequence[Row], folder: Path, say: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Write the table (parquet and CSV) and the leaderboard (Markdown and JSON) of some cells."""
    frame = table(rows)
    boards = leaderboard(rows, frame)
    notes, how = warnings_of(rows, frame, boards), conventions_of(frame)
    write_table(frame, folder)
    write_text(
        folder / "leaderboard.json",
        json.dumps({"boards": boards, "warnings": notes, "conventions": how}, indent=1) + "\n",
    )
    write_text(folder / "leaderboard.md", markdown(boards, notes, how))
    say(f"{len(frame)} rows in {folder / 'table.parquet'} and table.csv; {folder / 'leaderboard.md'}")
    return boards
