"""UnlearnCanvas as the Hub keeps it, parquet files of images and captions, laid out as folders."""

from __future__ import annotations

import importlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..erase import filed, write_folder
from ..prompts import InputError, first_line, unlearncanvas

MARK = "unlearncanvas.txt"
EACH = 20
"""Images that the data set has of each object in each style."""


def captioned(files: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[bytes, str, str]]:
    """Image file, object and style of each row; the latter two parsed back from its caption.

    Raises:
        InputError: pyarrow is not installed, a file is not parquet or has other columns, or a caption of another form.
    """
    for path, row in _rows(files, "image"):
        image = row["image"]
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            raise InputError(f"{path}: expected images as bytes, got {type(data).__name__}")
        yield data, *unlearncanvas.parse(str(row["text"]))


def _rows(files: Sequence[str | os.PathLike[str]], image: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each row with its caption and its column `image`, or a part of that ("image.path"), and the file it stands in."""
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError("reading parquet needs pyarrow: install it with `pip install pyarrow`") from error
    arrow: Any = importlib.import_module("pyarrow")
    for file in files:
        path = Path(file)
        try:
            table = parquet.ParquetFile(path)
            if not {"image", "text"} <= set(table.schema_arrow.names):
                raise InputError(f"{path}: expected the columns image and text, got {table.schema_arrow.names}")
            for group in table.iter_batches(batch_size=64, columns=[image, "text"]):
                for row in group.to_pylist():
                    yield path, row
        except (OSError, arrow.ArrowException) as error:
            raise InputError(f"cannot read {path} as parquet ({first_line(error)})") from error


def numbers(files: Sequence[str | os.PathLike[str]]) -> list[int] | None:
    """The number of each row's image by the name of the file it was ("Dogs/7.jpg"), which says whether a judge was
    trained on it; None where a row has none from 1 to 20, or two of one object and style have the same. Rows are often
    sorted as text: 1, 10, 11 ... 2.

    Raises:
        InputError: see `captioned`.
    """
    found = []
    for _, row in _rows(files, "image.path"):
        name = (row.get("image") or {}).get("path") or ""
        number = re.search(r"(?:^|\D)(\d{1,2})\.\w+$", name)
        if number is None or not 1 <= int(number[1]) <= EACH:
            return None
        found.append((int(number[1]), *unlearncanvas.parse(str(row["text"]))))
    return [n for n, _, _ in found] if len(set(found)) == len(found) else None


def unpack(files: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write `./{style}/{object}/{1..}.jpg`, numbered as the files were (see `numbers`), else in the order of the rows,
    which `unlearncanvas.txt` says; bytes as they are where they are JPEG.

    Raises:
        InputError: see `captioned`; an unreadable image, no rows, or the folder exists.
    """
    if not files:
        raise InputError("expected at least one parquet file, got none")

    def fill(root: Path) -> None:
        seen: Counter[tuple[str, str]] = Counter()
        own = numbers(files)
        for k, (data, thing, style) in enumerate(tqdm(captioned(files), desc="unpack", unit="image", leave=False)):
            seen[style, thing] += 1
            number = seen[style, thing] if own is None else own[k]
            place = root / style.replace(" ", "_") / thing / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with Image.open(BytesIO(data)) as image:
                    if image.format == "JPEG":
                        place.write_bytes(data)
                    else:
                        image.convert("RGB").save(place, quality=95)
            except (OSError, SyntaxError, ValueError) as error:
                raise InputError(f"row {sum(seen.values())} holds no readable image ({error})") from error
        if not seen:
            raise InputError("the parquet files have no rows")
        how = "in the order of the rows" if own is None else "as the rows name their files"
        (root / MARK).write_text(f"{sum(seen.values())} images, numbered {how}\n", encoding="utf-8")

    return write_folder(Path(out), fill, holds=MARK, force=force)


def lacking(folder: str | os.PathLike[str]) -> str:
    """What a folder has less than the benchmark's 51 themes x 20 objects x 20 images, in one clause; "" where nothing
    is lacking. Raises `InputError` where there is no such folder.
    """
    there = Counter((f.style, f.object) for f in filed(Path(folder)))
    themes, things = unlearncanvas.THEME_NAMES, unlearncanvas.OBJECT_NAMES
    short = [(t, o) for t in themes for o in things if there[t.lower(), o.lower()] < EACH]
    if not short:
        return ""
    whole = len(themes) * len(things)
    style, thing = short[0]
    return (
        f"{len(short)} of {whole} pairs of theme and object have fewer than {EACH} images, such as {thing} in {style} "
        f"({there[style.lower(), thing.lower()]})"
    )
