"""What is in an eraser or in somebody else's LoRA file, without loading a pipeline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ..prompts import InputError
from . import _files as files
from ._eraser import Recipe


def describe(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Record, size, rank and norms of a folder or file.

    Raises:
        InputError: missing, a pickle, damaged, or no LoRA at all.
    """
    path = Path(source)
    file = path / files.LORA_FILE if path.is_dir() else path
    tensors, header = files.read_tensors(file)
    pairs = _pairs(tensors)
    if not pairs:
        raise InputError(f"{file} holds no LoRA pairs: expected keys ending in lora_A / lora_B or lora_down / lora_up")
    norms = {n: _product_norm(a, b) for n, (a, b) in pairs.items()}
    strongest = sorted(norms, key=lambda n: -norms[n])[:3]
    out: dict[str, Any] = {
        "path": str(path),
        "bytes": file.stat().st_size,
        "layers": len(pairs),
        "rank": max(a.shape[0] for a, _ in pairs.values()),
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
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
