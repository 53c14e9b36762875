"""UnlearnCanvas as the Hub keeps it, parquet files of images and captions, laid out as folders."""

from __future__ import annotations

import importlib
import os
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
            for group in table.iter_batches(batch_size=64, columns=["image", "text"]):
                for row in group.to_pylist():
                    image = row["image"]
                    data = image.get("bytes") if isinstance(image, dict) else image
                    if not isinstance(data, bytes):
                        raise InputError(f"{path}: expected images as bytes, got {type(data).__name__}")
                    yield data, *unlearncanvas.parse(str(row["text"]))
        except (OSError, arrow.ArrowException) as error:
            raise InputError(f"cannot read {path} as parquet ({first_line(error)})") from error


def unpack(files: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write `./{style}/{object}/{1..}.jpg`, numbered in the order of the rows; bytes as they are where they are JPEG.

    Raises:
        InputError: see `captioned`; an unreadable image, no rows, or the folder exists.
    """
    if not files:
        raise InputError("expected at least one parquet file, got none")

    def fill(root: Path) -> None:
        seen: Counter[tuple[str, str]] = Counter()
        for data, thing, style in tqdm(captioned(files), desc="unpack", unit="image", leave=False):
            seen[style, thing] += 1
            place = root / style.replace(" ", "_") / thing / f"{seen[style, thing]}.jpg"
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
        (root / MARK).write_text(f"{sum(seen.values())} images unpacked\n", encoding="utf-8")

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
