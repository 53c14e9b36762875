"""Kind `lora`: a low-rank update that any diffusers app loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..pipelines import Backbone, acting, components, plug, unplug
from . import _files as files
from ._kohya import kohya_header, kohya_keys, needs_kohya
from ._payload import Undo
from ._recipe import Recipe

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Low-rank update per layer, by full name: A [r, in] and B [out, r], of a convolution A [r, in, kh, kw] and
B [out, r, 1, 1]; the weight becomes W + B A.
"""


@dataclass(frozen=True)
class Lora:
    """Low-rank factors.

    Attributes:
        factors: of each layer, by full module name; the weight becomes W + scale * B A.
    """

    factors: Factors

    kind: ClassVar[str] = "lora"
    file: ClassVar[str] = files.LORA_FILE

    @property
    def rank(self) -> int:
        """The largest rank of any pair."""
        return max(a.shape[0] for a, _ in self.factors.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {n: (b.shape[0], *a.shape[1:]) for n, (a, b) in self.factors.items()}

    def weights(self, backbone: Backbone) -> Mapping[str, Tensor]:
        held = backbone.values("all")
        found = (n for n in held if n.endswith(".weight") and held.dimensions(n) in (2, 4))
        return held.renamed({n: n.removesuffix(".weight") for n in found})

    def finite(self) -> bool:
        return all(bool(t.isfinite().all()) for pair in self.factors.values() for t in pair)

    def zero(self) -> bool:
        return not any(bool(a.any()) and bool(b.any()) for a, b in self.factors.values())

    def summary(self) -> str:
        return f"rank {self.rank}, {len(self.factors)} layers"

    def write(self, folder: Path, recipe: Recipe) -> None:
        files.write_tensors(folder / files.LORA_FILE, files.peft_keys(self.factors), recipe.header())
        if needs_kohya(self.factors, recipe.family):
            header = {**recipe.header(), **kohya_header(self.shapes, recipe.family)}
            files.write_tensors(folder / files.KOHYA_FILE, kohya_keys(self.factors, recipe.family), header)

    @classmethod
    def read(cls, path: Path) -> tuple[Self, Mapping[str, str]]:
        tensors, header = files.read_tensors(path)
        return cls(files.from_peft_keys(tensors, str(path))), header

    def plug(self, backbone: Backbone, name: str, scale: float) -> Undo:
        # the scale goes into B: `pipe.set_adapters([...])` without weights would set it back to 1
        tensors = files.peft_keys({n: (a, scale * b) for n, (a, b) in self.factors.items()})
        return partial(unplug, backbone.pipe, name, plug(backbone.pipe, tensors, name))

    def acting(self, backbone: Backbone, name: str) -> bool:
        return acting(name, *components(backbone.pipe))

    def bake(self, backbone: Backbone, scale: float) -> None:
        weights = self.weights(backbone)
        with torch.no_grad():
            for path in self.factors:
                w = weights[path]
                w.copy_((w.float() + self.update(path, w, scale)).to(w.dtype))

    def update(self, path: str, weight: Tensor, scale: float) -> Tensor:
        """What comes on top of one weight: float32, of its shape and on its device."""
        a, b = (t.to(weight.device).float().flatten(1) for t in self.factors[path])
        return (scale * (b @ a)).view_as(weight)
