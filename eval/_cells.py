"""A benchmark's cells: one erased concept (or stack) with one method, its settings and one seed; one JSON file each."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..erase import write_text
from ..prompts import InputError
from ._gallery import pixels_digest, read_image
from ._grid import save_image

Row = dict[str, Any]
"""What a cell came to, as JSON; the keys are those that `CellKey` and `_benchmark._row` name."""
SCHEMA = 1
NEEDED = ("method", "settings", "concept", "scores")
PICTURED = ("file", "original")
"""What a row's picture names: with the eraser, and without."""
PLANNED = "preset"
"""Stands for a digest in rows that do not say which settings the preset came to."""


@dataclass(frozen=True)
class CellKey:
    """What makes a cell the same cell in another run.

    Attributes:
        model: name, folder or Hub id of the pipeline.
        method: the method's public name.
        digest: of all its settings, see `digest`.
        concept: a name, or several joined by "+" for a stack of erasers.
        seed: of every draw that the method makes.
    """

    model: str
    method: str
    digest: str
    concept: str
    seed: int

    @property
    def entry(self) -> tuple[str, str, str]:
        """What is compared with what: model, method and settings."""
        return self.model, self.method, self.digest

    @property
    def place(self) -> Path:
        """Where in a folder of its kind its file or folder lies, without an ending."""
        return Path(slug(self.model), f"{slug(self.method)}-{self.digest}", f"{slug(self.concept)}-seed{self.seed}")


def slug(text: str) -> str:
    """A name as part of a path; what had to be changed stays told apart by a hash."""
    plain = re.sub(r"[^A-Za-z0-9_+]+", "-", text).strip("-")[:80]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def digest(settings: Mapping[str, Any] | None, rank: int | None = None) -> str:
    """Eight digits that stand for a method's settings, and for the rank of the LoRA made of its delta. Without settings
    "preset": the row does not say what they were.
    """
    if settings is None:
        return PLANNED
    whole = dict(settings) | ({"as LoRA of rank": rank} if rank is not None else {})
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8]


def key_of(row: Row) -> CellKey:
    """The identity of a row."""
    return CellKey(row["model"], row["method"], row["digest"], row["concept"], row["seed"])


class Cells:
    """The cells kept in one folder. A cell is there whole or not at all, whenever a run is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: CellKey) -> Path:
        """The cell's file."""
        return self.folder / "cells" / key.place.with_name(key.place.name + ".json")

    def done(self, key: CellKey) -> bool:
        """Whether the cell is finished."""
        return self.path(key).exists()

    def write(self, row: Row) -> None:
        """Keep a finished cell, in one step."""
        write_text(self.path(key_of(row)), json.dumps(row, ensure_ascii=False) + "\n")

    def rows(self) -> list[Row]:
        """Every finished cell, in the order of the files' names.

        Raises:
            InputError: a file is no cell.
        """
        return [self._read(p) for p in sorted((self.folder / "cells").glob("*/*/*.json"))]

    def read(self, key: CellKey) -> Row:
        """One finished cell. Raises `InputError` as `rows` does."""
        return self._read(self.path(key))

    @staticmethod
    def _read(path: Path) -> Row:
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            key_of(row), row["scores"]
        except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no finished cell ({error}): delete it, and it is made again") from error
        if row.get("schema", 0) > SCHEMA:
            raise InputError(f"{path} has schema {row['schema']}, this release reads up to {SCHEMA}: update erasers")
        return row  # type: ignore[no-any-return]

    @contextmanager
    def claimed(self, key: CellKey) -> Iterator[bool]:
        """Whether this process may make the cell: False while another one does. A killed process loses its claims."""
        with self._lock(f"cell {key.place}").open("w") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Wait until no other process holds `what`, then hold it: for what several cells share."""
        with self._lock(what).open("w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield

    def _lock(self, what: str) -> Path:
        place = self.folder / ".claims" / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.lock"
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def clear(self, place: Path) -> None:
        """Remove what a killed process left beside a place that this one holds alone."""
        for left in place.parent.glob(f".{place.name}-*"):
            shutil.rmtree(left, ignore_errors=True)


def import_rows(file: Path, cells: Cells) -> tuple[int, int]:
    """Take rows of another run, one JSON object a line, into a folder of cells. Pictures that they name and that lie
    beside the file come along; rows whose pictures do not lie there have none.

    Returns:
        How many cells are new, and how many were there already.

    Raises:
        InputError: an unreadable line, a row without what a cell needs, or one that measured something else than
            the cell there.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from error
    new: dict[CellKey, Row] = {}
    same = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _imported(line, f"{file} line {number}")
        row["pictures"] = _beside(row["pictures"], file.parent)
        key = key_of(row)
        there = new.get(key) or (cells.read(key) if cells.done(key) else None)
        if there is not None and measured(there) != measured(row):
            raise InputError(
                f"{file} line {number}: {key.method} on {key.concept} (seed {key.seed}) is there already with other "
                "scores: import it into a folder of its own"
            )
        if there is not None and (there.get("hits") or not row["hits"]):
            same += 1
            continue
        new[key] = row
    if not new and not same:
        raise InputError(f"{file} holds no rows")
    for row in new.values():
        cells.write({**row, "pictures": _brought(row["pictures"], file.parent, cells.folder)})
    return len(new), same


def measured(row: Row) -> dict[str, list[Any]]:
    """What a row of results measured: of each score the value, of how many, and the control's. Two rows of one run may
    say more or less beside it, as the releases that wrote them did.
    """
    return {name: [s.get(k) for k in ("value", "n", "control")] for name, s in row["scores"].items()}


def _beside(pictures: Any, home: Path) -> list[Row]:  # noqa: ANN401
    """The pictures of a row, if all of them lie in a folder or below it; else none."""
    try:
        files = [(home / p[side]).resolve() for p in pictures for side in PICTURED]
    except (TypeError, KeyError):
        return []
    there = all(f.is_file() and f.is_relative_to(home.resolve()) for f in files)
    return list(pictures) if there else []


def _brought(pictures: list[Row], home: Path, folder: Path) -> list[Row]:
    """Pictures copied into a benchmark's folder, each once, under the hash of its pixels."""
    out = []
    for p in pictures:
        moved = dict(p)
        for side in PICTURED:
            image = read_image(home / p[side])
            name = Path("pictures", "imported", f"{pixels_digest(image)[:16]}.png")
            if not (folder / name).exists():
                save_image(image, folder / name)
            moved[side] = name.as_posix()
        out.append(moved)
    return out


def _imported(line: str, origin: str) -> Row:
    """One line of a results file as a cell."""
    try:
        row = json.loads(line)
        missing = [k for k in NEEDED if k not in row]
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{origin} is no JSON object ({error})") from error
    if missing:
        raise InputError(f"{origin} is no result: expected {', '.join(NEEDED)}, it lacks {', '.join(missing)}")
    if not isinstance(row["scores"], dict) or not all(isinstance(s, dict) for s in row["scores"].values()):
        raise InputError(f"{origin} is no result: expected scores as objects by name, each with its value")
    derived = row.get("derived") or {}
    plain: Row = {
        "schema": SCHEMA,
        "world": "canvas",
        "model": "canvas-sd",
        "seed": 0,
        "effective": None,
        "derived": {},
        "seconds": None,
        "extra_mb": None,
        "bytes": None,
        "by_concept": {},
        "hits": {},
        "hits_control": {},
        "sampling": None,
        "loaded": None,
        "judge": {},
        "judge_real": {},
        "versions": {},
        "pictures": [],
        "source": "imported",
        **row,
    }
    if "digest" not in row:
        effective = plain["effective"]
        if effective is None and row["settings"]:
            effective = {"changed from the preset": row["settings"]}
        plain["digest"] = digest(effective, derived.get("asked"))
    return plain
