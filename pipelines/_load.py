"""From a name to a `Backbone`: bundled pipelines, folders, Hub ids and pipelines already in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError

from ..prompts import InputError, unknown
from ._backbone import Backbone
from ._bundled import BUNDLED, CANVAS
from ._families import FAMILIES
from ._few import Drawing, scheduler_of
from ._memory import ENCODERS, Embeddings
from ._quiet import quiet
from ._stock import StockBackbone
from ._transformer import TransformerBackbone, family_of
from ._unet import UNetBackbone

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    source: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    device: str | None = None,
    embeddings: Embeddings | str | os.PathLike[str] | None = None,
) -> Backbone:
    """A pipeline, ready to be erased from.

    Args:
        source: a bundled name (`models()`), a diffusers folder, or a Hub id.
        dtype: "float32" (the default on a CPU), "float16" or "bfloat16" (the defaults on a GPU: the first for UNets,
            the second for transformers).
        device: "cpu", "cuda", ...; a GPU where there is one by default.
        embeddings: prompts that `Backbone.remember` has encoded, or the file they are in; then no text encoder is
            loaded.

    Raises:
        InputError: no such model, a folder that is no pipeline, pickled weights, damaged files, an unknown dtype or
            device, a family without a backbone, prompts remembered by another pipeline.
    """
    name = os.fspath(source)
    known = embeddings if embeddings is None or isinstance(embeddings, Embeddings) else Embeddings.load(embeddings)
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if device in (None, "cuda") and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        device = str(PartialState(cpu=not torch.cuda.is_available()).device)  # each process has its own
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    over = BUNDLED[name] if name in BUNDLED and BUNDLED[name].base else None
    if over is not None and not over.there:
        raise InputError(f"{over.folder} is missing: make it with `python bench/canvas_onestep.py`")
    found = BUNDLED.get(over.base if over else name)
    where = found.folder if found else Path(name)
    if name not in BUNDLED:
        _check(name, where)
    kind = (
        DTYPES[dtype]
        if dtype
        else torch.float32
        if device.startswith("cpu")
        else _half(where if where.is_dir() else name)
    )
    try:
        with quiet():
            place = where if where.is_dir() else name
            parts = DiffusionPipeline.load_config(place)
            # diffusers wants to be told again of parts that were saved as none, such as SD 3's third text encoder
            left = {n: None for n, v in parts.items() if v == [None, None] or (known is not None and n in ENCODERS)}
            pipe = DiffusionPipeline.from_pretrained(
                place, dtype=kind, use_safetensors=True, **{"safety_checker": None, **left}
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"cannot load {name!r}: {_first_line(error)}") from error
    try:
        pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot use device {device!r}: {_first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    drawing = None if over is None else _distil(pipe, over.folder)
    backbone = wrap(pipe, name, embeddings=known)
    backbone.drawing = drawing
    return backbone


def _distil(pipe: DiffusionPipeline, folder: Path) -> Drawing:
    """Write a distilled generator's LoRA into the weights, for good, and give the pipeline its scheduler."""
    drawing = Drawing.from_json(canvas_mark(folder).get("drawing", {}))
    with quiet():
        pipe.load_lora_weights(folder)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    pipe.scheduler = scheduler_of(drawing)
    return drawing


def _half(source: Path | str) -> torch.dtype:
    """The half precision that a model was made for: bfloat16 for transformers, whose activations can overflow in
    float16; float16 for the UNets of Stable Diffusion.
    """
    try:
        kind = DiffusionPipeline.load_config(source).get("_class_name", "")
    except (OSError, ValueError):
        return torch.float16  # loading it will say what is wrong
    old = kind.startswith("StableDiffusion") and not kind.startswith("StableDiffusion3")
    return torch.float16 if old else torch.bfloat16


def _check(name: str, where: Path) -> None:
    """Say early, in one line, what a folder that is no pipeline lacks."""
    if where.is_dir():
        if not (where / "model_index.json").exists():
            raise InputError(f"{name} is no diffusers pipeline: expected a model_index.json in it")
        return
    if where.exists():
        raise InputError(f"{name} is a file: expected a diffusers folder, a Hub id or one of {', '.join(BUNDLED)}")
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise unknown("model", name, BUNDLED)


def wrap(
    pipe: DiffusionPipeline,
    name: str | None = None,
    *,
    call: Mapping[str, Any] | None = None,
    embeddings: Embeddings | None = None,
) -> Backbone:
    """A `Backbone` over a pipeline already in memory; the pipeline itself stays as it is.

    Args:
        pipe: a stock text-to-image pipeline.
        name: what to call it; by default where it came from.
        call: more arguments of every stock call, such as `height`, `width` and `max_sequence_length`.
        embeddings: prompts that `Backbone.remember` has encoded; with them comes the part of `call` they were encoded
            with.

    Raises:
        InputError: no backbone knows this family, or the prompts were remembered by another pipeline.
    """
    label = name or getattr(pipe.config, "_name_or_path", None) or type(pipe).__name__
    mark = canvas_mark(BUNDLED[label].folder if label in BUNDLED else Path(label))
    told = {} if embeddings is None else embeddings.origin["call"]
    more = {**mark.get("call", {}), **told, **(call or {})}
    backbone = _backbone(pipe, label, more, bool(mark))
    if embeddings is not None:
        embeddings.check(label, backbone.origin())
        backbone.embeddings = embeddings
    return backbone


def _backbone(pipe: DiffusionPipeline, label: str, more: Mapping[str, Any], mark: bool) -> StockBackbone:
    if isinstance(getattr(pipe, "unet", None), UNet2DConditionModel) and hasattr(pipe, "tokenizer"):
        return UNetBackbone(pipe, label, "canvas" if mark else "sd", call=more)
    if (family := family_of(pipe)) is not None:
        return TransformerBackbone(pipe, family, label, preset="canvas-flow" if mark else "sd", call=more)
    raise InputError(
        f"no backbone for {type(pipe).__name__}: expected a StableDiffusionPipeline, StableDiffusionXLPipeline, "
        + ", ".join(sorted({f.pipeline for f in FAMILIES.values()}))
    )


def canvas_mark(folder: Path) -> dict[str, Any]:
    """What the Canvas recipe says about a pipeline folder that it made; empty for any other."""
    try:
        value = json.loads((folder / "canvas.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) and value.get("world") == "canvas" else {}


@dataclass(frozen=True)
class Model:
    """A model that comes with the package. `path` is a plain diffusers folder; of a distilled generator the folder of
    its LoRA and scheduler.
    """

    id: str
    path: str
    description: str


def models() -> list[Model]:
    """The bundled pipelines."""
    return [Model(name, str(b.folder), b.description) for name, b in BUNDLED.items() if b.there]


def distilled(base: str) -> Path | None:
    """The folder of the generator that was distilled from a bundled pipeline, if one comes with the package."""
    return next((b.folder for b in BUNDLED.values() if b.base == base and b.there), None)


def canvas_folder(part: str) -> Path:
    """Where a part of the Canvas world lies: "clip", "judge-object" or "judge-style".

    Raises:
        InputError: the part is not there; the message says how to make it.
    """
    folder = CANVAS / part
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} is missing: make it with `python -m erasers.pipelines.canvas.train --out {CANVAS}`")
    return folder


def canvas_open_clip(target: Path) -> Path:
    """Write the Canvas world's CLIP for open_clip (`create_model_and_transforms("local-dir:<target>")`): the weights of
    `canvas_folder("clip")`, which are for transformers.
    """
    from .canvas._open_clip import write

    return write(canvas_folder("clip"), target)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
