"""Before/after pictures: rows are prompts, columns the original and each eraser, the same seed along a row."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..prompts import InputError

INK, PAPER, QUIET = (25, 25, 25), (255, 255, 255), (110, 110, 110)
MARKS = {True: (46, 139, 87), False: (192, 57, 43)}


def grid(
    columns: Mapping[str, Sequence[Image.Image]],
    rows: Sequence[str],
    *,
    cell: int = 128,
    title: str = "",
    marks: Mapping[str, Sequence[bool | None]] | None = None,
) -> Image.Image:
    """A labelled grid.

    Args:
        columns: heading -> one image per row; the first column is the original.
        rows: a label for each row, usually "prompt (seed)".
        cell: side of a drawn image in pixels; small images are enlarged without smoothing.
        title: one line on top.
        marks: heading -> for each row whether the image is as it should be: a green frame, a red one, or none.

    Raises:
        InputError: nothing to draw, a column with another number of images than there are rows, or marks of no column.
    """
    if not columns or not rows:
        raise InputError("expected at least one column and one row to draw, got none")
    for name, images in columns.items():
        if len(images) != len(rows):
            raise InputError(f"column {name!r}: expected {len(rows)} images, got {len(images)}")
    for name, good in (marks or {}).items():
        if name not in columns or len(good) != len(rows):
            raise InputError(f"marks of {name!r}: expected {len(rows)} of a column, got {len(good)}")
    font, bold = ImageFont.load_default(13), ImageFont.load_default(15)
    gap, label, head = 6, 210, 44 + (26 if title else 0)
    lines = {name: textwrap.wrap(name, max(8, cell // 8))[:2] for name in columns}
    sheet = Image.new("RGB", (label + len(columns) * (cell + gap) + gap, head + len(rows) * (cell + gap) + gap), PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((gap, gap), title, INK, bold)
    for c, (name, images) in enumerate(columns.items()):
        x = label + gap + c * (cell + gap)
        pen.text((x, head - 38), "\n".join(lines[name]), INK, bold, spacing=2)
        for r, image in enumerate(images):
            method = Image.Resampling.NEAREST if image.width <= cell else Image.Resampling.LANCZOS
            sheet.paste(image.convert("RGB").resize((cell, cell), method), (x, head + r * (cell + gap)))
            mark = marks[name][r] if marks and name in marks else None
            if mark is not None:
                y = head + r * (cell + gap)
                pen.rectangle((x - 2, y - 2, x + cell + 1, y + cell + 1), outline=MARKS[mark], width=2)
    for r, text in enumerate(rows):
        wrapped = "\n".join(textwrap.wrap(text, 30)[: cell // 18])
        pen.text((gap, head + r * (cell + gap) + 4), wrapped, INK if r % 2 == 0 else QUIET, font, spacing=3)
    return sheet


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a PNG atomically."""
    target = Path(path)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    image.save(partial, format="PNG")
    partial.replace(target)
    return target
