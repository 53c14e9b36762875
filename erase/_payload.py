"""What every kind of eraser content can do; `_lora.py`, `_delta.py` and `_hyper.py` are the kinds there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Protocol, Self, runtime_checkable

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
