"""The flags that say how a model is read and where its parts live: the same for every command that loads one."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from ..pipelines import Loading

PANEL = "Loading the model (what each costs and excludes: docs/loading.md)"


class Flag(NamedTuple):
    """One flag: its name, the kind of its value, its help, and what it is when it is not given."""

    name: str
    kind: Any
    help: str
    default: str | bool | None


FLAGS = {
    "variant": Flag("--model-variant", str | None, "Which files of weights, such as fp16.", None),
    "revision": Flag("--model-revision", str | None, "Branch, tag or commit of a Hub id.", None),
    "config": Flag("--model-config", str | None, "Of a single file: the folder or Hub id of its pipeline.", None),
    "quantize": Flag(
        "--quantize", str, "Read weights into few bits: bnb4, bnb8 (a GPU), ao-int8, ao-float8, or none.", "none"
    ),
    "offload": Flag(
        "--offload", str, "Keep on the GPU only the part (model) or the layer (sequential) that computes.", "none"
    ),
    "attention_slicing": Flag("--attention-slicing", bool, "Attention in slices: less memory (UNets).", False),
    "vae_slicing": Flag("--vae-slicing", bool, "Decode images one by one: less memory.", False),
    "vae_tiling": Flag("--vae-tiling", bool, "Decode large images in tiles: less memory.", False),
    "compile": Flag("--compile", str, "Draw through torch.compile with this backend, such as inductor.", ""),
}
"""The flag of each field of `Loading`."""


def loads(command: Callable[..., None]) -> Callable[..., None]:
    """A command that is given `reading`, a mapping for `loading`, with these flags in its place."""

    def with_flags(**values: Any) -> None:  # noqa: ANN401
        reading = {name: values.pop(f"loading_{name}", flag.default) for name, flag in FLAGS.items()}
        command(**values, reading=reading)

    signature = inspect.signature(command, eval_str=True)
    plain = [p for p in signature.parameters.values() if p.name != "reading"]
    rest = [p for p in plain if p.kind is inspect.Parameter.VAR_KEYWORD]
    only = inspect.Parameter.KEYWORD_ONLY
    flags = []
    for name, flag in FLAGS.items():
        kind: Any = flag.kind
        note = Annotated[kind, typer.Option(flag.name, help=flag.help, rich_help_panel=PANEL)]
        flags.append(inspect.Parameter(f"loading_{name}", only, default=flag.default, annotation=note))
    named = [p.replace(kind=only) for p in plain if p not in rest]
    with_flags.__signature__ = inspect.Signature([*named, *flags, *rest])  # type: ignore[attr-defined]
    with_flags.__annotations__ = {p.name: p.annotation for p in [*named, *flags]}
    with_flags.__doc__, with_flags.__name__ = command.__doc__, command.__name__
    return with_flags


def words(reading: Mapping[str, Any], *, dtype: str | None = None, device: str | None = None) -> str:
    """The flags that were given, as a command repeats them; a space before each."""
    given: list[tuple[str, Any]] = [(n, v) for n, v in (("--dtype", dtype), ("--device", device)) if v is not None]
    given += [(flag.name, reading[n]) for n, flag in FLAGS.items() if reading[n] != flag.default]
    return "".join(f" {name}" if value is True else f" {name} {shlex.quote(str(value))}" for name, value in given)


def loading(reading: Mapping[str, Any]) -> Loading:
    """The flags together.

    Raises:
        InputError: an unknown choice, or choices that exclude each other.
    """
    from ..pipelines import Loading

    return Loading(**reading)
