"""Stable Diffusion 1.x, 2.x and SDXL: the families with a UNet and cross-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor

from ..prompts import InputError, unknown
from ._backbone import Condition, Group, TextStates
from ._clip import clip_states, known_states
from ._families import BOTH, POOLED_BOTH
from ._law import Diffusion
from ._prompted import telling
from ._record import record
from ._stock import Maker, StockBackbone, ddim


class UNetBackbone(StockBackbone):
    """`Backbone` over `StableDiffusionPipeline`, `StableDiffusionXLPipeline` and their relatives.

    Args:
        pipe: the pipeline; it is used, never changed.
        name: what the user called it (Hub id, folder, "canvas-sd").
        preset: the name of the settings that suit it ("canvas", "sd").
        call: more arguments of every stock call.

    Raises:
        InputError: the scheduler's prediction is neither epsilon nor v.
    """

    component = "unet"

    def __init__(
        self, pipe: DiffusionPipeline, name: str, preset: str = "sd", *, call: Mapping[str, Any] | None = None
    ) -> None:
        family = "sdxl" if hasattr(pipe, "text_encoder_2") else "sd"
        super().__init__(pipe, name, family=family, preset=preset, call=call)
        prediction: str = pipe.scheduler.config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise InputError(f"{name}: expected epsilon or v_prediction, its scheduler says {prediction!r}")
        self.law = Diffusion(ddim(pipe.scheduler.config).alphas_cumprod, prediction == "v_prediction")
        self.samplers: Mapping[str, Maker] = {
            "ddim": ddim,
            "dpm++": DPMSolverMultistepScheduler.from_config,
            "euler": EulerDiscreteScheduler.from_config,
            "pndm": PNDMScheduler.from_config,
        }
        self.pooled = "unet.add_embedding.linear_1" if family == "sdxl" else None
        self.reads = "pooled" if self.pooled else "last"
        self.returns = BOTH + (POOLED_BOTH if family == "sdxl" else ())

    @property
    def latent_shape(self) -> tuple[int, ...]:
        config = self.pipe.unet.config
        size = config.sample_size
        h, w = (size, size) if isinstance(size, int) else size
        factor = self.pipe.vae_scale_factor
        asked = self.call.get("height", h * factor), self.call.get("width", w * factor)
        return (config.in_channels, *(side // factor for side in asked))

    @property
    def image_size(self) -> tuple[int, int]:
        h, w = (side * self.pipe.vae_scale_factor for side in self.latent_shape[1:])
        return h, w

    def _encode(self, prompts: Sequence[str]) -> Condition:
        return self._condition(self._record(list(prompts), 1.0), len(prompts))

    def unconditional(self, n: int) -> Condition:
        return self._condition(self._record([""] * n, 2.0), 2 * n)[:n]

    def _check(self) -> None:
        if not isinstance(self.pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
            kind = type(self.pipe).__name__
            raise InputError(f"{self.name} is a {kind}: erasing needs a text-to-image pipeline; erasers attach to both")

    def _record(self, prompts: list[str], guidance: float) -> Mapping[str, object]:
        self._check()
        call = {"prompt": prompts, "guidance_scale": guidance, "generator": torch.Generator(), **self.call}
        with self._recalling():
            return record(self.pipe, self.denoiser, **call)[0].kwargs

    @staticmethod
    def _condition(kwargs: Mapping[str, object], count: int) -> Condition:
        keep = ("encoder_hidden_states", "added_cond_kwargs", "timestep_cond", "class_labels")
        return Condition({k: v for k, v in kwargs.items() if k in keep and v is not None}, count)

    @torch.no_grad()
    def _text_states(self, texts: Sequence[str], padded: bool) -> tuple[TextStates, ...]:
        self._check()
        pipe, big = self.pipe, self.family == "sdxl"
        if self.embeddings is not None and self.embeddings.knows(texts):
            states = self._encode(texts).kwargs["encoder_hidden_states"]
            return (known_states(pipe.tokenizer_2 if big else pipe.tokenizer, texts, states, padded=padded),)
        towers = [(pipe.tokenizer, pipe.text_encoder)]
        towers += [(pipe.tokenizer_2, pipe.text_encoder_2)] if big else []
        return (clip_states([t for t in towers if t[1] is not None], texts, -2 if big else None, padded=padded),)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, t = x.to(self.device, self.dtype), t.to(self.device)
        with telling(self.denoiser, "all"):
            return self.pipe.unet(x, t, **cond.kwargs, return_dict=False)[0]

    def trajectory(self, steps: int) -> SchedulerMixin:
        """DDIM.

        Raises:
            InputError: more steps than the schedule has.
        """
        scheduler = ddim(self.pipe.scheduler.config)
        if not 1 <= steps < len(scheduler.alphas_cumprod):
            raise InputError(f"sampler-steps: expected 1 to {len(scheduler.alphas_cumprod) - 1}, got {steps}")
        scheduler.set_timesteps(steps, device=self.device)
        if int(scheduler.timesteps.max()) >= len(scheduler.alphas_cumprod):
            raise InputError(
                f"{self.name} draws in a few steps and has no longer trajectory: choose a closed form, such as uce, or "
                "erase from the model it was distilled from"
            )
        return scheduler

    def in_group(self, path: str, group: Group) -> bool:
        parts = path.split(".")
        match group:
            case "text-in" | "text-kv":
                return "attn2" in parts and ("to_k" in parts or "to_v" in parts)
            case "prompt":
                return self.in_group(path, "text-in") or self.reads_pooled(path)
            case "cross":
                return "attn2" in parts
            case "self":
                return "attn1" in parts
            case "not-cross":
                return "attn2" not in parts
            case "all" | "text-encoder":
                return True
        raise unknown("module group", group, get_args(Group))
