"""`erasers plan`: what `erasers erase` with the same flags would take."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..prompts import InputError
from ._loading import FLAGS

if TYPE_CHECKING:
    from ..erase import Estimate, Fit

PANEL = "The machine"


def _flags(
    memory: Annotated[
        str | None,
        typer.Option(help="What there is, such as 12GB (of 2^30 bytes). Default: all.", rich_help_panel=PANEL),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(help="Operations a second, such as 4e13. Default: measured.", rich_help_panel=PANEL),
    ] = None,
    remembered: Annotated[
        bool,
        typer.Option("--remembered", help="Prompts are remembered; no text encoder is loaded.", rich_help_panel=PANEL),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None: ...


def plan_like(erase: Callable[..., None]) -> Callable[..., None]:
    """The command `plan`, which takes every flag that `erase` takes, and those of the machine."""

    def plan(**values: Any) -> None:  # noqa: ANN401
        """Say what erasing would take before anything heavy is loaded: memory, time and bytes from the model's configs
        alone, and the flags that would make it fit. The flags are those of `erase`: change that one word.
        """
        _plan({n: values.pop(n, None) for n in known}, values)

    theirs = inspect.signature(erase, eval_str=True).parameters
    known = [n for n, p in theirs.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    own = inspect.signature(_flags, eval_str=True).parameters.values()
    rest = [p for p in theirs.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    given = [theirs[n].replace(kind=inspect.Parameter.KEYWORD_ONLY) for n in known]
    mine = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    plan.__signature__ = inspect.Signature([*given, *mine, *rest])  # type: ignore[attr-defined]
    known += [p.name for p in mine]
    return plan


def _plan(said: dict[str, Any], settings: dict[str, Any]) -> None:
    from dataclasses import fields

    from ..erase import Loop, Machine, Planner, asked, configure, fit, parse_bytes, suited
    from ..erase import concept as known

    reading = {n: said.pop(f"loading_{n}") for n in FLAGS}
    for name, flag in FLAGS.items():
        if name not in ("variant", "revision", "config") and reading[name] != flag.default:
            raise InputError(f"{flag.name}: what it saves is not counted; plan without it, for what it is at most")
    names = [n for n in said["concepts"] or [] if n.strip()]
    if not names:
        raise InputError("no concept given: name what to erase, for example `erasers plan moon`")
    given = {k: v for k, v in settings.items() if v is not None}
    configure(said["method"], said["preset"] or "paper", given)  # refuse a bad setting first
    memory = None if said["memory"] is None else parse_bytes(said["memory"])
    machine = Machine(said["device"], said["dtype"], memory, said["flops"], said["remembered"])
    has = {f.name for f in fields(Loop)}
    how: dict[str, Any] = {k: tuple(v or ()) if k in ("validate", "track") else v for k, v in said.items() if k in has}
    loop = Loop(work=Path("training"), **how)
    planner = Planner(reading["config"] or said["model"])  # a single file's pipeline tells enough
    backbone = planner.blueprint(machine)
    preset = suited(said["method"], said["preset"] or backbone.preset, backbone.family)
    ask = asked(
        planner,
        [known(n, backbone, said["anchor"]) for n in names],
        method=configure(said["method"], preset, given),
        preserve=None if said["preserve"] is None else [p.strip() for p in said["preserve"].split(",") if p.strip()],
        loop=loop,
        machine=machine,
    )
    estimate, room = planner.estimate(ask), machine.room()
    found = None if room is None or estimate.fits(room) else fit(planner, ask, room)
    if said["as_json"]:
        print(json.dumps(_json(estimate, room, found), indent=1, ensure_ascii=False))
    else:
        _show(", ".join(names), estimate, room, found)
    if found is not None and not found.fits:
        raise typer.Exit(1)


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
    table.add_row("weights", amount(sum(e.weights.values())), "", weights)
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
    draws = amount(e.base + sum(e.weights.values()) + e.draws + e.workspace)
    _say(f"drawing an image with the same pipeline takes {draws}")
    if room is None:
        _say("how much memory there is nobody says: name it with --memory")
    elif found is None:
        _say(f"it fits into {amount(room)}")
    elif found.fits:
        _say(f"it does not fit into {amount(room)}; add {' '.join(found.words)}: {amount(found.estimate.memory)}")
    else:
        heavy = amount(sum(found.estimate.weights.values()))
        with_all = f" with {' '.join(found.words)}" if found.words else ""
        least = f"{amount(found.estimate.memory)}{with_all}, {heavy} of it weights"
        _say(f"it does not fit into {amount(room)}, and nothing known makes it: {least}")


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
