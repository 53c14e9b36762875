"""What is in an eraser or in somebody else's LoRA file, without loading a pipeline."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..prompts import InputError
from . import _files as files
from ._delta import Delta
from ._hyper import Hyper
from ._kohya import TWICE
from ._recipe import Recipe
from ._saliency import MASK, Mask


def describe(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Record, size, rank and norms of a folder or file.

    Raises:
        InputError: missing, a pickle, damaged, or no LoRA at all.
    """
    path = Path(source)
    file = path
    if path.is_dir():
        there = (n for n in (files.DELTA_FILE, files.HYPER_FILE) if (path / n).exists())
        file = path / next(there, files.LORA_FILE)
    tensors, header = files.read_tensors(file)
    out: dict[str, Any] = {"path": str(path), "bytes": file.stat().st_size}
    norms: dict[str, float] = {}
    if "centre" in tensors and "spread" in tensors:
        hyper = Hyper.read(file)[0]
        p = hyper.plan
        shape = {"read": p.read, "hidden": p.hidden, **({"code": p.code} if p.architecture == "compact" else {})}
        out |= {"architecture": p.architecture, "layers": len(p.layers), "rank": p.rank, **shape}
        out |= {"virtual times": p.times, "norm of what it writes": dict(hyper.about)}
    elif pairs := _pairs(tensors):
        norms = {n: _product_norm(a, b) for n, (a, b) in pairs.items()}
        out |= {"layers": len(pairs), "rank": max(a.shape[0] for a, _ in pairs.values())}
    elif MASK in header:
        mask = Mask.load(file)
        return out | {"mask": dict(mask.about), **coverage(mask.counts())}
    elif any(k.endswith(".bitmap") for k in tensors):
        changes = Delta.read(file)[0].changes
        norms = {n: c.norm for n, c in changes.items()}
        weights, changed = (
            sum(math.prod(c.shape) for c in changes.values()),
            sum(len(c.values) for c in changes.values()),
        )
        out |= {"parameters": len(changes), "weights": weights, "weights changed": changed}
        out |= coverage({n: (len(c.values), math.prod(c.shape)) for n, c in changes.items()})
    else:
        raise InputError(
            f"{file} holds no LoRA pairs, no delta and no hypernetwork: expected keys ending in lora_A / lora_B, "
            "lora_down / lora_up or values / bitmap"
        )
    dtypes = {
        str(t.dtype).removeprefix("torch.")
        for k, t in tensors.items()
        if not k.endswith((".bitmap", ".shape", ".alpha"))
    }
    strongest = sorted(norms, key=lambda n: -norms[n])[:3]
    out["dtype"] = ", ".join(sorted(dtypes))
    if norms:
        out["norm"] = round(sum(v * v for v in norms.values()) ** 0.5, 5)
        out["strongest layers"] = {n: round(norms[n], 5) for n in strongest}
    if files.HEADER not in header:
        return {**out, "made by": "not erasers (no record in the header)"}
    recipe = Recipe.from_header(header, str(file))
    out |= {"made from a": recipe.derived} if recipe.derived else {}
    out |= {"scores": recipe.scores} if recipe.scores else {}
    out |= {"draws": {k: recipe.drawing[k] for k in ("steps", "times", "guidance")}} if recipe.drawing else {}
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
        **({"made on top of": recipe.base["on"]} if recipe.base.get("on") else {}),
        "preserve": recipe.preserve,
        "versions": recipe.versions,
    }


def coverage(counts: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """What a mask covers: its density, and the share of the weights of each block and of each kind of layer.

    Args:
        counts: weights inside and weights in all, by full parameter name.
    """

    def shares(key: Callable[[str], str]) -> dict[str, float]:
        sums: dict[str, tuple[int, int]] = {}
        for name, (inside, size) in counts.items():
            a, b = sums.get(key(name), (0, 0))
            sums[key(name)] = a + inside, b + size
        return {k: round(a / max(1, b), 4) for k, (a, b) in sums.items()}

    return {
        "density": shares(lambda _: "all").get("all", 0.0),
        "share by block": shares(block),
        "share by layer": dict(sorted(shares(layer).items(), key=lambda pair: -pair[1])),
    }


def block(name: str) -> str:
    """The part of a network that a parameter belongs to: "conv_in", "down_blocks.1", "transformer_blocks.12"."""
    first, second, *_ = *name.split(".")[1:], ""
    return f"{first}.{second}" if second.isdigit() else first


def layer(name: str) -> str:
    """The kind of layer: the last words of its path without numbers ("attn2.to_k")."""
    parts = [p for p in name.split(".")[1:-1] if not p.isdigit()]
    return ".".join(parts[-2:])


def _pairs(tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    out = {}
    for down, up in ((".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")):
        for key in tensors:
            name = key.removesuffix(down)
            if name != key and name + up in tensors:
                out[name] = tensors[key].float(), tensors[name + up].float()
    return {n: pair for n, pair in out.items() if n not in TWICE.values() or not TWICE.keys() & out.keys()}


def _product_norm(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten(1), b.flatten(1)
    return (a @ a.T * (b.T @ b)).sum().clamp(min=0).sqrt().item()
