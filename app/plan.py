"""`erasers plan`: what `erasers erase` with the same flags would take; `erasers remember`: its prompts, encoded."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..prompts import InputError
from ._loading import FLAGS, loading

if TYPE_CHECKING:
    from ..erase import Estimate, Fit
    from ..pipelines import Backbone
    from ..prompts import Concept

PANEL = "The machine"
COUNTED = ("variant", "revision", "config", "quantize", "offload")
"""Of what says how a model is loaded, what a plan knows of."""


def _flags(
    memory: Annotated[
        str | None,
        typer.Option(help="What there is, such as 12GB (of 2^30 bytes). Default: all.", rich_help_panel=PANEL),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(help="Operations a second by data sheet, such as 4e13. Default: measured.", rich_help_panel=PANEL),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None: ...


def _file(
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="File to write, ending in .safetensors.")] = Path(
        "prompts.safetensors"
    ),
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            "-p",
            help="Encode a named set or a CSV too, for draw and grid; for evaluate plan:canvas:CONCEPT. Repeatable.",
        ),
    ] = None,
) -> None: ...


def plan_like(erase: Callable[..., None]) -> Callable[..., None]:
    """The command `plan`, which takes every flag that `erase` takes, and those of the machine."""
    return _like(
        erase,
        _flags,
        _plan,
        """Say what erasing would take before anything heavy is loaded: memory, time and bytes from the model's configs
        alone, and the flags that would make it fit. The flags are those of `erase`: change that one word.
        """,
    )


def remember_like(erase: Callable[..., None]) -> Callable[..., None]:
    """The command `remember`, which takes every flag that `erase` takes."""
    return _like(
        erase,
        _file,
        _remember,
        """Encode every prompt that erasing would, into one file: `erase --embeddings FILE` then loads no text encoder,
        nor do `draw`, `grid` and `evaluate` with the prompts that --prompts names. The flags are those of `erase`:
        change that one word. The whole model is loaded, if need be with --device cpu.
        """,
    )


def _like(erase: Callable[..., None], own: Callable[..., None], act: Callable[..., None], about: str) -> Any:  # noqa: ANN401
    """A command with the flags of `erase` and of `own`, which come in the place of those of the same name."""

    def command(**values: Any) -> None:  # noqa: ANN401
        act({n: values.pop(n, None) for n in known}, values)

    theirs = inspect.signature(erase, eval_str=True).parameters
    mine = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(own, eval_str=True).parameters.values()
    ]
    known = [p.name for p in mine]
    rest = [p for p in theirs.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    given = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for n, p in theirs.items() if n not in known and p not in rest
    ]
    command.__signature__ = inspect.Signature([*given, *mine, *rest])  # type: ignore[attr-defined]
    command.__doc__ = about
    known += [p.name for p in given]
    return command


def _plan(said: dict[str, Any], settings: dict[str, Any]) -> None:
    from dataclasses import fields

    from ..erase import Loop, Machine, Planner, asked, configure, fit, parse_bytes, suited

    if said["on"]:
        raise InputError(
            "--on: what lies below is not counted (a copy of the weights that it changes); plan without it"
        )
    reading = {n: said.pop(f"loading_{n}") for n in FLAGS}
    how = loading(reading)
    for name, flag in FLAGS.items():
        if name not in COUNTED and reading[name] != flag.default:
            raise InputError(f"{flag.name}: what it saves is not counted; plan without it, for what it is at most")
    given = _settings(said, settings)
    memory = None if said["memory"] is None else parse_bytes(said["memory"])
    # the file of prompts need not be there yet
    known, few = said["embeddings"] is not None, how.quantize
    machine = Machine(said["device"], said["dtype"], memory, said["flops"], known, few, how.offload)
    has = {f.name for f in fields(Loop)}
    own: dict[str, Any] = {k: tuple(v or ()) if k in ("validate", "track") else v for k, v in said.items() if k in has}
    loop = Loop(work=Path("training"), **own)
    planner = Planner(said["model"], how=how)
    backbone = planner.blueprint(machine)
    preset = suited(said["method"], said["preset"] or backbone.preset, backbone.family)
    tool, concepts = configure(said["method"], preset, given), _concepts(said, backbone)
    ask = asked(planner, concepts, method=tool, preserve=_preserve(said), loop=loop, machine=machine)
    estimate, room = planner.estimate(ask), machine.room()
    found = None if room is None or estimate.fits(room) else fit(planner, ask, room)
    if said["as_json"]:
        print(json.dumps(_json(estimate, room, found), indent=1, ensure_ascii=False))
    else:
        _show(", ".join(_names(said)), estimate, room, found)
    if found is not None and not found.fits:
        raise typer.Exit(1)


def _remember(said: dict[str, Any], settings: dict[str, Any]) -> None:
    from ..erase import check_below, check_target, configure, remember, suited
    from .cli import _erasers, _load, _prompts, _say

    reading = {n: said.pop(f"loading_{n}") for n in FLAGS}
    target, given = said["out_folder"], _settings(said, settings)
    if target.suffix != ".safetensors":
        raise InputError(f"--out: expected a file name ending in .safetensors, got {str(target)!r}")
    check_target(target, said["force"])
    if said["embeddings"] is not None:
        raise InputError("--embeddings: that is what is made here; leave it out, or erase with it")
    also = [p.text for source in said["prompts"] or () for p in _prompts(source, None)]
    check_below(below := _erasers(said["on"]))
    backbone = _load(said["model"], said["dtype"], said["device"], reading)
    preset = suited(said["method"], said["preset"] or backbone.preset, backbone.family)
    tool, concepts = configure(said["method"], preset, given), _concepts(said, backbone)
    also += said["validate"] or []
    made = remember(concepts, backbone, method=tool, preserve=_preserve(said), also=also, on=below)
    _say(f"{len(made.states)} prompts of {backbone.name} in {made.save(target)}: add --embeddings {target}")


def _names(said: dict[str, Any]) -> list[str]:
    names = [n for n in said["concepts"] or [] if n.strip()]
    if not names:
        raise InputError("no concept given: name what to erase, for example moon")
    return names


def _settings(said: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The method's settings that were given; what is bad among them is refused before anything else is done."""
    from ..erase import configure

    _names(said)
    given = {k: v for k, v in settings.items() if v is not None}
    configure(said["method"], said["preset"] or "paper", given)
    return given


def _concepts(said: dict[str, Any], backbone: Backbone) -> list[Concept]:
    from ..erase import concept

    return [concept(n, backbone, said["anchor"]) for n in _names(said)]


def _preserve(said: dict[str, Any]) -> list[str] | None:
    return None if said["preserve"] is None else [p.strip() for p in said["preserve"].split(",") if p.strip()]


def _json(estimate: Estimate, room: int | None, found: Fit | None) -> dict[str, Any]:
    out: dict[str, Any] = {"estimate": estimate.to_json(), "room": room}
    out["fits"] = None if room is None else estimate.fits(room)
    if found is not None:
        out["to fit"] = {"flags": list(found.words), "fits": found.fits, "estimate": found.estimate.to_json()}
    return out


def _show(names: str, e: Estimate, room: int | None, found: Fit | None) -> None:
    from rich.table import Table

    from .cli import _say, out

    title = f"{names} from {e.model} ({e.family}) by {e.method} on {e.device}, {e.dtype}: estimated, not measured"
    table = Table(title=title, title_justify="left")
    for column, side in (("", "left"), ("memory", "right"), ("time", "right"), ("what takes it", "left")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    weights = ", ".join(f"{n} {amount(v)}" for n, v in e.weights.items())
    table.add_row("weights", amount(e.highest.weights), "", weights)
    for part in e.parts:
        what = ", ".join(f"{n} {amount(v)}" for n, v in sorted(part.memory.items(), key=lambda x: -x[1])[:4])
        table.add_row(part.name, amount(part.peak), duration(part.seconds), what)
    table.add_row("the process", amount(e.base), "", "libraries" if e.device == "cpu" else "CUDA: an assumption")
    most = f"at its highest point, in {e.highest.name!r}, with what kernels take for a moment"
    table.add_row("in all", amount(e.memory), duration(e.seconds), most)
    out.print(table)
    written = f"{amount(e.written)} in {', '.join(e.files)}"
    work = f"; {amount(e.work)} in the work folder meanwhile" if e.work else ""
    _say(f"{e.learns:,} numbers learn beside {e.parameters:,} of the denoiser; written: {written}{work}")
    if e.waiting:
        _say(f"with --offload {e.offload} up to {amount(e.waiting)} of weights wait in the computer's own memory")
    _say(f"drawing an image with the same pipeline takes {amount(e.drawing)}")
    if room is None:
        _say("how much memory there is nobody says: name it with --memory")
    elif found is None:
        _say(f"it fits into {amount(room)}")
    elif found.fits:
        _say(f"it does not fit into {amount(room)}; add {' '.join(found.words)}: {amount(found.estimate.memory)}")
        if "--embeddings FILE" in found.words:
            _say("FILE is what `erasers remember` writes, with the flags of this command")
        if libraries := extra(found.words):
            _say(f"that needs {' and '.join(libraries)}: pip install 'erasers[{','.join(libraries)}]'")
    else:
        heavy = amount(found.estimate.highest.weights)
        with_all = f" with {' '.join(found.words)}" if found.words else ""
        least = f"{amount(found.estimate.memory)}{with_all}, {heavy} of it weights"
        _say(f"it does not fit into {amount(room)}, and nothing that is counted makes it: {least}")


def extra(words: Sequence[str]) -> list[str]:
    """The libraries that some flags need and that are not installed."""
    said = " ".join(words)
    needed = {"torchao": "--quantize ao-" in said, "bitsandbytes": "bnb" in said or "8bit" in said}
    return [n for n, asked in needed.items() if asked and find_spec(n) is None]


def amount(size: int) -> str:
    """Bytes in words: GB and MB of 2^30 and 2^20."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GB"
    return f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{size / 2**10:.0f} KB"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
