"""Erasers in the layouts of other apps, one file or folder each."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..pipelines import Backbone, check_unfused, check_writable, components, overlay
from ..prompts import InputError, unknown
from . import _files as files
from ._convert import lycoris_keys
from ._delta import Delta
from ._hyper import STATIC, Hyper
from ._kohya import kohya_header, kohya_keys
from ._lora import Lora

if TYPE_CHECKING:
    from ._eraser import Eraser

Layout = Literal["peft", "kohya", "lycoris", "component"]
LAYOUTS: tuple[Layout, ...] = ("peft", "kohya", "lycoris", "component")


def export(
    eraser: Eraser, target: Path, to: Layout, *, dtype: torch.dtype | None, base: Backbone | None, force: bool
) -> Path:
    """See `Eraser.export`."""
    if to not in LAYOUTS:
        raise unknown("file layout", to, LAYOUTS)
    if to == "component":
        return component(eraser, target, base, force=force)
    if target.suffix != ".safetensors":
        raise InputError(f"expected a file name ending in .safetensors, got {target.name!r}")
    files.check_target(target, force)
    tensors = differences(eraser, base, dtype) if to == "lycoris" else pairs(eraser, to, dtype)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    more = {} if to == "peft" else kohya_header(eraser.payload.shapes, eraser.recipe.family)
    files.write_tensors(target, tensors, {**eraser.recipe.header(), **more})
    return target


def pairs(eraser: Eraser, to: Layout, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A LoRA's tensors under PEFT's or kohya's names.

    Raises:
        InputError: it is a delta or a hypernetwork.
    """
    if isinstance(eraser.payload, Hyper):
        raise InputError(f"a hypernetwork is no LoRA, and {to} files hold one: {STATIC}")
    if not isinstance(eraser.payload, Lora):
        raise InputError(
            f"a {eraser.recipe.kind} is no LoRA: make one of it with --rank or --energy, or export it to component or "
            f"lycoris, got {to!r}"
        )
    factors = eraser.payload.factors
    if dtype is not None:
        factors = {n: (a.to(dtype), b.to(dtype)) for n, (a, b) in factors.items()}
    return files.peft_keys(factors) if to == "peft" else kohya_keys(factors, eraser.recipe.family)


def differences(eraser: Eraser, base: Backbone | None, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A delta's differences from the base under LyCORIS' names.

    Raises:
        InputError: it is a LoRA or a hypernetwork, or there is no base.
    """
    if isinstance(eraser.payload, Hyper):
        raise InputError(f"a hypernetwork is no full difference: {STATIC}")
    if not isinstance(eraser.payload, Delta):
        raise InputError("a lora is no full difference: export it to kohya, which the same apps read")
    tensors = lycoris_keys(eraser.payload, base_values(eraser, base), eraser.recipe.family)
    return tensors if dtype is None else {n: t.to(dtype) for n, t in tensors.items()}


def base_values(eraser: Eraser, base: Backbone | None) -> dict[str, Tensor]:
    """The untouched values that a delta is a change of.

    Raises:
        InputError: there is no base, or the eraser was made for another.
    """
    if base is None:
        raise InputError("a delta holds new values, and differences need the old ones: name the base with --model")
    if base.dtype != torch.float32:
        raise InputError(f"differences from {base.dtype} weights are mostly rounding: load the base in float32")
    eraser.check_base(base)
    check_unfused(base.denoiser, "cannot take differences")
    check_writable(base.denoiser, "cannot take differences")
    with base.using(None):
        return {n: p.data for n, p in base.parameters("all").items()}


def component(eraser: Eraser, target: Path, base: Backbone | None, *, force: bool) -> Path:
    """The whole denoiser with the update in it, as a folder.

    Raises:
        InputError: there is no base, the eraser was made for another, or adapters are attached to it.
    """
    if base is None:
        raise InputError("a component holds the whole denoiser: name the base model with --model")
    eraser.check_base(base)
    check_bare(base, "export")
    check_writable(base.denoiser, "cannot export the weights")

    def fill(partial: Path) -> None:
        base.save_denoiser(partial)
        record = json.dumps(asdict(eraser.recipe), indent=1, ensure_ascii=False)
        (partial / files.COMPONENT_FILE).write_text(record + "\n", encoding="utf-8")

    params = eraser.payload.weights(base)
    kept = {n: params[n].detach().clone() for n in eraser.payload.shapes}
    eraser.payload.bake(base, eraser.recipe.scale)
    try:
        return files.write_folder(target, fill, holds=files.COMPONENT_FILE, force=force)
    finally:
        with torch.no_grad():
            for n, value in kept.items():
                params[n].copy_(value)


def check_bare(backbone: Backbone, verb: str, *, loras: bool = False) -> None:
    """Refuse a pipeline with adapters attached, which would be written along.

    Args:
        backbone: the pipeline.
        verb: what cannot be done.
        loras: whether LoRAs are harmless, a delta not.
    """
    attached = not loras and any(getattr(m, "peft_config", {}) for m in components(backbone.pipe))
    if attached or overlay(backbone.denoiser) is not None:
        raise InputError(f"cannot {verb} while adapters are attached to {backbone.name!r}: detach them first")
