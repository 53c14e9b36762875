"""What is in an eraser or in somebody else's LoRA file, without loading a pipeline."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ..prompts import InputError
from . import _files as files
from ._delta import Delta
from ._recipe import Recipe


def describe(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Record, size, rank and norms of a folder or file.

    Raises:
        InputError: missing, a pickle, damaged, or no LoRA at all.
    """
    path = Path(source)
    file = path
    if path.is_dir():
        file = path / (files.DELTA_FILE if (path / files.DELTA_FILE).exists() else files.LORA_FILE)
    tensors, header = files.read_tensors(file)
    out: dict[str, Any] = {"path": str(path), "bytes": file.stat().st_size}
    if pairs := _pairs(tensors):
        norms = {n: _product_norm(a, b) for n, (a, b) in pairs.items()}
        out |= {"layers": len(pairs), "rank": max(a.shape[0] for a, _ in pairs.values())}
    elif any(k.endswith(".bitmap") for k in tensors):
        changes = Delta.read(file)[0].changes
        norms = {n: c.norm for n, c in changes.items()}
        weights, changed = (
            sum(math.prod(c.shape) for c in changes.values()),
            sum(len(c.values) for c in changes.values()),
        )
        out |= {"parameters": len(changes), "weights": weights, "weights changed": changed}
    else:
        raise InputError(
            f"{file} holds no LoRA pairs and no delta: expected keys ending in lora_A / lora_B, lora_down / lora_up "
            "or values / bitmap"
        )
    dtypes = {
        str(t.dtype).removeprefix("torch.")
        for k, t in tensors.items()
        if not k.endswith((".bitmap", ".shape", ".alpha"))
    }
    strongest = sorted(norms, key=lambda n: -norms[n])[:3]
    out |= {
        "dtype": ", ".join(sorted(dtypes)),
        "norm": round(sum(v * v for v in norms.values()) ** 0.5, 5),
        "strongest layers": {n: round(norms[n], 5) for n in strongest},
    }
    if files.HEADER not in header:
        return {**out, "made by": "not erasers (no record in the header)"}
    recipe = Recipe.from_header(header, str(file))
    return {
        "path": out.pop("path"),
        "concepts": recipe.names,
        "anchors": [c["anchor"] for c in recipe.concepts],
        "method": recipe.method,
        "settings": recipe.settings,
        "seed": recipe.seed,
        "base": recipe.base["id"],
        "family": recipe.family,
        "kind": recipe.kind,
        "scale": recipe.scale,
        **out,
        "preserve": recipe.preserve,
        "versions": recipe.versions,
    }


def _pairs(tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    out = {}
    for down, up in ((".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")):
        for key in tensors:
            name = key.removesuffix(down)
            if name != key and name + up in tensors:
                out[name] = tensors[key].float(), tensors[name + up].float()
    return out


def _product_norm(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten(1), b.flatten(1)
    return (a @ a.T * (b.T @ b)).sum().clamp(min=0).sqrt().item()
