"""Where a pipeline computes, in which precision, and what spares memory there."""

from __future__ import annotations

import os

import torch
from accelerate.state import PartialState
from diffusers import DiffusionPipeline
from torch import nn

from ..prompts import InputError, first_line, unknown
from ._loading import Loading

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def precision(asked: str | None, device: str, kind: object) -> torch.dtype:
    """The precision that was asked for; else float32 on a CPU, and on a GPU the half precision that a model was made
    for: bfloat16 for transformers, whose activations can overflow in float16; float16 for Stable Diffusion's UNets.

    Args:
        asked: a name, or None.
        device: where it computes.
        kind: class name of the pipeline.

    Raises:
        InputError: no such precision.
    """
    if asked is not None:
        if asked not in DTYPES:
            raise unknown("--dtype", asked, DTYPES)
        return DTYPES[asked]
    return torch.float32 if device.startswith("cpu") else half_precision(kind)


def half_precision(kind: object) -> torch.dtype:
    """The half precision that a model was made for, by the class name of its pipeline: see `precision`."""
    old = str(kind).startswith("StableDiffusion") and not str(kind).startswith("StableDiffusion3")
    return torch.float16 if old else torch.bfloat16


def chosen_device(device: str | None = None, *, here: bool = True) -> str:
    """The device that is meant: a GPU where there is one, for None and "auto".

    Args:
        device: its name.
        here: it must be in this computer.

    Raises:
        InputError: there is none of that name.
    """
    if device in (None, "auto", "cuda") and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        device = str(PartialState(cpu=not torch.cuda.is_available()).device)  # each process has its own
    if device in (None, "auto"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"cannot use device {device!r}: expected --device auto, cpu, cuda, cuda:1, mps ...") from error
    if not here:
        return device
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "meta": False}
    if not there.get(found.type, True):
        raise InputError(f"cannot use device {device!r}: this computer has none that torch can use; see --device")
    if found.type not in ("cpu", *there):
        try:
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError, ImportError) as error:
            raise InputError(f"cannot use device {device!r}: {first_line(error)}; see --device") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"cannot use device {device!r}: there are {torch.cuda.device_count()}; see --device")
    return device


def usable(device: str | None, how: Loading) -> str:
    """The chosen device, for a model that is loaded so.

    Raises:
        InputError: there is none of that name, or none to offload from.
    """
    device = chosen_device(device)
    check_offload(device, how)
    return device


def check_offload(device: str, how: Loading) -> None:
    """Make sure that there is something to offload from.

    Raises:
        InputError: there is not.
    """
    if how.offload != "none" and device.startswith("cpu"):
        raise InputError(
            f"--offload {how.offload} needs a GPU to bring parts to, the device is {device!r}: leave it out"
        )


def place(pipe: DiffusionPipeline, device: str, how: Loading) -> None:
    """Bring a pipeline to where it computes, as a whole or part by part."""
    if how.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif how.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)


def spare(pipe: DiffusionPipeline, denoiser: nn.Module, how: Loading) -> None:
    """Switch on what spares memory for time: slices of attention, of images, of an image.

    Raises:
        InputError: this family has no such thing.
    """
    if how.attention_slicing:
        if not hasattr(denoiser, "set_attention_slice"):
            raise InputError(
                f"--attention-slicing: a {type(denoiser).__name__} has none, its attention spares memory by itself; "
                "leave it out"
            )
        pipe.enable_attention_slicing()
    vae = getattr(pipe, "vae", None)
    for flag, wanted, verb in (
        ("--vae-slicing", how.vae_slicing, "enable_slicing"),
        ("--vae-tiling", how.vae_tiling, "enable_tiling"),
    ):
        if not wanted:
            continue
        try:
            getattr(vae, verb)()
        except (AttributeError, NotImplementedError) as error:
            raise InputError(f"{flag}: a {type(vae).__name__} has none; leave it out") from error
