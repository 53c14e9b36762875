"""`erasers`: the program and its commands on erasers; those on galleries, answer sets, benchmarks and reports lie in
files of their own. Heavy imports wait inside the commands.
"""

from __future__ import annotations

import inspect as inspection
import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..prompts import InputError, first_line, out_of_memory, unknown
from ._benchmark import benchmark
from ._loading import loading, loads, words
from ._report import report
from ._spare import spares

if TYPE_CHECKING:
    from ..erase import Eraser
    from ..eval import Sampling
    from ..pipelines import Backbone
    from ..prompts import Prompt, World

DEFAULT_METHOD = "uce"
DEMO = "canvas-demo"  # the prompts that are drawn where none are named
LOOP = "Training (trained methods)"
INTERRUPTED = 130  # what a program that was interrupted exits with; typer returns it too
USAGE: Any = typer.BadParameter.__mro__[2]  # typer's base of all complaints about the words of a command
out = Console()
err = Console(stderr=True)

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Bundled name (`erasers list models`), diffusers folder, Hub id or single file."
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, float16 or bfloat16. Default: float32 on a CPU, half precision on a GPU."),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, ... Default: a GPU where there is one.")
]
EmbeddingsOption = Annotated[
    Path | None,
    typer.Option("--embeddings", help="Prompts that `erasers remember` has encoded: no text encoder is loaded."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an output that exists already.")]
StepsOption = Annotated[int | None, typer.Option(help="Sampler steps. Default: what suits the model.", min=1, max=1000)]
GuidanceOption = Annotated[float | None, typer.Option(help="Guidance scale, 1 is off. Default: what suits the model.")]
ErasersOption = Annotated[
    list[str] | None,
    typer.Option("--eraser", "-e", help="Eraser folder, file or Hub id (owner/name@REVISION); repeat for several."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of an evaluator, such as fid.reference=FOLDER; repeat for several."),
]
PromptsOption = Annotated[
    str | None, typer.Option("--prompts", "-p", help="Named set (`erasers list prompts`) or a CSV with a text column.")
]


@loads
def erase(
    concepts: Annotated[list[str] | None, typer.Argument(help="What to erase, one or several names.")] = None,
    model: ModelOption = "canvas-sd",
    method: Annotated[
        str, typer.Option(help="Method (see `erasers list methods`) or your own as package.module:Class.")
    ] = DEFAULT_METHOD,
    preset: Annotated[
        str | None, typer.Option(help="Settings to start from, such as paper. Default: what suits the model.")
    ] = None,
    anchor: Annotated[
        str | None, typer.Option(help="What to draw instead, '' for nothing. Default: the known anchor, else nothing.")
    ] = None,
    preserve: Annotated[
        str | None, typer.Option(help="Names to protect, with commas. Default: on Canvas all others, else neighbours.")
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            help="Eraser (a LoRA) on top of which to make this one, for use beside it; repeat, in their order."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw (a whole number).", min=0, max=2**63 - 1)] = 0,
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write. Default: eraser-CONCEPT-METHOD.")
    ] = None,
    force: ForceOption = False,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    embeddings: EmbeddingsOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.", rich_help_panel=LOOP)
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away an unfinished run's checkpoints.", rich_help_panel=LOOP)
    ] = False,
    checkpoint_every: Annotated[
        int, typer.Option(help="Steps between checkpoints, in OUT.training; 0: none.", min=0, rich_help_panel=LOOP)
    ] = 100,
    validate_every: Annotated[
        int, typer.Option(help="Steps between validation images; 0: none.", min=0, rich_help_panel=LOOP)
    ] = 0,
    validate: Annotated[
        list[str] | None,
        typer.Option(help="What to draw then, once a prompt. Default: the concepts.", rich_help_panel=LOOP),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Log to tensorboard or wandb; repeat for both.", rich_help_panel=LOOP),
    ] = None,
    mixed_precision: Annotated[str, typer.Option(help="auto, no, fp16 (GPU) or bf16.", rich_help_panel=LOOP)] = "auto",
    accumulate: Annotated[
        int,
        typer.Option(help="Parts in which a batch is computed: less memory, same result.", min=1, rich_help_panel=LOOP),
    ] = 1,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=LOOP),
    ] = False,
    optimizer: Annotated[
        str,
        typer.Option(
            help="adam, or adam8bit: moments in a quarter of the memory (bitsandbytes).", rich_help_panel=LOOP
        ),
    ] = "adam",
    divergence: Annotated[
        float,
        typer.Option(help="Stop when the loss is this many times its start; 0: never.", min=0, rich_help_panel=LOOP),
    ] = 1000.0,
    *,
    reading: Mapping[str, Any],
    **settings: Any,  # noqa: ANN401
) -> None:
    """Remove concepts from a model and write the eraser. A trained method keeps its checkpoints, log and validation
    images in OUT.training; `torchrun --nproc_per_node N -m erasers.app.cli erase ...` trains in N processes.
    """
    names = concepts or []
    if not names:
        raise InputError("no concept given: name what to erase, for example `erasers erase moon`")
    for name in names:
        if not name.strip():
            raise InputError(f"expected a concept name, got {name!r}: name what to erase, for example moon")
    folder = out_folder or Path(
        f"eraser-{'-'.join(names)}-{method.rpartition(':')[2]}".replace(" ", "_").replace("/", "_").replace(":", "-")
    )
    from ..erase import (
        CONFIG_FILE,
        Loop,
        check_below,
        check_target,
        checkpoints,
        configure,
        main_process,
        suited,
        write_text,
    )
    from ..erase import concept as known
    from ..erase import erase as run
    from ..erase import to_preserve as remedy
    from ..eval import COST_FILE, Cost

    if not folder.name:
        raise InputError(f"--out: expected the name of a new folder, got {str(folder)!r}")
    check_target(folder, force, holds=CONFIG_FILE)
    given = {k: v for k, v in settings.items() if v is not None}
    configure(method, preset or "paper", given)  # refuse a bad setting before anything heavy is loaded
    work = folder.with_name(f"{folder.name}.training")
    loop = Loop(
        work=work,
        resume=resume,
        restart=restart,
        checkpoint_every=checkpoint_every,
        validate_every=validate_every,
        validate=tuple(validate or ()),
        track=tuple(track or ()),  # type: ignore[arg-type]
        mixed_precision=mixed_precision,  # type: ignore[arg-type]
        accumulate=accumulate,
        gradient_checkpointing=gradient_checkpointing,
        optimizer=optimizer,  # type: ignore[arg-type]
        divergence=divergence,
    )
    if folder.resolve() in [Path(e).resolve() for e in on or ()]:
        raise InputError(f"--out {folder} is an eraser to make this one on top of: choose another place")
    check_below(below := _erasers(on))
    backbone = _load(model, dtype, device, reading, embeddings)
    tool = configure(method, suited(method, preset or backbone.preset, backbone.family), given)
    kept = None if preserve is None else [p.strip() for p in preserve.split(",") if p.strip()]
    with Cost() as cost:
        eraser = run(
            [known(n, backbone, anchor) for n in names],
            backbone,
            method=tool,
            preserve=kept,
            seed=seed,
            loop=loop,
            on=below,
        )
    if not main_process():
        return
    eraser.save_pretrained(folder, force=force, verify=backbone)
    write_text(folder / COST_FILE, json.dumps(cost.to_json()))
    for path in checkpoints(work) if eraser.recipe.training else ():  # a closed form's neighbour may be another run
        path.unlink()
    size = (folder / eraser.payload.file).stat().st_size
    _say(
        f"{', '.join(eraser.recipe.names)} erased from {backbone.name} by {method} in {cost.seconds:.2f} s: "
        f"{eraser.payload.summary()}, {size / 1e6:.2f} MB, in {folder}"
    )
    base = f"--model {shlex.quote(model)}{words(reading, dtype=dtype, device=device)}"
    if embeddings is not None and not backbone.unencodable([p.text for p in _prompts(None, None)]):
        base += f" --embeddings {shlex.quote(str(embeddings))}"
    mine = " ".join(f"--eraser {shlex.quote(str(e))}" for e in (*(on or ()), folder))
    if on and backbone.world == "canvas" and embeddings is None:
        _say(f"next: erasers evaluate --sequential {base} {mine}")
    elif on:
        _say(f"next: erasers draw {base} {mine} --out drawn")
    else:
        _say(f"next: erasers grid {base} {mine} --out grid.png")
    if kept and (change := remedy(tool)):
        _warn(f"--preserve changed nothing: {method} with these settings reads no preserved names; {change}")


@loads
def draw(
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images and their manifest.")],
    model: ModelOption = "canvas-sd",
    eraser: ErasersOption = None,
    prompts: PromptsOption = None,
    seeds: Annotated[
        int | None, typer.Option(help="Draw each prompt with seeds 0 to N-1 instead of its own seed.", min=1)
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="Draw the answer set of unlearncanvas or canvas, its sampling, file names and JPEG."),
    ] = None,
    seed_list: Annotated[
        str | None, typer.Option(help="With --protocol: fewer seeds, with commas. Default: its five.")
    ] = None,
    noise: Annotated[
        str,
        typer.Option(help="image: each image draws its noise from its seed; sequence: one generator a seed, in order."),
    ] = "image",
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="With erasers: draw the unerased side too.")
    ] = True,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, dpm++, euler, pndm. Default: what suits.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images drawn at once.", min=1, max=4096)] = None,
    force: ForceOption = False,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    embeddings: EmbeddingsOption = None,
    *,
    reading: Mapping[str, Any],
) -> None:
    """Draw a prompt set; with erasers on, into OUT/erased, and beside it the unerased control in OUT/original. After a
    kill the same command goes on; `torchrun --nproc_per_node N -m erasers.app.cli draw ...` shares the work.
    """
    from ..eval import check_remembered, clear, collect
    from .answers import seed_list as numbers

    place = _world(protocol, prompts, seeds, seed_list)
    wanted = place.answers(numbers(seed_list)) if place else _prompts(prompts, seeds)
    sides = {"erased": out_folder / "erased"} if eraser else {"": out_folder}
    if eraser and control:
        sides = {"original": out_folder / "original", **sides}
    loaded = _erasers(eraser)
    backbone = _load(model, dtype, device, reading, embeddings)
    check_remembered(backbone, wanted, [protocol or prompts or DEMO])
    given = {"steps": steps, "guidance": guidance, "sampler": sampler, "batch": batch, "noise": noise}
    how = _chosen(backbone, place, given)
    for one in loaded:
        one.check_base(backbone)
    names = [place.file(p) for p in wanted] if place else None
    first = int(os.environ.get("RANK", "0")) == 0
    for side, folder in sides.items():
        if force and first:
            clear(folder)
        on = loaded if side == "erased" else ()
        gallery = collect(folder, backbone, prompts=wanted, erasers=on, how=how, names=names)
        if first:
            _say(f"{len(gallery.images)} images in {folder}, {gallery.manifest['seconds']:.1f} s")


def _world(protocol: str | None, prompts: str | None, seeds: int | None, seed_list: str | None) -> World | None:
    from ..prompts import world

    if protocol is None:
        if seed_list is not None:
            raise InputError("--seed-list names seeds of a protocol: add --protocol, or use --seeds N")
        return None
    if prompts is not None or seeds is not None:
        raise InputError("a protocol has its own prompts and seeds: leave out --prompts and --seeds")
    return world(protocol)


def _chosen(backbone: Backbone, place: World | None, given: dict[str, Any]) -> Sampling:
    """A protocol's sampling, or what suits the model, with what the user says in its place."""
    from dataclasses import replace

    from ..eval import protocol_sampling, sampling

    how = sampling(backbone) if place is None else protocol_sampling(place, backbone)
    return replace(how, **{k: v for k, v in given.items() if v is not None})


@loads
def grid(
    out_file: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")],
    model: ModelOption = "canvas-sd",
    eraser: ErasersOption = None,
    prompts: PromptsOption = None,
    cell: Annotated[int, typer.Option(help="Side of one image in pixels.", min=64, max=1024)] = 128,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    force: ForceOption = False,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    embeddings: EmbeddingsOption = None,
    *,
    reading: Mapping[str, Any],
) -> None:
    """Draw original and erased side by side: rows are prompts, columns the original and each eraser."""
    if not eraser:
        raise InputError("no eraser given: name at least one with --eraser FOLDER")
    from ..erase import check_target
    from ..eval import check_remembered, save_image
    from ..eval import draw as run
    from ..eval import grid as sheet

    if out_file.suffix.lower() != ".png":
        raise InputError(f"--out: expected a file name ending in .png, got {str(out_file)!r}")
    check_target(out_file, force)
    wanted = _prompts(prompts, None)
    loaded = _erasers(eraser)
    backbone = _load(model, dtype, device, reading, embeddings)
    check_remembered(backbone, wanted, [prompts or DEMO])
    how = _sampling(backbone, steps, guidance)
    columns = {"original": run(backbone, wanted, how=how, label="original").images}
    for k, one in enumerate(loaded, start=1):
        title = f"{', '.join(one.recipe.names)} ({one.recipe.method})"
        title = f"{k}: {title}" if title in columns else title
        columns[title] = run(backbone, wanted, [one], how=how, label=title).images
    save_image(sheet(columns, [f"{p.text} ({p.seed})" for p in wanted], cell=cell, title=backbone.name), out_file)
    _say(f"{len(wanted)} rows x {len(columns)} columns in {out_file}")


@loads
def evaluate(
    model: ModelOption = "canvas-sd",
    eraser: ErasersOption = None,
    only: Annotated[
        str | None,
        typer.Option(help="Evaluators, with commas (`erasers list evaluators`). Default: all quick ones."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="The model's world: canvas, or unlearncanvas with --judges. Default: its own."),
    ] = None,
    judges: Annotated[
        Path | None,
        typer.Option("--judges", help="Folder with judges, in object/ and style/. Default: Canvas' own."),
    ] = None,
    every_seed: Annotated[
        bool,
        typer.Option("--every-seed", help="Draw all cells with every seed, as published."),
    ] = False,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential",
            help="Attach erasers one after the other (see erase --on); UA of all earlier ones each time.",
        ),
    ] = False,
    settings: SetOption = None,
    keep: Annotated[Path | None, typer.Option(help="Folder in which to keep both galleries.")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the JSON to this file.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Also write the scores into the eraser itself: its header and model card.")
    ] = False,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    embeddings: EmbeddingsOption = None,
    *,
    reading: Mapping[str, Any],
) -> None:
    """Score forgetting and retaining, paired with the unerased model. Several erasers are scored as one stack."""
    if not eraser:
        raise InputError("no eraser given: name at least one with --eraser FOLDER")
    if record and (len(eraser) > 1 or not Path(eraser[0]).exists()):
        raise InputError("--record writes the scores of one eraser into its own folder or file here: name just that")
    from ..erase import Eraser, check_target, write_text
    from ..eval import Control, choose, cost_of
    from ..eval import evaluate as run

    names = [n.strip() for n in only.split(",") if n.strip()] if only else None
    tools = choose(names or (["ua"] if sequential else None), settings or ())
    if out_file is not None:
        check_target(out_file, force)
    loaded = _erasers(eraser)
    backbone = _load(model, dtype, device, reading, embeddings)
    for one in loaded:
        one.check_base(backbone)
    from ..prompts import CANVAS, UNLEARN_CANVAS
    from ..prompts import world as find_world

    place = find_world(protocol) if protocol else UNLEARN_CANVAS if judges is not None else None
    seers = None
    if place not in (None, CANVAS) or judges is not None:
        from .answers import load_judges

        seers = load_judges(judges, place or CANVAS, device)
    how = _chosen(backbone, None if seers is None else place, {"steps": steps, "guidance": guidance})
    side = Control(backbone, how, judges=seers, every_seed=every_seed)
    if sequential:
        from ..eval import in_sequence
        from .answers import say_judges, steps_table
        from .compare import say_how

        if keep is not None:
            raise InputError("--sequential keeps no galleries: leave out --keep")
        done = in_sequence(loaded, backbone, only=tools, control=side)
        rows = done.table(next(iter(tools)))
        text = json.dumps(
            {"on top": done.on_top, "steps": rows, "reports": [r.to_json() for r in done.reports]},
            indent=1,
            ensure_ascii=False,
        )
        if out_file is not None:
            write_text(out_file, text)
        if as_json:
            print(text)
            return
        later = done.on_top[1:]
        how_made = "each made on top of those before" if all(later) else "some made on top of those before"
        how_made = how_made if any(later) else "each made alone on the base"
        for name in tools:
            out.print(steps_table(done, name, f"{len(loaded)} erasers in sequence on {backbone.name}, {how_made}"))
        say_how(done.reports[-1].scores)
        say_judges(done.reports[-1].settings)
        return
    report = run(loaded, backbone, only=tools, control=side, keep=keep, force=force)
    report.settings["cost"] = [cost_of(Path(e)) or "not recorded" for e in eraser]
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
    if out_file is not None:
        write_text(out_file, text)
    if as_json:
        print(text)
    else:
        from .answers import say_judges
        from .compare import show

        show(f"{', '.join(c for e in loaded for c in e.recipe.names)} on {backbone.name}", report.scores)
        say_judges(report.settings)
    from .compare import check_measured

    check_measured(report.scores)
    if record:  # last: whatever comes of it, the scores were told
        Eraser.record_scores(eraser[0], report.summary())


@loads
def export(
    eraser: Annotated[str, typer.Argument(help="Eraser folder, file or Hub id.")],
    to: Annotated[
        str,
        typer.Option(
            help="peft (diffusers), kohya (ComfyUI, A1111, diffusers), lycoris (ComfyUI, A1111; of a delta), or "
            "component (the whole denoiser)."
        ),
    ],
    out_file: Annotated[
        Path, typer.Option("--out", "-o", help="File to write, ending in .safetensors; for component a folder.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The base model, for component, for a delta, and for --prompt.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Make a LoRA of a delta: of this rank (singular values).")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Make a LoRA of a delta: that holds this share of each layer's change.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Write the LoRA that a hypernetwork makes for this prompt; it acts on every one.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16 or bfloat16 weights. Default: the eraser's, or the loaded model's."),
    ] = None,
    force: ForceOption = False,
    device: DeviceOption = None,
    *,
    reading: Mapping[str, Any],
) -> None:
    """Write an eraser for another app: one LoRA file, or the denoiser with the update in it."""
    from ..pipelines import DTYPES

    if dtype is not None and dtype not in DTYPES:
        raise unknown("--dtype", dtype, DTYPES)
    _refuse_unread(model, words(reading, device=device))
    loaded = _erasers([eraser])[0]
    exact = to == "lycoris" or rank is not None or energy is not None  # the files' precision is another matter
    base = None if model is None else _load(model, "float32" if exact else dtype, device, reading)
    kind = DTYPES[dtype] if dtype else None
    if prompt is not None:
        if base is None:
            raise InputError("a hypernetwork reads the prompt as the base encodes it: name that with --model")
        loaded = loaded.materialize(base, prompt)
    if rank is not None or energy is not None:
        if base is None:
            raise InputError("a LoRA of a delta is made of its difference from the base: name that with --model")
        loaded = loaded.to_lora(base, rank=rank, energy=energy)
    loaded.export(out_file, to, dtype=kind, base=base, force=force)  # type: ignore[arg-type]
    files = [out_file] if out_file.is_file() else list(out_file.glob("*.safetensors"))
    held = "".join(f", {k}: {v}" for k, v in loaded.recipe.derived.items())
    _say(f"{out_file}: {sum(f.stat().st_size for f in files) / 1e6:.2f} MB, {to}{held}")


@loads
def push(
    eraser: Annotated[str, typer.Argument(help="Eraser folder or file.")],
    repo: Annotated[str, typer.Argument(help="Where to: owner/name on the Hub, made if it is not there.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private; refuse one that is public.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="A branch of it, made if it is not there.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The base model: load the eraser into it before uploading.")
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    *,
    reading: Mapping[str, Any],
) -> None:
    """Upload an eraser to the Hugging Face Hub with its model card. Log in first: `hf auth login`, or HF_TOKEN."""
    _refuse_unread(model, words(reading, dtype=dtype, device=device))
    loaded = _erasers([eraser])[0]
    base = None if model is None else _load(model, dtype, device, reading)
    with err.status(f"uploading to {repo}"):
        address = loaded.push_to_hub(repo, private=private, revision=revision, verify=base)
    _say(address)


def inspect(
    files: Annotated[list[str], typer.Argument(help="Eraser folders or LoRA files.")],
    as_json: JsonOption = False,
) -> None:
    """Say what is in an eraser: concepts, method, layers, rank, size, norms. With several: how each two of them overlap
    and what their sum comes to.
    """
    from itertools import combinations

    from ..erase import describe, overlap

    found = [describe(f) for f in files]
    for a, b in combinations(files, 2):
        try:
            found.append(overlap(a, b))
        except InputError as error:  # a LoRA of somebody else's, or erasers of two kinds
            found.append({"pair": [a, b], "not compared": str(error)})
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for item in found:
        title = item.get("path") or " and ".join(item["pair"])
        table = Table(title=escape(title), show_header=False, title_justify="left")
        for key, value in item.items():
            if key not in ("path", "pair"):
                table.add_row(key, escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
        out.print(table)


def list_(
    what: Annotated[str, typer.Argument(help="models, methods, evaluators or prompts.")],
    as_json: JsonOption = False,
) -> None:
    """List what is there to choose from."""
    kinds: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "models": _list_models,
        "methods": _list_methods,
        "evaluators": _list_evaluators,
        "prompts": _list_prompts,
    }
    if what not in kinds:
        raise unknown("list", what, kinds)
    rows = kinds[what]()
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    table = Table(title=what, title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        cells = (", ".join(v) if isinstance(v, dict) else v for v in row.values())
        table.add_row(*(v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in cells))
    out.print(table)


def _list_models() -> list[dict[str, Any]]:
    from ..pipelines import models

    return [vars(m) for m in models()]


def _list_methods() -> list[dict[str, Any]]:
    from ..erase import find, methods

    rows = []
    for name in methods():
        cls = find(name)
        about = (cls.__doc__ or "").strip().splitlines()[0]
        rows.append({"id": name, "paper": cls.paper, "presets": list(cls.presets), "description": about})
    return rows


def _list_evaluators() -> list[dict[str, Any]]:
    from dataclasses import fields

    from ..eval import evaluators
    from ..eval import find as find_evaluator

    unasked = evaluators(unasked=True)
    return [
        {
            "id": n,
            "higher_is_better": tool.higher_is_better,
            "default": n in unasked,
            "settings": {f.name: f.metadata.get("help", "") for f in fields(tool)},  # type: ignore[arg-type]
            "description": tool.about,
        }
        for n in evaluators()
        if (tool := find_evaluator(n)())
    ]


def _list_prompts() -> list[dict[str, Any]]:
    from ..prompts import SETS

    return [{"id": name, "description": about} for name, (about, _) in SETS.items()]


# ---------------------------------------------------------------- shared steps


def _load(
    model: str, dtype: str | None, device: str | None, reading: Mapping[str, Any], embeddings: Path | None = None
) -> Backbone:
    from ..pipelines import load

    wanted = loading(reading)
    with err.status(f"loading {model}"):
        return load(model, dtype=dtype, device=device, how=wanted, embeddings=embeddings)


def _erasers(sources: list[str] | None) -> list[Eraser]:
    from ..erase import Eraser

    out = []
    for source in sources or ():
        name, at, revision = ("", "", "") if Path(source).exists() else source.partition("@")
        if at and not revision:
            raise InputError(f"{source}: expected a branch, a tag or a commit after the @, got nothing")
        out.append(Eraser.from_pretrained(name, revision=revision) if at else Eraser.from_pretrained(source))
    return out


def _refuse_unread(model: str | None, flags: str) -> None:
    """Refuse flags that say how a base model is loaded where none is."""
    if model is None and flags:
        raise InputError(f"{flags.strip()}: no base model is loaded here; name it with --model, or leave that out")


def _prompts(source: str | None, seeds: int | None) -> list[Prompt]:
    from dataclasses import replace

    from ..prompts import load

    rows = load(source or DEMO)
    return rows if seeds is None else list(dict.fromkeys(replace(p, seed=s) for p in rows for s in range(seeds)))


def _sampling(backbone: Backbone, steps: int | None, guidance: float | None) -> Any:  # noqa: ANN401
    from dataclasses import replace

    from ..eval import sampling

    given: dict[str, Any] = {k: v for k, v in {"steps": steps, "guidance": guidance}.items() if v is not None}
    return replace(sampling(backbone), **given)


def _say(message: str) -> None:
    out.print(message, markup=False, highlight=False, soft_wrap=True)


def _warn(message: str) -> None:
    err.print(f"erasers: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)


# ---------------------------------------------------------------- the program


def _with_method_flags(args: list[str], verb: Callable[..., None]) -> Callable[..., None]:
    """`erase`, or what takes its flags, with one flag for every setting of the method that the arguments name."""
    name = DEFAULT_METHOD
    for k, word in enumerate(args):
        if word == "--method" and k + 1 < len(args):
            name = args[k + 1]
        elif word.startswith("--method="):
            name = word.partition("=")[2]
    from ..erase import find, options

    def command(**values: Any) -> None:  # noqa: ANN401
        verb(**values)

    signature = inspection.signature(verb, eval_str=True)
    plain = [p for p in signature.parameters.values() if p.kind is not inspection.Parameter.VAR_KEYWORD]
    panel = f"Settings of {name} (defaults before the preset)"
    for one in options(find(name)):
        flag = f"--{one.name.rstrip('_').replace('_', '-')}"
        flags = f"{flag}/--no-{flag[2:]}" if one.type is bool else flag
        default = {"True": "on", "False": "off", "None": "worked out"}.get(str(one.default), one.default)
        text = f"{one.help}. Default: {default}."
        kind: Any = one.type
        note = Annotated[kind | None, typer.Option(flags, help=text, rich_help_panel=panel)]
        plain.append(inspection.Parameter(one.name, inspection.Parameter.KEYWORD_ONLY, default=None, annotation=note))
    command.__signature__ = inspection.Signature(plain)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in plain}
    command.__doc__ = verb.__doc__
    return command


def build(args: list[str]) -> typer.Typer:
    """The program for these arguments; only `erase` and its like look at them, for their method's flags."""
    from . import answers, compare
    from . import plan as planning

    app = typer.Typer(
        help="Remove a concept from a text-to-image pipeline and show what was forgotten and what was kept.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    wants = next((a for a in args if not a.startswith("-")), None)
    like = {"erase": erase, "plan": planning.plan_like(erase), "remember": planning.remember_like(erase)}
    for name, verb in like.items():
        app.command(name)(_with_method_flags(args, verb) if wants == name else _plain(verb))
    for name, command in (
        ("draw", draw),
        ("grid", grid),
        ("evaluate", evaluate),
        ("compare", compare.compare),
        ("export", export),
        ("push", push),
        ("inspect", inspect),
        ("list", list_),
        ("score", answers.score),
        ("convert-judge", answers.convert_judge),
        ("train-judge", answers.train_judge),
        ("unpack", answers.unpack),
        ("benchmark", benchmark),
        ("report", report),
    ):
        app.command(name)(command)
    app.callback()(_version)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(__version__)
        raise typer.Exit


def _version(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


def _plain(verb: Callable[..., None]) -> Callable[..., None]:
    def command() -> None: ...

    command.__doc__ = verb.__doc__
    return command


def main() -> None:
    """Entry point: user mistakes end in one line and exit code 2, never a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.captureWarnings(True)
    for library in ("bitsandbytes", "torch.utils._pytree"):  # which talk when it and torchao are imported
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="FID of")  # the table says it in its own words
    try:
        code = build(sys.argv[1:])(standalone_mode=False)
    except InputError as error:
        _complain(str(error))
    except (typer.Abort, KeyboardInterrupt):  # before what it derives from
        code = INTERRUPTED
    except (RuntimeError, MemoryError, OSError) as error:
        if not out_of_memory(error):
            raise
        _complain(f"out of memory: {first_line(error)[:160]}; {spares(sys.argv[1:], DEFAULT_METHOD)}")
    except USAGE as error:
        if len(sys.argv) == 1:  # nothing was asked for: typer's message is the help
            error.show()
            sys.exit(2)
        _complain(" ".join(error.format_message().split()))
    if code == INTERRUPTED:
        err.print("erasers: interrupted; a training run goes on with the same command and --resume", style="red")
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> NoReturn:
    err.print(f"erasers: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
