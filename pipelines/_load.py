"""From a name to a `Backbone`: bundled pipelines, folders, Hub ids and pipelines already in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.state import PartialState
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError

from ..prompts import InputError, unknown
from ._backbone import Backbone
from ._bundled import BUNDLED, CANVAS
from ._quiet import quiet
from ._unet import UNetBackbone

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(source: str | os.PathLike[str], *, dtype: str | None = None, device: str | None = None) -> Backbone:
    """A pipeline, ready to be erased from.

    Args:
        source: a bundled name (`models()`), a diffusers folder, or a Hub id.
        dtype: "float32" (the default on a CPU), "float16" (the default on a GPU) or "bfloat16".
        device: "cpu", "cuda", ...; a GPU where there is one by default.

    Raises:
        InputError: no such model, a folder that is no pipeline, pickled weights, damaged files, an unknown dtype or
            device, a family without a backbone.
    """
    name = os.fspath(source)
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if device in (None, "cuda") and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        device = str(PartialState(cpu=not torch.cuda.is_available()).device)  # each process has its own
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = DTYPES[dtype] if dtype else (torch.float32 if device.startswith("cpu") else torch.float16)
    where = BUNDLED[name].folder if name in BUNDLED else Path(name)
    if name not in BUNDLED:
        _check(name, where)
    try:
        with quiet():
            pipe = DiffusionPipeline.from_pretrained(
                where if where.is_dir() else name, dtype=kind, use_safetensors=True, safety_checker=None
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"cannot load {name!r}: {_first_line(error)}") from error
    try:
        pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot use device {device!r}: {_first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    return wrap(pipe, name)


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


def wrap(pipe: DiffusionPipeline, name: str | None = None) -> Backbone:
    """A `Backbone` over a pipeline already in memory; the pipeline itself stays as it is.

    Raises:
        InputError: no backbone knows this family.
    """
    label = name or getattr(pipe.config, "_name_or_path", None) or type(pipe).__name__
    if isinstance(getattr(pipe, "unet", None), UNet2DConditionModel) and hasattr(pipe, "tokenizer"):
        folder = Path(label)
        preset = "canvas" if label in BUNDLED or is_canvas(folder) else "sd"
        return UNetBackbone(pipe, label, preset)
    raise InputError(
        f"no backbone for {type(pipe).__name__}: expected a Stable Diffusion 1.x, 2.x or SDXL pipeline (with a UNet)"
    )


def is_canvas(folder: Path) -> bool:
    """Whether a pipeline folder was made by the Canvas recipe."""
    mark = folder / "canvas.json"
    return mark.is_file() and '"world": "canvas"' in mark.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Model:
    """A model that comes with the package. `path` is a plain diffusers folder."""

    id: str
    path: str
    description: str


def models() -> list[Model]:
    """The bundled pipelines."""
    return [Model(name, str(b.folder), b.description) for name, b in BUNDLED.items()]


def canvas_folder(part: str) -> Path:
    """Where a part of the Canvas world lies: "clip", "judge-object" or "judge-style".

    Raises:
        InputError: the part is not there; the message says how to make it.
    """
    folder = CANVAS / part
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} is missing: make it with `python -m erasers.pipelines.canvas.train --out {CANVAS}`")
    return folder


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
