"""Pipelines that draw in a few steps: with which scheduler, and a guard against drawing with more."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import diffusers
from diffusers import DDIMScheduler, DiffusionPipeline, SchedulerMixin

from ..prompts import InputError

_STACK = "_erasers_schedulers"
UNGUARDED: ContextVar[bool] = ContextVar("any number of steps will do", default=False)
"""Set while the stock call is only listened to, not drawn with."""


@dataclass(frozen=True)
class Drawing:
    """How a generator of few steps draws from unit noise.

    Attributes:
        scheduler: config of the stock scheduler, its class's name included; what diffusers saves.
        steps: of it.
        times: at which the denoiser is asked, `steps` of them.
        guidance: classifier-free guidance scale; 1 is off.
    """

    scheduler: Mapping[str, Any]
    steps: int
    times: tuple[float, ...]
    guidance: float = 1.0

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Drawing:
        """From a JSON object.

        Raises:
            InputError: something is missing, or the scheduler is none of diffusers'.
        """
        try:
            drawing = cls(record["scheduler"], int(record["steps"]), tuple(record["times"]), float(record["guidance"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"no record of how to draw ({type(error).__name__}: {error})") from error
        _class(drawing.scheduler)
        return drawing


def config_of(scheduler: SchedulerMixin) -> dict[str, Any]:
    """What diffusers saves of a scheduler, as JSON values."""
    return dict(json.loads(scheduler.to_json_string()))


def leading(config: Mapping[str, Any], steps: int, first: int) -> SchedulerMixin:
    """DDIM on a pipeline's noise schedule that asks at times `first`, `first` - T / steps, ... and ends in the clean
    latent: spacing "leading", its offset such that the first time is `first`.

    Raises:
        InputError: no such times.
    """
    total = int(config["num_train_timesteps"])
    gap = total // steps
    low = (steps - 1) * gap
    if not low <= first < low + gap:
        raise InputError(f"t-init: for {steps} steps expected {low} to {low + gap - 1}, got {first}")
    scheduler = DDIMScheduler.from_config(
        dict(config),
        timestep_spacing="leading",
        steps_offset=first - low,
        set_alpha_to_one=True,
        clip_sample=False,
        thresholding=False,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def _class(config: Mapping[str, Any]) -> type[SchedulerMixin]:
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise InputError(f"expected one of diffusers' schedulers, got {config.get('_class_name')!r}")
    return kind


def scheduler_of(drawing: Drawing) -> SchedulerMixin:
    """The scheduler; asked for another number of steps it says what to ask for. It is saved as the stock class.

    Raises:
        InputError: diffusers has no such scheduler.
    """
    kind = _class(drawing.scheduler)
    message = (
        f"this pipeline draws in {drawing.steps} step{'s' * (drawing.steps > 1)} now: call it with "
        f"num_inference_steps={drawing.steps} and guidance_scale={drawing.guidance:g}"
    )

    @wraps(kind.set_timesteps)
    def checked(self: Any, num_inference_steps: int | None = None, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        listed = next((v for k in ("sigmas", "timesteps") if (v := kwargs.get(k)) is not None), None)
        asked = num_inference_steps if listed is None else len(listed)  # Flux' pipelines list the noise levels
        if asked not in (None, drawing.steps) and not UNGUARDED.get():
            raise InputError(message)
        return kind.set_timesteps(self, num_inference_steps, *args, **kwargs)

    guarded: Any = type(kind.__name__, (kind,), {"set_timesteps": checked, "__module__": kind.__module__})
    return guarded.from_config(dict(drawing.scheduler))


def draw_in(pipe: DiffusionPipeline, drawing: Drawing) -> Callable[[], None]:
    """Give a pipeline that scheduler. The answer gives it back the one before, or the one of whoever came in between;
    a scheduler that the user has put in since stays.
    """
    mine = scheduler_of(drawing)
    stack: list[SchedulerMixin] = vars(pipe).setdefault(_STACK, [pipe.scheduler])
    stack.append(mine)
    pipe.scheduler = mine

    def undo() -> None:
        on_top = pipe.scheduler is stack[-1]
        stack[:] = [s for s in stack if s is not mine]
        if on_top:
            pipe.scheduler = stack[-1]
        if len(stack) == 1:
            vars(pipe).pop(_STACK, None)

    return undo
