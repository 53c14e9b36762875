"""Record the stock pipeline's call of its denoiser, so that it can be issued again with another latent or time."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn


class _Recorded(Exception):
    """Leaves the stock pipeline once its denoiser has been called."""


def record(pipe: DiffusionPipeline, denoiser: nn.Module, **call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:  # noqa: ANN401
    """Run the pipeline up to its first denoiser call and return that call's arguments. Nothing is denoised.

    `call` is what the pipeline's own `__call__` takes. Hooks are gone afterwards, whatever happened.

    Raises:
        RuntimeError: the pipeline finished without calling its denoiser.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _Recorded

    handle = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    bar = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**{**bar, "disable": True})
    try:
        with torch.no_grad():
            pipe(num_inference_steps=1, output_type="latent", **call)
    except _Recorded:
        return seen[0]
    finally:
        handle.remove()
        pipe.set_progress_bar_config(**bar)
    raise RuntimeError(f"{type(pipe).__name__} never called its denoiser")
