"""A base model by its name: what of the name others are told, where it is on the Hub, and the lines that load it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..pipelines import pipeline_class

if TYPE_CHECKING:
    from ._recipe import Recipe

FILES = (".safetensors", ".gguf")
ADDRESS = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/([^?#]+)")
"""The address of a file on the Hub: repository, revision, path."""
NETWORKS = {"StableDiffusion3": "SD3", "Flux2Klein": "Flux2", "PixArtAlpha": "PixArt", "PixArtSigma": "PixArt"}
"""Where a pipeline's transformer is not called as the pipeline is."""


def told(name: str) -> str:
    """A model's name as an eraser carries it to others: of a folder or a file on this computer the last part only; what
    comes with the package, a Hub id and an address (without what follows "?") stay.
    """
    if "://" in name:
        return name.partition("?")[0]
    path = Path(name).expanduser()
    here = path.is_absolute() or name.startswith(".") or path.exists()
    return os.path.basename(os.path.abspath(path)) if here else name


def shared(recipe: Recipe) -> Recipe:
    """A record without places on this computer, whoever wrote it."""
    base = {k: told(v) if k in ("id", "config") else v for k, v in recipe.base.items()}
    scores = dict(recipe.scores)
    if "model" in (how := scores.get("settings", {})):
        scores["settings"] = {**how, "model": told(how["model"])}
    return replace(recipe, base=base, scores=scores)


def on_hub(name: str) -> str | None:
    """The Hub's repository that a base model's recorded name means: itself, or that of a file's address."""
    if found := ADDRESS.match(name):
        return found[1]
    plain = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.lower().endswith(FILES)
    return name if plain else None


def one_file(name: str) -> bool:
    """Whether a base model's recorded name means a single file."""
    return "://" in name or name.lower().endswith(FILES)


def flags(recipe: Recipe) -> str:
    """The flags of the command line that load a base as the eraser's was."""
    base, address = recipe.base, ADDRESS.match(recipe.base["id"])
    known = {k: base[k] for k in ("config", "variant", "revision") if base.get(k)}
    if address and known.get("revision") == address[2]:
        del known["revision"]
    return " ".join(["--model", shlex.quote(base["id"]), *(f"--model-{k} {shlex.quote(v)}" for k, v in known.items())])


class Opened(NamedTuple):
    """Lines of Python that make the variable `pipe`: what they import, and themselves."""

    imports: str
    lines: str


def opened(recipe: Recipe, *, part: str | None = None, custom: str | None = None) -> Opened:
    """How diffusers alone opens a base. Of a file whose pipeline was named it reads the denoiser, and the rest from
    there.

    Args:
        recipe: whose.
        part: the variable that holds the denoiser to take in its place.
        custom: the variable that holds a folder with the class of the pipeline.
    """
    base, component = recipe.base, recipe.base["component"]
    version = [f"{k}={json.dumps(base[k])}" for k in ("revision", "variant") if base.get(k)]
    mine = [] if part is None else [f"{component}={part}"]
    own = [] if custom is None else [f"custom_pipeline={custom}", "trust_remote_code=True"]
    if not one_file(base["id"]):
        args = [json.dumps(base["id"]), *version, *mine, *own]
        return _of(["DiffusionPipeline"], _call("pipe", "DiffusionPipeline.from_pretrained", args))
    kind, *_ = pipeline_class(recipe.family)
    name, version = base["id"], version[: bool(base.get("revision"))]
    if found := ADDRESS.match(name):  # the only form of it that diffusers reads
        name = f"https://huggingface.co/{found[1]}/blob/main/{found[3]}"
        version = [] if version == ['revision="main"'] else version
    if not base.get("config"):
        lines = _call("pipe", f"{kind}.from_single_file", [json.dumps(name), *version, *mine])
        if not own:
            return _of([kind], lines)
        again = _call("pipe", "DiffusionPipeline.from_pipe", ["pipe", "torch_dtype=pipe.dtype", *own])
        return _of(["DiffusionPipeline", kind], lines + again)
    rest, lines, used = json.dumps(base["config"]), "", ["DiffusionPipeline"]
    if part is None:
        network = "UNet2DConditionModel" if component == "unet" else _transformer(kind)
        few = ["quantization_config=few", "torch_dtype=few.compute_dtype"] * name.lower().endswith(".gguf")
        args = [json.dumps(name), *version, f"config={rest}", f'subfolder="{component}"', *few]
        lines = "few = GGUFQuantizationConfig(compute_dtype=torch.bfloat16)\n" if few else ""
        lines += _call("part", f"{network}.from_single_file", args)
        used += [network, *(["GGUFQuantizationConfig"] if few else [])]
        mine = [f"{component}=part", *(["torch_dtype=torch.bfloat16"] if few else [])]
    return _of(used, lines + _call("pipe", "DiffusionPipeline.from_pretrained", [rest, *mine, *own]))


def _transformer(kind: str) -> str:
    """The class of a pipeline class's transformer."""
    name = kind.removesuffix("Pipeline")
    return f"{NETWORKS.get(name, name)}Transformer2DModel"


def _of(names: Sequence[str], lines: str) -> Opened:
    return Opened("import torch\n" * ("torch." in lines) + f"from diffusers import {', '.join(sorted(names))}", lines)


def _call(variable: str, function: str, args: Sequence[str]) -> str:
    """A call over one line or three, or with one argument a line."""
    text = ", ".join(args)
    if len(whole := f"{variable} = {function}({text})") <= 88:
        return whole + "\n"
    inside = [text] if len(text) <= 84 else [f"{a}," for a in args]
    return "\n".join([f"{variable} = {function}(", *(f"    {a}" for a in inside), ")"]) + "\n"
