"""Backbones over transformers: one class for every row of `FAMILIES`."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, get_args

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
)
from torch import Tensor, nn

from ..prompts import InputError, unknown
from ._backbone import Condition, Group, TextStates
from ._clip import speller
from ._families import FAMILIES, Family
from ._law import Diffusion, Flow, Law
from ._record import Call, record
from ._stock import Maker, StockBackbone


def family_of(pipe: DiffusionPipeline) -> Family | None:
    """The row of a pipeline or of its image-to-image relatives, if there is one. Of Flux there are two: with guidance
    distilled into it and without.
    """
    kind = re.sub(r"(Img2Img|Inpaint|ControlNet\w*)Pipeline$", "Pipeline", type(pipe).__name__)
    rows = [f for f in FAMILIES.values() if f.pipeline == kind]
    if len(rows) < 2:
        return rows[0] if rows else None
    distilled = bool(getattr(pipe.transformer.config, "guidance_embeds", False))
    return next(f for f in rows if f.embedded == distilled)


def _ddim(config: Mapping[str, Any]) -> SchedulerMixin:
    return DDIMScheduler.from_config(config, clip_sample=False)


class TransformerBackbone(StockBackbone):
    """`Backbone` over a stock text-to-image pipeline with a transformer. Times are the scheduler's, 1000 at pure noise.

    Args:
        pipe: the pipeline; it is used, never changed.
        family: its row.
        name: what the user called it.
        preset: the name of the settings that suit it.
        call: more arguments of every stock call, such as `max_sequence_length`, `height` and `width`.

    Raises:
        InputError: the scheduler is of another kind than the family's.
    """

    component = "transformer"

    def __init__(
        self,
        pipe: DiffusionPipeline,
        family: Family,
        name: str,
        *,
        preset: str = "sd",
        call: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(pipe, name, family=family.name, preset=preset, call={**family.call, **(call or {})})
        self.row, self.pooled = family, family.pooled
        self.samplers, self.law = self._rules()

    def _rules(self) -> tuple[Mapping[str, Maker], Law]:
        config, row = self.pipe.scheduler.config, self.row
        if row.epsilon:
            prediction = config.get("prediction_type")
            if prediction != "epsilon":
                raise InputError(f"{self.name}: expected a scheduler that predicts epsilon, it says {prediction!r}")
            makers = {
                "ddim": _ddim,
                "dpm++": DPMSolverMultistepScheduler.from_config,
                "euler": EulerDiscreteScheduler.from_config,
            }
            return makers, Diffusion(_ddim(config).alphas_cumprod)
        flows = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, DPMSolverMultistepScheduler)
        kind = config.get("prediction_type", "flow_prediction")
        if not isinstance(self.pipe.scheduler, flows) or kind != "flow_prediction":
            raise InputError(
                f"{self.name}: expected a flow-matching scheduler, got {type(self.pipe.scheduler).__name__}"
            )
        makers = {"euler": FlowMatchEulerDiscreteScheduler.from_config}
        shift = float(config.get("shift", config.get("flow_shift", 1.0)))
        scale, warp = float(config.num_train_timesteps), 1.0
        if row.warped:
            half = self._record([""], steps=2, **row.off)[0]
            warp, shift = float(_odds(half.sigmas[1]) / _odds(half.timesteps[1] / scale)), 1.0
        return makers, Flow(row.sign, scale, shift, warp)

    # ------------------------------------------------------------ the stock call

    def _record(self, prompts: Sequence[str], *, steps: int = 1, calls: int = 1, **more: Any) -> tuple[Any, list[Call]]:  # noqa: ANN401
        """The stock pipeline's first calls of its denoiser, and its scheduler as it stands then."""
        if (kind := type(self.pipe).__name__) != self.row.pipeline:
            raise InputError(f"{self.name} is a {kind}: erasing needs a text-to-image pipeline; erasers attach to both")
        own = self.pipe.scheduler
        self.pipe.scheduler = copy.deepcopy(own)
        try:
            call = {"prompt": list(prompts), "num_inference_steps": steps, **self.call, **more}
            return self.pipe.scheduler, record(self.pipe, self.denoiser, calls=calls, **call)
        finally:
            self.pipe.scheduler = own

    @cached_property
    def latent_shape(self) -> tuple[int, ...]:
        latent = self._record([""], **self.row.off)[1][0].latent
        return tuple(latent[0].squeeze(1).shape if self.row.listed else latent.shape[1:])

    def _condition(self, call: Call, count: int) -> Condition:
        row = self.row
        given = {**call.kwargs, **dict(zip(row.positional, call.rest, strict=False))}
        kwargs = {k: v for k in row.keeps if (v := given.get(k)) is not None}
        if f"{row.text}_mask" in row.keeps and f"{row.text}_mask" not in kwargs:  # left out where no text is padded
            kwargs[f"{row.text}_mask"] = torch.ones(kwargs[row.text].shape[:2], dtype=torch.int64, device=self.device)
        return Condition(kwargs, count, {k: given[k] for k in row.shares})

    def encode(self, prompts: Sequence[str]) -> Condition:
        return self._condition(self._record(prompts, **self.row.off)[1][0], len(prompts))

    def unconditional(self, n: int) -> Condition:
        row = self.row
        if row.negative == "same":
            return self.encode([""] * n)
        told = self.guidance_call(3.0, n)
        calls = self._record([""] * n, calls=2 if row.negative == "next" else 1, **told)[1]
        if row.negative == "next":
            return self._condition(calls[1], n)
        return self._condition(calls[0], 2 * n)[slice(n) if row.negative == "first" else slice(n, None)]

    @contextmanager
    def _reading(self) -> Iterator[dict[str, tuple[Tensor, Tensor | None]]]:
        """What each text encoder is given inside: token numbers and mask."""
        seen: dict[str, tuple[Tensor, Tensor | None]] = {}

        def keep(name: str) -> Any:  # noqa: ANN401
            def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                ids = args[0] if args else kwargs["input_ids"]
                seen[name] = (ids.cpu(), mask.cpu() if (mask := kwargs.get("attention_mask")) is not None else None)

            return look

        modules = {s.encoder: getattr(self.pipe, s.encoder, None) for s in self.row.streams}
        handles = [m.register_forward_pre_hook(keep(n), with_kwargs=True) for n, m in modules.items() if m is not None]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def text_states(self, texts: Sequence[str], *, padded: bool = False) -> tuple[TextStates, ...]:
        with self._reading() as seen:
            cond = self.encode(texts)
        layer = next(iter(self.modules("text-in")))  # what enters it: in some families the states are normalised first
        if self.row.listed:
            states: Any = [self.inputs(layer, cond[[k]]) for k in range(len(cond))]
        else:
            states = self.inputs(layer, cond)
        start, out = 0, []
        for stream in self.row.streams:
            if stream.encoder not in seen:
                continue
            ids, mask = seen[stream.encoder]
            rows = stream.rows or max(len(s) for s in states) - start
            tok = getattr(self.pipe, stream.tokenizer)
            index = torch.arange(ids.shape[1])
            index = index[stream.skip :][:rows] if stream.skip is not None else index[[0, *range(1 - rows, 0)]]
            parts = []
            for k, text in enumerate(states):
                real = ids[k].ne(tok.pad_token_id) if stream.left else _until_end(ids[k], mask, k, tok)
                whole = text[start : start + rows]
                keep = torch.ones(len(whole), dtype=torch.bool) if padded else real[index][: len(whole)].bool()
                parts.append((ids[k][index][: len(whole)][keep], whole[keep.to(whole.device)]))
            out.append(TextStates(tuple(i for i, _ in parts), tuple(s for _, s in parts), speller(tok)))
            start += rows
        return tuple(out)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        row, kwargs = self.row, dict(cond.kwargs)
        x = x.to(self.device, self.dtype)
        t = row.time(t.to(self.device), self.dtype, self.denoiser.config)
        if f"{row.text}_mask" in kwargs and row.name == "qwen-image" and bool(kwargs[f"{row.text}_mask"].all()):
            kwargs[f"{row.text}_mask"] = None  # as the stock call leaves it out
        if row.listed:
            out = self.denoiser(list(x.unsqueeze(2)), t, **kwargs, return_dict=False)[0]
            return torch.stack(list(out)).squeeze(2)
        out = self.denoiser(hidden_states=x, **{row.clock: t}, **kwargs, **cond.shared, return_dict=False)[0]
        return out.chunk(2, dim=1)[0] if row.doubled and out.shape[1] == 2 * x.shape[1] else out

    # ------------------------------------------------------------ sampling

    @cached_property
    def _shift(self) -> float:
        """Of the training times: the scheduler's own, or what the pipeline makes of its image size (read off the
        second of two steps, which is one half before the shift).
        """
        assert isinstance(self.law, Flow)
        if self.row.warped or not self.pipe.scheduler.config.get("use_dynamic_shifting"):
            return self.law.shift
        return float(_odds(self._record([""], steps=2, **self.row.off)[0].sigmas[1]))

    def times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        if isinstance(self.law, Flow):
            return replace(self.law, shift=self._shift).times(n, generator)
        return super().times(n, generator)

    def trajectory(self, steps: int) -> SchedulerMixin:
        """The stock call's own times, shifts included, under Euler's method; DDIM for diffusion models.

        Raises:
            InputError: no steps, or more than there are times.
        """
        own = self.pipe.scheduler
        if not 1 <= steps < own.config.num_train_timesteps:
            raise InputError(f"sampler-steps: expected 1 to {own.config.num_train_timesteps - 1}, got {steps}")
        if not self.row.epsilon and isinstance(own, FlowMatchEulerDiscreteScheduler):
            return self._record([""], steps=steps, **self.row.off)[0]
        euler = FlowMatchEulerDiscreteScheduler
        scheduler = _ddim(own.config) if self.row.epsilon else euler(shift=self._shift)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    def guided(self, cond: Condition, guidance: float) -> Condition:
        if not self.row.embedded:
            return cond
        return replace(cond, kwargs={**cond.kwargs, "guidance": torch.full_like(cond.kwargs["guidance"], guidance)})

    def combine(self, free: Tensor, led: Tensor, guidance: float) -> Tensor:
        out = super().combine(free, led, guidance)
        if not self.row.rescaled:
            return out
        return out * (led.norm(dim=-1, keepdim=True) / out.norm(dim=-1, keepdim=True))

    def guidance_call(self, guidance: float, n: int) -> dict[str, Any]:
        call: dict[str, Any] = {self.row.guidance: guidance - self.row.less}
        if self.row.guidance == "true_cfg_scale" and guidance > 1:
            call["negative_prompt"] = [""] * n
        return call

    # ------------------------------------------------------------ latents and layers

    def _size(self) -> tuple[int, int]:
        side = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return self.call.get("height", side), self.call.get("width", side)

    def _pack(self, z: Tensor) -> Tensor:
        if not self.row.packed:
            return super()._pack(z)
        if z.ndim == 5:  # with a frame dimension, normalised channel by channel
            mean, std = self._channels(z)
            z = ((z - mean) / std).squeeze(2)
        else:
            z = super()._pack(z)
        return self.pipe._pack_latents(z, *z.shape)

    def _unpack(self, z: Tensor) -> Tensor:
        if not self.row.packed:
            return super()._unpack(z)
        z = self.pipe._unpack_latents(z, *self._size(), self.pipe.vae_scale_factor)
        if z.ndim == 5:
            mean, std = self._channels(z)
            return z * std + mean
        return super()._unpack(z)

    def _channels(self, z: Tensor) -> tuple[Tensor, Tensor]:
        config = self.pipe.vae.config
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1).to(z) for v in (config.latents_mean, config.latents_std))
        return mean, std

    def in_group(self, path: str, group: Group) -> bool:
        row = self.row
        match group:
            case "text-in":
                return _within(path, row.text_in)
            case "text-kv":
                return _within(path, row.text_kv)
            case "cross":
                return _within(path, row.text_side)
            case "self":
                return _within(path, row.image) and not _within(path, row.text_side)
            case "not-cross":
                return not _within(path, row.text_side)
            case "all" | "text-encoder":
                return True
        raise unknown("module group", group, get_args(Group))


def _odds(s: Tensor) -> Tensor:
    return s / (1 - s)


def _within(path: str, names: Sequence[str]) -> bool:
    """Whether a path has one of these parts, block numbers left out ("layers.attn.to_k")."""
    plain = "." + ".".join(p for p in path.split(".") if not p.isdigit()) + "."
    return any(f".{n}." in f".{path}." or f".{n}." in plain for n in names)


def _until_end(ids: Tensor, mask: Tensor | None, k: int, tok: Any) -> Tensor:  # noqa: ANN401
    """Which tokens are text: those the mask says; without a mask, up to the first end-of-text token."""
    if mask is not None:
        return mask[k].bool()
    end = ids.eq(tok.eos_token_id).nonzero()
    return torch.arange(len(ids)) <= (int(end[0]) if len(end) else len(ids))
