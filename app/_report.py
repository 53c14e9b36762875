"""`erasers report`: a benchmark's folder as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    source: Annotated[
        list[Path],
        typer.Argument(help="Folder that `erasers benchmark` filled; or files of rows (docs/results/*.jsonl)."),
    ],
    out_file: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Folder for the same charts (SVG) and grids (PNG) as files.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists already.")] = False,
) -> None:
    """Write a benchmark as one HTML file: tables, pictures, heat maps, frontier, settings. It loads nothing."""
    from ..eval import report as run

    done = run(source, out_file, figures=figures, force=force)
    print(f"{done}: {done.stat().st_size / 1e6:.2f} MB, open it in any browser")
