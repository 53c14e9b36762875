"""The commands of the protocol: `score`, `convert-judge`, `train-judge`, `unpack`. Thin, as all commands are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..prompts import InputError
from .cli import DeviceOption, ForceOption, JsonOption, _say
from .compare import check_measured, show

if TYPE_CHECKING:
    from ..eval import Judges, Steps
    from ..prompts import World

ProtocolOption = Annotated[str, typer.Option("--protocol", help="unlearncanvas or canvas.")]
KindOption = Annotated[str, typer.Option(help="style or object: what the judge names.")]
JudgesOption = Annotated[
    Path | None,
    typer.Option("--judges", help="Folder with the judges, in object/ and style/. Default: Canvas' own, for canvas."),
]
SeedsOption = Annotated[
    str | None, typer.Option("--seed-list", help="Seeds of the answer set, with commas. Default: the protocol's five.")
]


def load_judges(folder: Path | None, world: World, device: str | None) -> Judges:
    """The judges in a folder, or those that come with Canvas.

    Raises:
        InputError: no folder for a world whose judges do not come with the package.
    """
    from ..eval import Judges
    from ..pipelines import canvas_folder

    if folder is not None:
        return Judges.from_folder(folder, world, device)
    if world.name != "canvas":
        raise InputError(
            f"no judges of {world.name} come with the package: name yours with --judges DIR, made by "
            "`erasers convert-judge` or `erasers train-judge`"
        )
    return Judges(canvas_folder("judge-object"), canvas_folder("judge-style"), world=world, device=device)


def seed_list(text: str | None) -> list[int] | None:
    """Seeds from a list with commas.

    Raises:
        InputError: something else than whole numbers, or one twice.
    """
    if text is None:
        return None
    words = [w.strip() for w in text.split(",") if w.strip()]
    if not words or not all(w.isdigit() for w in words) or len(set(words)) < len(words):
        raise InputError(f"--seed-list: expected different whole numbers with commas, such as 188,288, got {text!r}")
    return [int(w) for w in words]


def score(
    folder: Annotated[Path, typer.Argument(help="Answer set: images named Van_Gogh_Dogs_seed188.jpg.")],
    concept: Annotated[
        list[str] | None,
        typer.Option("--concept", help="What was erased; repeat for several; 'Van Gogh x Dogs' for a combination."),
    ] = None,
    protocol: ProtocolOption = "unlearncanvas",
    judges: JudgesOption = None,
    control: Annotated[Path | None, typer.Option(help="Answer set of the unerased model.")] = None,
    only: Annotated[str | None, typer.Option(help="Evaluators to run, with commas. Default: the judges' own.")] = None,
    seeds: SeedsOption = None,
    real: Annotated[
        Path | None,
        typer.Option(help="The data set, style/object/1.jpg: first measure the judges on images 19, 20."),
    ] = None,
    out_file: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the JSON to this file.")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    device: DeviceOption = None,
) -> None:
    """Score an answer set made elsewhere: UA, IRA, CRA and the rest, by the protocol's judges. It must be whole."""
    from ..erase import check_target, write_text
    from ..eval import find, measure, score_answers
    from ..prompts import world

    place = world(protocol)
    names = [n.strip() for n in only.split(",") if n.strip()] if only else None
    for name in names or ():
        find(name)
    if out_file is not None:
        check_target(out_file, force)
    tools = load_judges(judges, place, device)
    if real is not None:
        if judges is None:
            raise InputError("--real measures judges of your own: name them with --judges")
        measure(tools, real)
    report = score_answers(folder, tools, concepts=concept or (), control=control, only=names, seeds=seed_list(seeds))
    check_measured(report.scores)
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
    if out_file is not None:
        write_text(out_file, text)
    if as_json:
        print(text)
        return
    told = report.settings
    show(f"{', '.join(told['concepts'])}: {folder.name}", report.scores)
    if not told["protocol"]["whole"]:
        side = " x ".join(str(n) for n in told["protocol"]["pixels"])
        _say(f"not the whole protocol: seeds {told['protocol']['seeds']}, {side} pixels")
    say_judges(told)


def say_judges(told: Mapping[str, Any]) -> None:
    """How often the judges are right, which every figure of theirs rests on."""
    for name, key in (("real", "judge accuracy on real images"), ("unerased", "judge accuracy on the unerased model")):
        _say(f"judges on {name} images: {json.dumps(told[key]) if isinstance(told[key], dict) else told[key]}")


def convert_judge(
    source: Annotated[Path, typer.Argument(help="timm ViT checkpoint, such as style50.pth. Opened as tensors only.")],
    kind: KindOption,
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the judges; the kind names a sub-folder.")],
    protocol: ProtocolOption = "unlearncanvas",
    heads: Annotated[int | None, typer.Option(help="Attention heads. Default: width / 64.", min=1)] = None,
    force: ForceOption = False,
) -> None:
    """Make a judge for `score` of a published checkpoint: safetensors, a config with labels, no pickle any more."""
    from ..eval import convert_judge as run
    from ..prompts import world

    made = run(source, out_folder, kind=kind, world=world(protocol), heads=heads, force=force)
    _say(f"{kind} judge in {made}; its accuracy on real images is not known yet: `erasers score ... --real DATA`")


def train_judge(
    data: Annotated[Path, typer.Argument(help="The data set, style/object/1.jpg to 20.jpg (see `erasers unpack`).")],
    kind: KindOption,
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the judges; the kind names a sub-folder.")],
    protocol: ProtocolOption = "unlearncanvas",
    start: Annotated[str, typer.Option(help="A transformers image classifier to start from. Default: scratch.")] = "",
    epochs: Annotated[int, typer.Option(help="Passes over images 1 to 18.", min=1)] = 5,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-4,
    batch: Annotated[int, typer.Option(help="Images a step.", min=1)] = 32,
    seed: Annotated[int, typer.Option(help="Of order, flips and new weights.", min=0)] = 0,
    side: Annotated[int, typer.Option(help="Pixels images are resized to. Default: the start's, else 224.", min=0)] = 0,
    device: DeviceOption = None,
) -> None:
    """Train a judge on a copy of the data set: images 1 to 18 train, 19 and 20 test; the accuracy is kept beside it."""
    from ..eval import Lesson
    from ..eval import train_judge as run
    from ..prompts import world

    lesson = Lesson(start, epochs, lr, batch, seed, side)
    made = run(data, out_folder, kind=kind, lesson=lesson, world=world(protocol), device=device)
    told = json.loads((made / "judge.json").read_text())["accuracy on real images"]
    _say(f"{kind} judge in {made}: {told['value']} % of {told['n']} test images ({told['low']} .. {told['high']})")


def unpack(
    files: Annotated[list[Path], typer.Argument(help="Parquet files of UnlearnCanvas from the Hub.")],
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, style/object/1.jpg.")],
    force: ForceOption = False,
) -> None:
    """Lay UnlearnCanvas out as folders, for `train-judge`, `score --real` and `erase --forget-images`."""
    from ..eval import lacking
    from ..eval import unpack as run

    made = run(files, out_folder, force=force)
    _say(f"{made}: {(made / 'unlearncanvas.txt').read_text(encoding='utf-8').strip()}")
    if lack := lacking(made):
        _say(f"not the whole data set: {lack}; name all of its parquet files in one command")


def steps_table(done: Steps, score: str, title: str) -> Table:
    """Sequential erasure by one score: a row for each step and concept, beside the unerased model's."""
    rows = [(r, done.reports[r["step"] - 1].by_concept[r["concept"]][score].to_json()) for r in done.table(score)]
    unit = next((s["unit"] for _, s in rows if "unit" in s), "")
    digits = 1 if unit == "%" else 3
    table = Table(title=title)
    for column in ("step", "concept", "erased at", f"{score}, {unit}" if unit else score):
        table.add_column(column, justify="left" if column == "concept" else "right")
    for column in ("95 % interval", "n", "unerased", "rebound"):
        table.add_column(column, justify="right")
    for r, s in rows:
        head = str(r["step"]), str(r["concept"]), str(r["erased at"])
        if "reason" in s:
            table.add_row(*head, "-", s["reason"])
            continue
        value, low, high = (f"{s[k]:.{digits}f}" for k in ("value", "low", "high"))
        control = "-" if s["control"] is None else f"{s['control']:.{digits}f}"
        table.add_row(*head, value, f"{low} .. {high}", str(s["n"]), control, f"{r['rebound']:+.{digits}f}")
    return table
