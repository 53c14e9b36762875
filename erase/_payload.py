"""What every kind of eraser content can do; `_lora.py`, `_delta.py` and `_hyper.py` are the kinds there are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from ..pipelines import Backbone
from ._recipe import Recipe

Undo = Callable[[], None]


@runtime_checkable
class Payload(Protocol):
    """The numbers of an eraser, and how they get into a network and out again."""

    kind: ClassVar[str]
    file: ClassVar[str]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every edited weight, by the name under which `weights` gives it."""
        ...

    def weights(self, backbone: Backbone) -> Mapping[str, Tensor]:
        """The base's weights that could be edited, by the same names."""
        ...

    def finite(self) -> bool:
        """Whether every number is finite."""
        ...

    def zero(self) -> bool:
        """Whether it changes nothing on purpose."""
        ...

    def summary(self) -> str:
        """Its size in a few words: "rank 4, 32 layers"."""
        ...

    def write(self, folder: Path, recipe: Recipe) -> None:
        """Write its files into a folder, with their record."""
        ...

    @classmethod
    def read(cls, path: Path) -> tuple[Self, Mapping[str, str]]:
        """From its file; also the file's header.

        Raises:
            InputError: missing, damaged, or of another form.
        """
        ...

    def plug(self, backbone: Backbone, name: str, scale: float) -> Undo:
        """Switch it on beside what is on already; the answer takes it out."""
        ...

    def acting(self, backbone: Backbone, name: str) -> bool:
        """Whether it changes anything now."""
        ...

    def bake(self, backbone: Backbone, scale: float) -> None:
        """Write it into the base weights."""
        ...


def tensors(value: object, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a payload, by its place; a number is a tensor too."""
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, Mapping):
        for k in sorted(value):
            yield from tensors(value[k], f"{place}/{k}")
    elif isinstance(value, (tuple, list)):
        for k, v in enumerate(value):
            yield from tensors(v, f"{place}/{k}")
    elif isinstance(value, torch.nn.Module):
        yield from tensors(value.state_dict(), place)
    elif is_dataclass(value):
        for f in fields(value):
            yield from tensors(getattr(value, f.name), f"{place}/{f.name}")
    elif isinstance(value, (int, float)):
        yield place, torch.tensor(value)


def digest(payload: Payload) -> str:
    """A hash of every tensor of an eraser, 16 hexadecimal digits."""
    found = hashlib.sha256()
    for place, t in tensors(payload):
        found.update(f"{place}{t.dtype}{tuple(t.shape)}".encode())
        found.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
