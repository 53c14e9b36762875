"""From a name to a `Backbone`: bundled pipelines, folders, Hub ids and pipelines already in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError

from ..prompts import InputError, causes, first_line, out_of_memory, unknown
from ._backbone import Backbone
from ._bundled import BUNDLED, CANVAS
from ._families import FAMILIES
from ._few import Drawing, scheduler_of
from ._held import check_wrappable
from ._hub import INDEX, pipeline_index
from ._loading import Loading
from ._memory import ENCODERS, Embeddings
from ._place import place, precision, spare, usable
from ._quantize import arguments, check_library
from ._quiet import quiet
from ._single import fetch, is_file, read_file
from ._stock import StockBackbone
from ._transformer import TransformerBackbone, family_of
from ._unet import UNetBackbone

NEVER_LOADED = ("safety_checker",)
FAILURES = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, IndexError)
"""What libraries raise for a model that is not what it should be."""


def load(
    source: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    device: str | None = None,
    embeddings: Embeddings | str | os.PathLike[str] | None = None,
    how: Loading | None = None,
) -> Backbone:
    """A pipeline, ready to be erased from.

    Args:
        source: a bundled name (`models()`), a diffusers folder, a Hub id, a single file (.safetensors or .gguf), or the
            address of such a file on the Hub.
        dtype: "float32" (the default on a CPU), "float16" or "bfloat16" (the defaults on a GPU: the first for UNets,
            the second for transformers).
        device: "cpu", "cuda", ...; "auto", the default, is a GPU where there is one.
        embeddings: prompts that `Backbone.remember` has encoded, or the file they are in; then no text encoder is
            loaded.
        how: variant, revision, quantisation, offloading and the rest, see `Loading`.

    Raises:
        InputError: no such model, a folder that is no pipeline, pickled weights, damaged files, an unknown dtype or
            device, a family without a backbone, prompts remembered by another pipeline, options that do not fit.
    """
    name, how = os.fspath(source), how or Loading()
    known = embeddings if embeddings is None or isinstance(embeddings, Embeddings) else Embeddings.load(embeddings)
    device = usable(device, how)
    precision(dtype, device, None)  # refuse an unknown one before anything heavy is loaded
    if how.compile and how.compile not in (backends := torch.compiler.list_backends(exclude_tags=())):
        raise unknown("--compile", how.compile, backends)
    if how.quantize != "none":
        check_library(how.quantize, f"--quantize {how.quantize}", device)
    over = BUNDLED[name] if name in BUNDLED and BUNDLED[name].base else None
    if over is not None and not over.there:
        raise InputError(f"{over.folder} is missing: make it with `python bench/canvas_onestep.py`")
    found = BUNDLED.get(over.base if over else name)
    where = found.folder if found else Path(name)
    if name not in BUNDLED:
        check_source(name, where)
    check_options(name, where, how)
    try:
        with quiet():
            pipe, origin = _read(name, where, how=how, dtype=dtype, device=device, known=known)
    except InputError:
        raise
    except (*FAILURES, SafetensorError) as error:
        if out_of_memory(error):
            raise
        told = _why(error, where, how, () if known is None else ENCODERS)
        raise InputError(f"cannot load {name!r}: {told}") from error
    drawing = None if over is None else _distil(pipe, over.folder)
    try:
        place(pipe, device, how)
    except (RuntimeError, AssertionError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise InputError(f"cannot use device {device!r}: {first_line(error)}; see --device") from error
    pipe.set_progress_bar_config(disable=True)
    backbone = wrap(pipe, name, embeddings=known)
    check_changed(backbone, how)
    spare(pipe, backbone.denoiser, how)
    backbone.drawing, backbone.provenance, backbone.compiler = drawing, origin, how.compile
    return backbone


def _read(
    name: str, where: Path, *, how: Loading, dtype: str | None, device: str, known: Embeddings | None
) -> tuple[DiffusionPipeline, dict[str, str]]:
    """The pipeline on the CPU (or where quantised parts land), and what is to be remembered of where it came from."""
    without = () if known is None else ENCODERS
    told: dict[str, str | None] = {"revision": how.revision, "variant": how.variant, "config": how.config}
    if name not in BUNDLED and is_file(name):
        path, told["revision"], told["commit"] = fetch(name, how.revision)
        pipe = read_file(path, how, dtype=dtype, device=device, without=without)
    else:
        source = where if where.is_dir() else name
        parts = pipeline_index(source, how.revision)
        kind = precision(dtype, device, parts.get("_class_name"))
        # diffusers wants to be told again of parts that were saved as none, such as SD 3's third text encoder
        left = {n: None for n, v in parts.items() if v == [None, None] or n in without}
        pipe = DiffusionPipeline.from_pretrained(
            source,
            dtype=kind,
            use_safetensors=True,
            variant=how.variant,
            revision=how.revision,
            **arguments(how.quantize, parts, kind, without=list(left)),
            **{"safety_checker": None, **left},
        )
        if not where.is_dir():
            told["commit"] = _commit(name, how.revision)
    few = ["gguf"] if name.lower().endswith(".gguf") else []
    told["quantized"] = ", ".join([*few, how.quantize] if how.quantize != "none" else few) or None
    return pipe, {k: v for k, v in told.items() if v is not None}


def _distil(pipe: DiffusionPipeline, folder: Path) -> Drawing:
    """Write a distilled generator's LoRA into the weights, for good, and give the pipeline its scheduler."""
    drawing = Drawing.from_json(canvas_mark(folder).get("drawing", {}))
    with quiet():
        pipe.load_lora_weights(folder)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    pipe.scheduler = scheduler_of(drawing)
    return drawing


def _commit(name: str, revision: str | None) -> str | None:
    """The commit of a Hub id that was loaded, as the Hub's cache knows it."""
    found = try_to_load_from_cache(name, INDEX, revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def check_source(name: str, where: Path) -> None:
    """Say early, in one line, what a name that is no pipeline lacks."""
    if where.is_dir():
        if not (where / INDEX).exists():
            raise InputError(f"{name} is no diffusers pipeline: expected a {INDEX} in it")
        return
    if not is_file(name) and (name.count("/") != 1 or name.startswith((".", "/"))):
        raise unknown("model", name, BUNDLED)


def check_options(name: str, where: Path, how: Loading) -> None:
    """Refuse options that mean nothing for such a source."""
    if name in BUNDLED:
        how.refuse(("variant", "revision", "config"), f"{name} comes with the package")
    elif where.is_dir():
        how.refuse(("revision",), f"it names a version on the Hub, {name} is a folder")
        if how.variant and how.variant not in (there := _variants(where)):
            kinds = ", ".join(sorted(there - {""})) or "none"
            raise InputError(f"--model-variant {how.variant}: {name} has no such files (variants there: {kinds})")
    if is_file(name) and name not in BUNDLED:
        if where.is_file():
            how.refuse(("revision",), f"it names a version on the Hub, {name} is a file")
    else:
        how.refuse(("config",), "it belongs to a single file")


def check_changed(backbone: Backbone, how: Loading) -> None:
    """Refuse to quantise a model whose denoiser has nothing to quantise.

    Raises:
        InputError: it has none.
    """
    if how.quantize != "none" and not backbone.quantized:
        raise InputError(
            f"--quantize {how.quantize} changed nothing in {backbone.name!r}: choose another, or leave it out"
        )


def _variants(folder: Path) -> set[str]:
    """The variants of a pipeline folder's safetensors weights; "" for those without."""
    names = [p.name.removesuffix(".safetensors").split(".") for p in folder.glob("*/*.safetensors")]
    return {n[1].split("-")[0] if len(n) > 1 else "" for n in names}


def _why(error: BaseException, where: Path, how: Loading, without: Sequence[str]) -> str:
    """What went wrong in one line, with what to change; parts that are not asked for may be missing."""
    line = first_line(error)
    if where.is_dir():
        there = _variants(where)
        if how.variant is None and there and "" not in there:
            return f"all its weights are of a variant: add --model-variant {sorted(there)[0]} ({line})"
    if damaged := [e for e in causes(error) if isinstance(e, SafetensorError)]:
        told = "" if damaged[0] is error else f"{line.rstrip('.')}: "
        return f"{told}the file is damaged or cut off ({first_line(damaged[0])}); fetch it again"
    if where.is_dir() and (lacks := _lacking(where, without)):
        return f"{lacks} ({line})"
    hints = [f"{flag} {v}" for flag, v in (("--model-revision", how.revision), ("--model-variant", how.variant)) if v]
    return f"{line}; is {' and '.join(hints)} right?" if hints else f"{line}; --model names another"


def _lacking(folder: Path, without: Sequence[str]) -> str:
    """What a pipeline folder promises in its index and does not hold, with what to do; "" if nothing is known."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    listed = index.items() if isinstance(index, dict) else ()
    left = (*NEVER_LOADED, *without)
    parts = [n for n, v in listed if isinstance(v, list) and v[:1] != [None] and n not in left]
    if gone := [n for n in parts if not (folder / n).is_dir()]:
        spare = "; of text encoders --embeddings takes the place" if set(gone) <= set(ENCODERS) else ""
        return f"the folder lacks {', '.join(gone)}: save the whole pipeline, or name another with --model{spare}"
    networks = [n for n in parts if (folder / n / "config.json").exists()]
    bare = [n for n in networks if not any((folder / n).glob("*.safetensors"))]
    if pickled := [n for n in bare if any((folder / n).glob("*.bin"))]:
        what = f"the weights of {', '.join(pickled)} are pickled (.bin), which may run code when loaded"
        return f"{what}: save the pipeline as safetensors"
    if bare:
        return f"no weights (*.safetensors) in {', '.join(bare)}: fetch all of it, or name another with --model"
    return ""


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
        InputError: no backbone knows this family, the prompts were remembered by another pipeline, or its denoiser is
            held in a way that adapters and hooks cannot follow.
    """
    if not isinstance(pipe, DiffusionPipeline):
        raise InputError(f"expected a diffusers pipeline, got {type(pipe).__name__}: load it first")
    check_wrappable(pipe)
    label = name or getattr(pipe.config, "_name_or_path", None) or type(pipe).__name__
    mark = canvas_mark(BUNDLED[label].folder if label in BUNDLED else Path(label))
    told = {} if embeddings is None else embeddings.origin["call"]
    more = {**mark.get("call", {}), **told, **(call or {})}
    backbone = _backbone(pipe, label, more, bool(mark))
    if embeddings is not None:
        embeddings.check(label, backbone.origin())
        backbone.embeddings = embeddings
    return backbone


def backbone_of(pipe: DiffusionPipeline | Backbone) -> Backbone:
    """The backbone over a pipeline, or the given one.

    Raises:
        InputError: it is neither; or see `wrap`.
    """
    if not isinstance(pipe, DiffusionPipeline) and isinstance(pipe, Backbone):  # a pipeline raises at the latter
        return pipe
    return wrap(pipe)


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
