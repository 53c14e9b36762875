"""Loading weights into few bits, by libraries that are extras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import diffusers
import torch
import transformers

from ..prompts import InputError
from ._loading import Quantize

LIBRARIES: dict[str, str] = {
    "bnb4": "bitsandbytes",
    "bnb8": "bitsandbytes",
    "ao-int8": "torchao",
    "ao-float8": "torchao",
    "gguf": "gguf",
}


def check_library(what: str, flag: str, device: str) -> None:
    """Make sure that what reads or writes these bits is installed and works on the device.

    Raises:
        InputError: it is not, or does not.
    """
    library = LIBRARIES[what]
    if find_spec(library) is None:
        raise InputError(f"{flag} needs {library}, which is not installed: pip install 'erasers[{library}]'")
    check_works(what, flag, device)


def check_works(what: str, flag: str, device: str) -> None:
    """Make sure that it works on the device.

    Raises:
        InputError: it does not.
    """
    if LIBRARIES[what] == "bitsandbytes" and device.startswith("cpu"):
        raise InputError(f"{flag} needs a GPU, the device is {device!r}: use --device cuda, or --quantize ao-int8")


def quantiser(what: Quantize, component: str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """The configuration with which one part of a pipeline is read: diffusers' own for a denoiser, transformers' for a
    text encoder.
    """
    library = transformers if component.startswith("text_encoder") else diffusers
    if what == "bnb4":
        return library.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if what == "bnb8":
        return library.BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return library.TorchAoConfig(Int8WeightOnlyConfig() if what == "ao-int8" else Float8WeightOnlyConfig())


def shrinkable(parts: Mapping[str, Any]) -> list[str]:
    """The parts of a pipeline (its `model_index.json`) that are worth it: the denoiser, and text encoders but CLIP."""
    found = [n for n in ("unet", "transformer") if n in parts]
    for name, entry in parts.items():
        kind = entry[1] if isinstance(entry, (list, tuple)) and len(entry) == 2 else None
        if name.startswith("text_encoder") and kind and not kind.startswith("CLIP"):
            found.append(name)
    return found


def shrunk(what: Quantize, parts: Mapping[str, Any], without: Sequence[str] = ()) -> list[str]:
    """The parts that are quantised, except some."""
    return [n for n in shrinkable(parts) if n not in without] if what != "none" else []


def arguments(
    what: Quantize, parts: Mapping[str, Any], dtype: torch.dtype, without: Sequence[str] = ()
) -> dict[str, Any]:
    """The arguments of `DiffusionPipeline.from_pretrained` that quantise what is worth it, except some parts."""
    names = shrunk(what, parts, without)
    if not names:
        return {}
    mapping = {n: quantiser(what, n, dtype) for n in names}
    return {"quantization_config": diffusers.PipelineQuantizationConfig(quant_mapping=mapping)}
