"""What a method is, how it is found, and what it is given."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, get_args, get_type_hints, runtime_checkable

from ..pipelines import Backbone
from ..prompts import Concept, InputError, unknown
from ._delta import Delta
from ._hyper import Hyper
from ._lora import Factors
from ._train import Trainer


@dataclass(frozen=True)
class Task:
    """What is to be done, whatever the method.

    Attributes:
        concepts: what must leave.
        preserve: what must stay; methods protect it explicitly where they can.
        seed: of every draw the method makes.
    """

    concepts: tuple[Concept, ...]
    preserve: tuple[Concept, ...] = ()
    seed: int = 0


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass whose fields are its hyper-parameters: its flags, its saved recipe, its whole state.

    `paper` cites the source; `presets` maps a preset name to the settings that differ from the defaults; every field
    carries `metadata={"help": ...}` with its unit. One that does not always read what is preserved has a property
    `to_preserve`, see the function of that name.
    """

    paper: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]

    def run(self, backbone: Backbone, task: Task) -> Factors | Delta | Hyper | Trainer:
        """The update that erases, in closed form; or what trains it. The backbone is left as it was."""
        ...


def methods() -> list[str]:
    """The names of the methods in this folder: every file without a leading underscore."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.name.startswith("_"))


def find(name: str) -> type[Method]:
    """The class behind a method's name, or behind "my_lab.my_method:Project" for one of your own.

    Raises:
        InputError: no such method, or the class is not a frozen dataclass with `paper`, `presets` and `run`.
    """
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        try:
            cls = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"cannot import method {name!r}: {error}; expected 'package.module:Class'") from error
        return _checked(cls, name)
    if name not in methods():
        raise unknown("method", name, methods())
    module = importlib.import_module(f"{__package__}.{name}")
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    return _checked(next(c for c in own if hasattr(c, "run")), name)


def _checked(cls: Any, name: str) -> type[Method]:  # noqa: ANN401
    missing = [a for a in ("paper", "presets", "run") if not hasattr(cls, a)]
    if missing or not is_dataclass(cls) or not getattr(cls, "__dataclass_params__").frozen:  # noqa: B009
        raise InputError(
            f"{name} is no method: expected a frozen dataclass with paper, presets and run; lacks {missing}"
        )
    return cls  # type: ignore[return-value]


def name_of(tool: Method) -> str:
    """The name under which `find` finds a method's class."""
    cls = type(tool)
    package, _, module = cls.__module__.rpartition(".")
    return module if package == __package__ else f"{cls.__module__}:{cls.__name__}"


def to_preserve(tool: Method) -> str:
    """What would let preserved names have a part in a method's run, such as "add --keep 1"; "" where they have one, and
    of a method that does not say.
    """
    return str(getattr(tool, "to_preserve", ""))


def settings_of(tool: Method) -> dict[str, Any]:
    """Every setting of a method, as JSON values."""
    return asdict(tool)  # type: ignore[call-overload,no-any-return]


def configure(name: str, preset: str, settings: Mapping[str, Any]) -> Method:
    """A method with a preset's settings, changed by the user's own. A preset with a dash ("paper-sdxl", "canvas-flow")
    says what differs from the one before it ("paper", "canvas"). Of "canvas-flow" a method may have none.

    Raises:
        InputError: unknown method, preset or setting, or a value the method refuses.
    """
    cls = find(name)
    first = preset.partition("-")[0]
    if preset not in cls.presets and (preset, first in cls.presets) != ("canvas-flow", True):
        raise unknown(f"preset of {name}", preset, cls.presets)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            raise unknown(f"setting of {name}", key, known)
    return cls(**{**cls.presets.get(first, {}), **cls.presets.get(preset, {}), **settings})


def suited(name: str, preset: str, family: str) -> str:
    """The preset of a method that is meant for a family: "paper-sdxl" in the place of "paper", where there is one."""
    own = f"{preset}-{family}"
    return own if own in find(name).presets else preset


@dataclass(frozen=True)
class Option:
    """One setting of a method: its name, the type of its values, its default (None: worked out), and its help."""

    name: str
    type: type
    default: Any
    help: str


def options(cls: type[Method]) -> list[Option]:
    """Every setting of a method, in the order of its file."""
    hints = get_type_hints(cls)
    out = []
    for f in fields(cls):  # type: ignore[arg-type]
        kinds = [k for k in get_args(hints[f.name]) or (hints[f.name],) if k is not type(None)]
        kind = kinds[0] if isinstance(kinds[0], type) else type(kinds[0])  # Literal["a", ...] takes str
        default = None if f.default is MISSING else f.default
        out.append(Option(f.name, kind, default, f.metadata.get("help", "")))
    return out
