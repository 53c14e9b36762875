"""Record the stock pipeline's call of its denoiser, so that it can be issued again with another latent or time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ._few import UNGUARDED
from ._held import eagerly


class _Recorded(Exception):
    """Leaves the stock pipeline once its denoiser has been called."""


@dataclass(frozen=True)
class Call:
    """Arguments of a denoiser's call: the latent (or a list of them), however it was passed, what followed it without
    a name, and the rest by name.
    """

    latent: Any
    rest: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def record(pipe: DiffusionPipeline, denoiser: nn.Module, *, calls: int = 1, **call: Any) -> list[Call]:  # noqa: ANN401
    """Run the pipeline up to its denoiser's first call (or so many) and return the arguments.

    `call` is what the pipeline's own `__call__` takes. Hooks are gone afterwards, whatever happened.

    Raises:
        RuntimeError: the pipeline finished before.
    """
    seen: list[Call] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(Call(args[0], args[1:], kwargs) if args else Call(kwargs["hidden_states"], (), kwargs))
        if len(seen) == calls:
            raise _Recorded

    handle = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    token = UNGUARDED.set(True)
    bar = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**{**bar, "disable": True})
    try:
        with torch.no_grad(), eagerly(denoiser):
            pipe(**{"num_inference_steps": 1, "output_type": "latent", **call})
    except _Recorded:
        return seen
    finally:
        UNGUARDED.reset(token)
        handle.remove()
        pipe.set_progress_bar_config(**bar)
    raise RuntimeError(f"{type(pipe).__name__} called its denoiser {len(seen)} times, expected {calls}")
