"""What of a prompt a backbone's denoiser is given, as one vector; and what writes by it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..prompts import InputError
from . import _prompted
from ._backbone import Backbone, Condition
from ._families import FAMILIES
from ._prompted import Read, Write, Writer, by_name, conditional, disguise, mask, signal, source


class _Seen(Exception):
    """Leaves the denoiser before it begins."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def signals(backbone: Backbone, cond: Condition, read: Read) -> Tensor:
    """The signal of each prompt of a condition, float32 [B, D], read off the denoiser's own call.

    Raises:
        InputError: the denoiser is given nothing of that kind.
    """

    def stop(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = by_name(root, args, kwargs)
        try:
            found = signal(call, read)
        except KeyError:
            there = ("last", "mean") if read == "pooled" else ("pooled",)
            raise InputError(
                f"signal: {backbone.name} gives its denoiser nothing {read!r} of a prompt: use {' or '.join(there)}"
            ) from None
        raise _Seen(found.clone())

    x, t = torch.zeros(len(cond), *backbone.latent_shape), torch.zeros(len(cond), dtype=torch.long)
    handle = backbone.denoiser.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad(), backbone.using(None):
            backbone.denoise(x, t, cond)
    except _Seen as seen:
        return seen.value
    finally:
        handle.remove()
    raise RuntimeError(f"{backbone.name} does not call its denoiser")


def prompt_signals(backbone: Backbone, prompts: Sequence[str], read: Read, *, chunk: int = 64) -> Tensor:
    """The signals of many prompts, [n, D], encoded some at a time."""
    parts = []
    for k in range(0, len(prompts), chunk):
        parts.append(signals(backbone, backbone.encode(list(prompts[k : k + chunk])), read))
    return torch.cat(parts)


def bypassed(root: nn.Module) -> bool:
    """Whether fused projections (`pipe.fuse_qkv_projections()`) stand in for Linears of attention, so that what hooks
    add to those goes nowhere. The older attention class keeps its mark when they are taken apart again: there the
    processor tells.
    """
    for m in root.modules():
        if getattr(m, "fused_projections", False):
            processor = type(getattr(m, "processor", None)).__name__
            if type(m).__name__ != "Attention" or processor.startswith("Fused"):
                return True
    return False


def write_by_prompt(
    backbone: Backbone, layers: Sequence[str], write: Write, *, read: Read, label: str, scale: float = 1.0
) -> Writer:
    """Let a denoiser's Linears of these full names be updated as `write` says, prompt by prompt, until `remove`.

    Raises:
        InputError: fused projections stand in for them.
    """
    if bypassed(backbone.denoiser):
        raise InputError(
            f"{backbone.name} has fused attention projections, which leave out the layers that are written for: call "
            "pipe.unfuse_qkv_projections() first"
        )
    found = backbone.modules("all")
    writer = Writer(
        backbone.denoiser,
        {n: found[n] for n in layers},
        write,
        read=read,
        free_first=backbone.free_first,
        shared=backbone.shared,
        label=label,
    )
    writer.scale, writer.pipe = scale, backbone.pipe
    return writer


@contextmanager
def disguised(backbone: Backbone, prompt: str, read: Read) -> Iterator[None]:
    """Inside, the denoiser's conditional rows carry the signal of another, harmless prompt, while their text states are
    the asked one's: what somebody can do who knows what a hypernetwork reads. Works on images drawn by the pipeline.
    """
    other = prompt_signals(backbone, [prompt], read)[0]

    def swap(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call = by_name(root, args, kwargs)
        value = source(call, read)[1]
        parts = list(value) if isinstance(value, (list, tuple)) else [value]
        told = next((w.told for w in _prompted.writers(root).values() if w.told is not None), None)
        rows = mask(told or conditional(root, parts, len(value), backbone.free_first), len(value))
        if not rows.any():
            return args, kwargs
        new = disguise(call, read, other, rows)
        names = [n for n in inspect.signature(type(_prompted.unwrapped(root)).forward).parameters if n != "self"]
        placed = tuple(new.pop(n, v) for n, v in zip(names, args, strict=False))
        return (*placed, *args[len(placed) :]), {**kwargs, **new}

    handle = backbone.denoiser.register_forward_pre_hook(swap, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def pipeline_class(family: str) -> tuple[str, str, bool, bool]:
    """A family's stock text-to-image class, its denoiser's name, whether the unconditional rows of a call that guidance
    shares come first, and whether it shares one.
    """
    if family in FAMILIES:
        row = FAMILIES[family]
        return row.pipeline, "transformer", row.negative != "second", row.shared
    return {"sd": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}[family], "unet", True, True


def portable() -> str:
    """The source of what writes by prompt, which needs torch only."""
    return inspect.getsource(_prompted)
