"""Pipelines from one file: whole checkpoints in the original layout, and files that hold the denoiser alone."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..prompts import InputError, first_line, out_of_memory
from ._hub import asking_hub, pipeline_index
from ._loading import Loading
from ._place import precision
from ._quantize import arguments, check_library, quantiser

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Files that can run code when they are loaded."""
WEIGHTS = (".safetensors", ".gguf")
PAGE = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/([^?#]+)")
"""The address of a file on the Hub: repository, revision, path."""
AUTOENCODER = ("first_stage_model.", "vae.")
"""What an autoencoder's weights are called in a whole checkpoint."""


def is_file(name: str) -> bool:
    """Whether a model's name means one file, there or not."""
    named = Path(name).is_file() or (Path(name).suffix.lower() in (*PICKLES, *WEIGHTS) and not Path(name).is_dir())
    return bool(PAGE.match(name)) or named


def fetch(name: str, revision: str | None) -> tuple[Path, str | None, str | None]:
    """The file of that name or address on the Hub; of an address also the revision it was asked for in, and its commit.

    Raises:
        InputError: no such file, or one that is not loaded.
    """
    found = PAGE.match(name)
    suffix = Path(found[3] if found else name).suffix.lower()
    if suffix in PICKLES:
        raise InputError(
            f"{name} is a pickle ({suffix}), which may run code when it is loaded: choose the model's .safetensors file"
        )
    if suffix not in WEIGHTS:
        raise InputError(f"{name} is a file: expected one ending in .safetensors or .gguf, or a diffusers folder")
    if found:
        repo, branch, path = map(unquote, found.groups())
        asked = revision or branch
        lacks = f"has no file {path} in its revision {asked!r}"
        with asking_hub(repo, asked, what="model", lacks=lacks, verb="download from"):
            here = Path(hf_hub_download(repo, path, revision=asked))
        return here, asked, here.parents[path.count("/")].name
    if not (here := Path(name)).is_file():
        raise InputError(f"no such file: {name}; --model names a file, a folder, a Hub id or a bundled pipeline")
    return here, None, None


@dataclass(frozen=True)
class Layout:
    """What a file's names say of it.

    Attributes:
        shapes: name -> an empty tensor of that shape.
        whole: it holds an autoencoder too, not the denoiser alone.
    """

    shapes: Mapping[str, Tensor]
    whole: bool

    @classmethod
    def of(cls, path: Path) -> Layout:
        """Of a safetensors file; no weights are read.

        Raises:
            InputError: it is damaged, a LoRA, or an eraser.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                names = list(file.keys())
                shapes = {n: torch.empty(file.get_slice(n).get_shape(), device="meta") for n in names}
        except (SafetensorError, OSError) as error:
            if out_of_memory(error):
                raise
            raise InputError(
                f"cannot load {str(path)!r}: it is no whole safetensors file ({first_line(error)})"
            ) from error
        if any(".lora_" in n or n.startswith("lora_") or n.endswith(".bitmap") for n in names):
            raise InputError(f"{path} is a LoRA or an eraser, no model: --model names what it was made for")
        return cls(shapes, any(n.startswith(AUTOENCODER) for n in names))


def read_file(path: Path, how: Loading, *, dtype: str | None, device: str, without: Sequence[str]) -> DiffusionPipeline:
    """The pipeline of one file.

    Args:
        path: a .safetensors or .gguf file.
        how: its `config` names the pipeline that the file belongs to.
        dtype: precision; by default what suits the device and the model.
        device: where it will compute.
        without: parts not to load, where the pipeline has them.

    Raises:
        InputError: the file is no model, or what it lacks is nowhere named.
        OSError, ValueError, ...: what diffusers raises.
    """
    few = path.suffix.lower() == ".gguf"
    if few:
        check_library("gguf", "a .gguf file", device)
    layout = Layout({}, False) if few else Layout.of(path)
    if how.config is None and not layout.whole:
        raise InputError(
            f"{path} holds the denoiser alone: name the folder or Hub id of its pipeline with --model-config, for the "
            "text encoders, the autoencoder and the configuration"
        )
    config = how.config or fetch_diffusers_config(dict(layout.shapes))["pretrained_model_name_or_path"]
    parts = described(path, config, asked=how.config is not None)
    cls = getattr(diffusers, str(parts.get("_class_name")), None)
    if cls is None:
        raise InputError(f"--model-config {config}: expected a pipeline of diffusers, got {parts.get('_class_name')!r}")
    kind = precision(dtype, device, parts["_class_name"])
    left = {n: None for n, v in parts.items() if v in ([None, None], (None, None)) or n in without}
    given: dict[str, Any] = {"safety_checker": None, **left}
    if few or not layout.whole or how.quantize != "none":
        component = "unet" if "unet" in parts else "transformer"
        given[component] = _denoiser(path, how, parts, config=config, dtype=kind)
    if layout.whole:
        how.refuse(("variant",), "a single file has no variants")
        if not hasattr(cls, "from_single_file"):
            raise InputError(f"{cls.__name__} is not loaded from a single file: choose a diffusers folder or a Hub id")
        pipe = cls.from_single_file(str(path), config=str(config), dtype=kind, **given)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval()  # diffusers leaves a T5 encoder in training mode, with dropout
        return pipe
    more = arguments(how.quantize, parts, kind, without=[*given])
    return DiffusionPipeline.from_pretrained(
        config, dtype=kind, use_safetensors=True, variant=how.variant, **more, **given
    )


def described(path: Path, config: str, *, asked: bool) -> dict[str, Any]:
    """The `model_index.json` of the pipeline that a file belongs to.

    Raises:
        InputError: it is not there.
    """
    try:
        return pipeline_index(config)
    except (OSError, ValueError) as error:
        line = first_line(error)
        if asked:
            wanted = "" if isinstance(error, InputError) else "expected a diffusers folder or a Hub id: "
            raise InputError(f"--model-config {config}: {wanted}{line}") from error
        raise InputError(
            f"{path} looks like a checkpoint of {config!r}, whose configuration cannot be read ({line}): name a folder "
            "or Hub id of such a pipeline with --model-config"
        ) from error


def _denoiser(path: Path, how: Loading, parts: Mapping[str, Any], *, config: str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    component = "unet" if "unet" in parts else "transformer"
    cls = getattr(diffusers, parts[component][1])
    if not hasattr(cls, "from_single_file"):
        raise InputError(f"{cls.__name__} is not loaded from a single file: choose a diffusers folder or a Hub id")
    told: dict[str, Any] = {"config": str(config), "subfolder": component, "dtype": dtype}
    if path.suffix.lower() == ".gguf":
        few = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
        return cls.from_single_file(str(path), quantization_config=few, **told)
    net = cls.from_single_file(str(path), **told)
    if how.quantize == "none":
        return net
    with tempfile.TemporaryDirectory() as scratch:  # diffusers quantises what it reads from a folder only
        net.save_pretrained(scratch)
        del net
        return cls.from_pretrained(scratch, dtype=dtype, quantization_config=quantiser(how.quantize, component, dtype))


def is_whole(name: str) -> bool:
    """For a blueprint: whether a .safetensors file holds more than the denoiser. One that is not here is taken to."""
    path = here(name)
    return path is None or Layout.of(path).whole


def here(name: str) -> Path | None:
    """The file of that name or address, where it is in this computer already."""
    if not (found := PAGE.match(name)):
        return Path(name) if Path(name).is_file() else None
    repo, branch, path = map(unquote, found.groups())
    kept = try_to_load_from_cache(repo, path, revision=branch)
    return Path(kept) if isinstance(kept, str) else None


def from_header(name: str, config: str, parts: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """For a blueprint: the denoiser of a .gguf file by its header, as diffusers would read it, without its weights.

    Args:
        name: of the file, or its address.
        config: the pipeline that it belongs to.
        parts: what is in that pipeline.
        dtype: precision that it computes in.

    Raises:
        InputError: no such file here, or the library that reads it is missing.
        OSError, ValueError, ...: what diffusers raises.
    """
    check_library("gguf", "a .gguf file", "")
    from diffusers.quantizers.gguf.utils import GGUFParameter
    from gguf import GGMLQuantizationType, GGUFReader

    path = here(name)
    if path is None and PAGE.match(name):
        raise InputError(f"{name} is not here, and its header says how its weights are held: download it first")
    if path is None:
        path, _, _ = fetch(name, None)  # says that there is none
    checkpoint: dict[str, Tensor] = {}
    for t in GGUFReader(path).tensors:
        width = torch.from_numpy(np.empty(0, t.data.dtype)).dtype
        empty = torch.empty(tuple(t.data.shape), dtype=width, device="meta")
        whole = t.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
        checkpoint[t.name] = empty if whole else GGUFParameter(empty, quant_type=t.tensor_type)
    component = "unet" if "unet" in parts else "transformer"
    few = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    told: dict[str, Any] = {"config": config, "subfolder": component, "dtype": dtype, "device": "meta"}
    net = getattr(diffusers, parts[component][1]).from_single_file(checkpoint, quantization_config=few, **told)
    return net
