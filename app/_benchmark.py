"""`erasers benchmark`: methods x concepts x seeds, one table, one leaderboard."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..prompts import CANVAS, UNLEARN_CANVAS, InputError, World, canvas, unknown, world
from ._loading import loading, loads

SPLITS = ("all", "dev", "held-out")


@loads
def benchmark(
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder; the same command goes on where it stopped.")],
    models: Annotated[str, typer.Option(help="Bundled names, folders or Hub ids, with commas.")] = "canvas-sd",
    methods: Annotated[str, typer.Option(help="Methods, with commas; random is the control.")] = "uce,random",
    concepts: Annotated[
        str | None, typer.Option(help="Concepts, with commas; moon+star is a stack. Default: all of the split.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the making, whole numbers with commas.")] = "0",
    settings: Annotated[
        str | None,
        typer.Option(help='JSON, or a file of it: {"uce": {"ridge": 1}}; a list of such tries each of them.'),
    ] = None,
    chosen: Annotated[
        Path | None, typer.Option(help="Folder of a benchmark on dev concepts: take each method's best settings there.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="dev (settings are chosen on them), held-out (reported on them) or all.")
    ] = "all",
    only: Annotated[str | None, typer.Option(help="Evaluators, with commas. Default: all.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of an evaluator, such as fid.reference=FOLDER; repeat for several."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="Whose concepts: canvas, or unlearncanvas with --judges. Default: the models' own."),
    ] = None,
    judges: Annotated[
        Path | None,
        typer.Option("--judges", help="Folder with judges, in object/ and style/. Default: Canvas' own."),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Score LoRAs of this rank made of deltas.", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps. Default: what suits the model.", min=1)] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. Default: what suits the model.")] = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option("--import", help="Take the rows of this JSON lines file instead of making any; repeat for more."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep-galleries", help="Keep all images, not a few of each cell.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the leaderboard as JSON and nothing else.")] = False,
    *,
    reading: Mapping[str, Any],
) -> None:
    """Erase and score every concept with every method; write one tidy table and a leaderboard. Killed at any point, the
    same command goes on; started twice, the two share the work.
    """
    from ..eval import Cells, Plan, import_rows, rows_of, write_all
    from ..eval import benchmark as run
    from ..pipelines import load

    def say(line: str) -> None:
        print(line, flush=True, file=sys.stderr if as_json else sys.stdout)

    for file in rows or ():
        new, same = import_rows(file, Cells(out_folder))
        say(f"{file}: {new} new rows, {same} there already")
    try:
        if not rows:
            place = world(protocol) if protocol else UNLEARN_CANVAS if judges is not None else CANVAS
            given = _settings(settings)
            if chosen is not None:
                given = _chosen(chosen, given, methods=_names(methods), models=_names(models))
            plan = Plan(
                methods=_names(methods),
                concepts=_concepts(concepts, split, place),
                models=_names(models),
                seeds=_seeds(seeds),
                settings=given,
                only=_names(only) or None if only else None,
                options=tuple(options or ()),
                rank=rank,
                steps=steps,
                guidance=guidance,
                protocol=protocol,
                judges=judges,
                loading={k: v for k, v in {"dtype": dtype, "device": device, **reading}.items() if v and v != "none"},
            )
            wanted = loading(reading)
            read = lambda name: load(name, dtype=dtype, device=device, how=wanted)  # noqa: E731
            run(plan, out_folder, load=read, say=say, keep=keep)
    finally:  # what is done is in the table, whatever happened to the rest
        boards = write_all(rows_of(out_folder), out_folder, say) if any(out_folder.glob("cells/*/*/*.json")) else []
    if as_json:
        print(json.dumps(boards, indent=1))
    elif boards:
        print((out_folder / "leaderboard.md").read_text(encoding="utf-8"))


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(n.strip() for n in (text or "").split(",") if n.strip())


def _seeds(text: str) -> tuple[int, ...]:
    try:
        out = tuple(int(s) for s in _names(text))
    except ValueError:
        raise InputError(f"--seeds: expected whole numbers with commas, got {text!r}") from None
    if any(not 0 <= s < 2**63 for s in out):
        raise InputError(f"--seeds: expected numbers from 0 to 2^63 - 1, got {text!r}")
    return out


def _concepts(text: str | None, split: str, place: World) -> tuple[str, ...]:
    """The named concepts, or all of the world; of Canvas' those of the split."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if place != CANVAS:
        if split != "all":
            raise InputError(f"--split {split}: only Canvas' concepts are parted into dev and held-out; name yours")
        return _names(text) if text is not None else tuple(n for n in place.concepts if n != place.photo)
    names = _names(text) if text is not None else tuple(canvas.CONCEPTS)
    known = ["+".join(canvas.find(p).name if canvas.known(p) else p for p in n.split("+")) for n in names]
    wanted = tuple(n for n in known if split in ("all", canvas.split(n)))
    if names and not wanted:
        raise InputError(f"none of {', '.join(names)} is of the split {split!r}; dev are {', '.join(canvas.DEV)}")
    return wanted


def _settings(source: str | None) -> dict[str, list[dict[str, Any]]]:
    """By method a list of settings, from JSON or a file of it."""
    if source is None:
        return {}
    is_file = not source.lstrip().startswith("{")
    try:
        value = json.loads(Path(source).read_text(encoding="utf-8") if is_file else source)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--settings: expected a JSON object or a file of it, got {source!r} ({error})") from error
    out = {}
    for method, several in value.items() if isinstance(value, dict) else [("it", value)]:
        each = several if isinstance(several, list) else [several]
        if not isinstance(value, dict) or any(not isinstance(s, dict) for s in each):
            raise InputError(f'--settings: expected {{"method": {{"setting": value}}}}, got {several!r} for {method}')
        out[method] = each
    return out


def _chosen(
    folder: Path, given: dict[str, list[dict[str, Any]]], *, methods: tuple[str, ...], models: tuple[str, ...]
) -> dict[str, list[dict[str, Any]]]:
    """The settings that did best in a benchmark on dev concepts; methods without any keep what was given.

    Raises:
        InputError: settings both given and chosen, or a method that has neither and is no control.
    """
    from ..eval import CONTROLS, best, rows_of

    found = {m: s for m, s in best(rows_of(folder), models).items() if m in methods}
    if clash := sorted(set(found) & set(given)):
        raise InputError(f"the settings of {', '.join(clash)} are both given and chosen by {folder}: leave one out")
    if lacking := [m for m in methods if m not in given | found and m not in CONTROLS]:
        raise InputError(
            f"--chosen {folder} holds no settings of {', '.join(lacking)}: run it there with --split dev too, or say "
            f"--settings '{{\"{lacking[0]}\": {{}}}}' for the preset"
        )
    return given | found
