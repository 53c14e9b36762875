"""Kind `delta`: the new values of the changed weights and a bitmap of where they stand, exact at scale 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ..pipelines import Backbone, overlay
from ..prompts import InputError
from . import _files as files
from ._payload import Undo
from ._recipe import Recipe

PARTS = ("bitmap", "shape", "values", "norm")


def pack(mask: Tensor) -> Tensor:
    """Bits of a boolean tensor of n elements, first element in the highest bit: uint8 [ceil(n / 8)], on the CPU."""
    return torch.from_numpy(np.packbits(mask.flatten().cpu().numpy()))


def unpack(bitmap: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean tensor of that shape, on the bitmap's device."""
    if bitmap.device.type == "cpu":
        bits = torch.from_numpy(np.unpackbits(bitmap.numpy(), count=math.prod(shape)))
    else:
        places = torch.arange(7, -1, -1, dtype=torch.uint8, device=bitmap.device)
        bits = (bitmap[:, None] >> places & 1).flatten()[: math.prod(shape)]
    return bits.view(torch.bool).reshape(shape)


@dataclass(frozen=True)
class Change:
    """What becomes of one parameter.

    Attributes:
        values: the new values of the changed weights, [k], in the parameter's order.
        bitmap: which weights those are, uint8 [ceil(n / 8)].
        shape: of the parameter, n elements.
        norm: Frobenius norm of new minus old.
    """

    values: Tensor
    bitmap: Tensor
    shape: tuple[int, ...]
    norm: float

    @classmethod
    def between(cls, base: Tensor, new: Tensor) -> Change:
        """The exact change from one tensor to another of its shape."""
        base, new = base.detach().cpu(), new.detach().cpu()
        mask = base != new
        norm = (new.float() - base.float()).norm().item()
        return cls(new[mask].clone(), pack(mask), tuple(base.shape), norm)

    @property
    def mask(self) -> Tensor:
        """Which weights change, boolean, of the parameter's shape."""
        return unpack(self.bitmap, self.shape)

    def applied(self, base: Tensor, scale: float = 1.0) -> Tensor:
        """The parameter with the change at some scale: the stored values exactly at 1, the base at 0, and on the line
        between and beyond them elsewhere.
        """
        out = base.detach().clone()
        mask = self.mask.to(base.device)
        new = self.values.to(base.device)
        if scale != 1.0:
            old = base[mask].float()
            new = old + scale * (new.float() - old)
        out[mask] = new.to(base.dtype)
        return out


@dataclass(frozen=True)
class Delta:
    """Other values for some weights of some parameters.

    Attributes:
        changes: by full parameter name ("unet.mid_block...to_k.weight").
    """

    changes: Mapping[str, Change]

    kind: ClassVar[str] = "delta"
    file: ClassVar[str] = files.DELTA_FILE

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {n: c.shape for n, c in self.changes.items()}

    def weights(self, backbone: Backbone) -> Mapping[str, Tensor]:
        return backbone.values("all")

    def finite(self) -> bool:
        return all(bool(c.values.isfinite().all()) for c in self.changes.values())

    def zero(self) -> bool:
        return not any(len(c.values) for c in self.changes.values())

    def summary(self) -> str:
        total = sum(math.prod(c.shape) for c in self.changes.values())
        changed = sum(len(c.values) for c in self.changes.values())
        return f"{changed:,} of {total:,} weights, {len(self.changes)} parameters"

    def write(self, folder: Path, recipe: Recipe) -> None:
        tensors = {}
        for n, c in self.changes.items():
            tensors[f"{n}.values"], tensors[f"{n}.bitmap"] = c.values, c.bitmap
            tensors[f"{n}.shape"], tensors[f"{n}.norm"] = torch.tensor(c.shape), torch.tensor(c.norm)
        files.write_tensors(folder / files.DELTA_FILE, tensors, recipe.header())

    @classmethod
    def read(cls, path: Path) -> tuple[Self, Mapping[str, str]]:
        tensors, header = files.read_tensors(path)
        changes = {}
        for name in sorted({k.rpartition(".")[0] for k in tensors}):
            missing = [p for p in PARTS if f"{name}.{p}" not in tensors]
            if missing:
                raise InputError(f"{path}: {name} lacks {', '.join(missing)}: expected {', '.join(PARTS)} of each")
            part = {p: tensors[f"{name}.{p}"] for p in PARTS}
            shape = tuple(int(n) for n in part["shape"].tolist())
            bitmap, size = part["bitmap"], math.prod(shape)
            fits = bitmap.dtype == torch.uint8 and bitmap.shape == (math.ceil(size / 8),)
            if not fits or int(unpack(bitmap, (size,)).sum()) != len(part["values"]):
                raise InputError(f"{path}: bitmap and values of {name} do not belong together: write the file again")
            changes[name] = Change(part["values"], part["bitmap"], shape, part["norm"].item())
        return cls(changes), header

    def plug(self, backbone: Backbone, name: str, scale: float) -> Undo:
        with backbone.using(None):
            params = backbone.parameters("all")
            values = {n: c.applied(params[n].data, scale) for n, c in self.changes.items()}
        backbone.cover(values, name)
        return partial(backbone.uncover, name)

    def acting(self, backbone: Backbone, name: str) -> bool:
        over = overlay(backbone.denoiser)
        if over is None or name not in over.on:
            return False
        return any(not torch.equal(v, over.base[n].to(v.device, v.dtype)) for n, v in over.covers[name].items())

    def bake(self, backbone: Backbone, scale: float) -> None:
        params = backbone.parameters("all")
        with torch.no_grad():
            for n, c in self.changes.items():
                params[n].copy_(c.applied(params[n].data, scale))
