"""Backbones over transformers: one class for every row of `FAMILIES`."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, wraps
from typing import Any, get_args

import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
)
from torch import Tensor, nn

from ..prompts import InputError, unknown
from ._backbone import Condition, Group, TextStates
from ._clip import speller
from ._families import FAMILIES, Family
from ._law import Diffusion, Flow, Law
from ._prompted import telling
from ._record import Call, record
from ._stock import Maker, StockBackbone, ddim


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


class TransformerBackbone(StockBackbone):
    """`Backbone` over a stock text-to-image pipeline with a transformer. Times are the scheduler's, 1000 at pure noise.

    Args:
        pipe: the pipeline; it is used, never changed.
        family: its row.
        name: what the user called it.
        preset: the name of the settings that suit it.
        call: more arguments of every stock call, such as `max_sequence_length`, `height` and `width`.
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
        # Flux.2 Klein may have its guidance in the weights, and then knows no other
        if getattr(pipe.config, "is_distilled", False):
            family = replace(family, negative="same", guided=False)
        self.row, self.pooled = family, family.pooled
        self.returns, self.listed = family.returns, family.listed
        padded_left = any(stream.left for stream in family.streams)  # where no mask tells padding, the end does
        self.reads = "pooled" if self.pooled else "last" if padded_left else "mean"
        self.free_first, self.shared = family.negative != "second", family.shared
        self._walks: dict[tuple[int, int], SchedulerMixin] = {}

    @cached_property
    def samplers(self) -> Mapping[str, Maker]:  # type: ignore[override]
        if self.row.epsilon:
            return {
                "ddim": ddim,
                "dpm++": DPMSolverMultistepScheduler.from_config,
                "euler": EulerDiscreteScheduler.from_config,
            }
        shift = self._own_shift
        return {"euler": lambda config: FlowMatchEulerDiscreteScheduler.from_config(config, shift=shift)}

    @cached_property
    def law(self) -> Law:  # type: ignore[override]
        """Raises InputError if the scheduler is of another kind than the family's."""
        own, row = self.pipe.scheduler, self.row
        prediction = own.config.get("prediction_type", "flow_prediction")
        if prediction != ("epsilon" if row.epsilon else "flow_prediction"):
            kind = "epsilon" if row.epsilon else "flows"
            raise InputError(f"{self.name}: expected a scheduler for {kind}, {type(own).__name__} says {prediction!r}")
        if row.epsilon:
            return Diffusion(ddim(own.config).alphas_cumprod)
        scale, warp = float(own.config.num_train_timesteps), 1.0
        if row.warped:
            half = self._record([""], **row.off)[0]
            warp = float(_odds(half.sigmas[1]) / _odds(half.timesteps[1] / scale))
        return Flow(row.sign, scale, 1.0, warp)

    @property
    def _own_shift(self) -> float:
        config = self.pipe.scheduler.config
        return float(config.get("shift", config.get("flow_shift", 1.0)))

    # ------------------------------------------------------------ the stock call

    def _record(self, prompts: Sequence[str], *, steps: int = 2, calls: int = 1, **more: Any) -> tuple[Any, list[Call]]:  # noqa: ANN401
        """The stock pipeline's first calls of its denoiser, and a scheduler as its own stands then (with one step some
        families' times are undefined). No randomness of the user's is consumed.
        """
        if (kind := type(self.pipe).__name__) != self.row.pipeline:
            raise InputError(f"{self.name} is a {kind}: erasing needs a text-to-image pipeline; erasers attach to both")
        own = self.pipe.scheduler
        self.pipe.scheduler = copy.deepcopy(own)
        try:
            call = {"prompt": list(prompts), "num_inference_steps": steps, **self.call, **more}
            with self._recalling():
                calls_made = record(self.pipe, self.denoiser, calls=calls, generator=torch.Generator(), **call)
            return self.pipe.scheduler, calls_made
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
        kwargs |= {k: kwargs[k].transpose(0, 1) for k in row.second}
        if row.maskless and f"{row.text}_mask" not in kwargs:
            text = kwargs[row.text]
            kwargs[f"{row.text}_mask"] = torch.ones(text.shape[:2], dtype=torch.int64, device=text.device)
        return Condition(kwargs, count, {k: given[k] for k in row.shares})

    def _encode(self, prompts: Sequence[str]) -> Condition:
        return self._condition(self._record(prompts, **self.row.off)[1][0], len(prompts))

    def unconditional(self, n: int) -> Condition:
        row = self.row
        if row.negative == "same":
            return self._encode([""] * n)
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

    def _text_states(self, texts: Sequence[str], padded: bool) -> tuple[TextStates, ...]:
        if not self.row.streams:
            raise InputError(f"no closed form is known for {self.family}: choose a trained method, such as esd")
        with self._reading() as seen:
            cond = self._encode(texts)
        if self.embeddings is not None and self.embeddings.knows(texts):
            seen = self.embeddings.tokens(texts)
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
            tok = getattr(tok, "tokenizer", tok)  # a processor of images and text holds one
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
        row = self.row
        kwargs = {**cond.kwargs, **{k: cond.kwargs[k].transpose(0, 1) for k in row.second}}
        x = x.to(self.device, self.dtype)
        t = row.time(t.to(self.device), self.dtype, self.denoiser.config)
        if row.maskless and bool(kwargs[f"{row.text}_mask"].all()):
            kwargs[f"{row.text}_mask"] = None
        with telling(self.denoiser, "all"):
            if row.listed:
                out = self.denoiser(list(x.unsqueeze(2)), t, **kwargs, return_dict=False)[0]
                return torch.stack(list(out)).squeeze(2)
            out = self.denoiser(hidden_states=x, **{row.clock: t}, **kwargs, **cond.shared, return_dict=False)[0]
        return out.chunk(2, dim=1)[0] if row.doubled and out.shape[1] == 2 * x.shape[1] else out

    # ------------------------------------------------------------ sampling

    @cached_property
    def _shift(self) -> float:
        """Of the training times: the scheduler's own, or what the pipeline makes of its image size."""
        if self.row.warped:
            return 1.0
        if not self.pipe.scheduler.config.get("use_dynamic_shifting"):
            return self._own_shift
        told: list[float] = []
        own = self.pipe.scheduler
        keep = own.set_timesteps

        @wraps(keep)  # the pipelines look at its arguments' names
        def listen(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            told.append(kwargs["mu"])
            return keep(*args, **kwargs)

        own.set_timesteps = listen
        try:
            self._record([""], **self.row.off)
        finally:
            del own.set_timesteps
        return float(_odds(torch.as_tensor(own.time_shift(told[0], 1.0, torch.tensor(0.5)))))

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
        key = (steps, id(own))
        if key not in self._walks:
            self._walks[key] = self._walk(steps)
        return copy.deepcopy(self._walks[key])

    def _walk(self, steps: int) -> SchedulerMixin:
        own = self.pipe.scheduler
        if self.row.epsilon:
            scheduler = ddim(own.config)
            scheduler.set_timesteps(steps, device=self.device)
            return scheduler
        theirs = self._record([""], steps=steps, **self.row.off)[0]
        euler = FlowMatchEulerDiscreteScheduler()
        euler.set_timesteps(1)
        # Heun's method visits every level but the ends twice
        new = torch.cat([torch.tensor([True]), theirs.timesteps.cpu().diff() != 0])
        level = theirs.sigmas.cpu()
        euler.timesteps = theirs.timesteps[new.to(theirs.timesteps.device)].to(self.device, torch.float32)
        euler.sigmas = torch.cat([level[:-1][new], level[-1:]])
        return euler

    def guided(self, cond: Condition, guidance: float) -> Condition:
        if not self.row.guided:
            return replace(cond)
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

    @property
    def image_size(self) -> tuple[int, int]:
        if not self.row.packed:
            h, w = (side * self.pipe.vae_scale_factor for side in self.latent_shape[-2:])
            return h, w
        side = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        return self.call.get("height", side), self.call.get("width", side)

    def _pack(self, z: Tensor) -> Tensor:
        if not self.row.packed:
            return super()._pack(z)
        if self.row.whitened:
            z = self.pipe._patchify_latents(z)
            mean, std = self._statistics(z)
            return ((z - mean) / std).flatten(2).transpose(1, 2)
        if z.ndim == 5:  # with a frame dimension, normalised channel by channel
            mean, std = self._channels(z)
            z = ((z - mean) / std).squeeze(2)
        else:
            z = super()._pack(z)
        return self.pipe._pack_latents(z, *z.shape)

    def _unpack(self, z: Tensor) -> Tensor:
        if not self.row.packed:
            return super()._unpack(z)
        if self.row.whitened:
            patch = 2 * self.pipe.vae_scale_factor
            z = z.transpose(1, 2).unflatten(2, tuple(side // patch for side in self.image_size))
            mean, std = self._statistics(z)
            return self.pipe._unpatchify_latents(z * std + mean)
        z = self.pipe._unpack_latents(z, *self.image_size, self.pipe.vae_scale_factor)
        if z.ndim == 5:
            mean, std = self._channels(z)
            return z * std + mean
        return super()._unpack(z)

    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.pipe.vae
        mean, var = (v.view(1, -1, 1, 1).to(z) for v in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (var + vae.config.batch_norm_eps).sqrt()

    def _channels(self, z: Tensor) -> tuple[Tensor, Tensor]:
        config = self.pipe.vae.config
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1).to(z) for v in (config.latents_mean, config.latents_std))
        return mean, std

    def in_group(self, path: str, group: Group) -> bool:
        row = self.row
        match group:
            case "text-in":
                return _within(path, row.text_in)
            case "prompt":
                return _within(path, row.text_in) or self.reads_pooled(path)
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
