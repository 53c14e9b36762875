"""Stable Diffusion 1.x, 2.x and SDXL: the families with a UNet and cross-attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from torch import Tensor, nn

from ..prompts import InputError, unknown
from ._adapters import only
from ._backbone import Condition, Group, TextStates
from ._overlay import cover, overlay, showing, uncover
from ._record import record

SAMPLERS = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "pndm": PNDMScheduler,
}


def _sampler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """A sampler of that name for a pipeline's noise schedule. DDIM would clip latents to [-1, 1] where the pipeline's
    own scheduler does not know the setting.
    """
    more = {"clip_sample": config.get("clip_sample", False)} if name == "ddim" else {}
    return SAMPLERS[name].from_config(config, **more)


ADAPTER_PARTS = {"base_layer", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_dropout"}
"""What PEFT puts under a layer it adapts."""


class UNetBackbone:
    """`Backbone` over `StableDiffusionPipeline`, `StableDiffusionXLPipeline` and their relatives.

    Args:
        pipe: the pipeline; it is used, never changed.
        name: what the user called it (Hub id, folder, "canvas-sd").
        preset: the name of the settings that suit it ("canvas", "sd").

    Raises:
        InputError: the scheduler's prediction is neither epsilon nor v.
    """

    def __init__(self, pipe: DiffusionPipeline, name: str, preset: str = "sd") -> None:
        self.pipe, self.name, self.preset = pipe, name, preset
        self.family = "sdxl" if getattr(pipe, "text_encoder_2", None) is not None else "sd"
        self.prediction: str = pipe.scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction"):
            raise InputError(f"{name}: expected epsilon or v_prediction, its scheduler says {self.prediction!r}")
        reference = _sampler("ddim", pipe.scheduler.config)
        self._alphas: Tensor = reference.alphas_cumprod

    @property
    def denoiser(self) -> nn.Module:
        return self.pipe.unet

    @property
    def device(self) -> torch.device:
        return next(self.pipe.unet.parameters()).device  # diffusers' own property walks over every module

    @property
    def dtype(self) -> torch.dtype:
        return next(self.pipe.unet.parameters()).dtype

    @property
    def latent_shape(self) -> tuple[int, ...]:
        config = self.pipe.unet.config
        size = config.sample_size
        h, w = (size, size) if isinstance(size, int) else size
        return (config.in_channels, h, w)

    # ------------------------------------------------------------ text

    def encode(self, prompts: Sequence[str]) -> Condition:
        return self._condition(self._record(list(prompts), 1.0), len(prompts))

    def unconditional(self, n: int) -> Condition:
        return self._condition(self._record([""] * n, 2.0), 2 * n)[:n]

    def _record(self, prompts: list[str], guidance: float) -> dict[str, object]:
        if not isinstance(self.pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
            kind = type(self.pipe).__name__
            raise InputError(f"{self.name} is a {kind}: erasing needs a text-to-image pipeline; erasers attach to both")
        return record(self.pipe, self.denoiser, prompt=prompts, guidance_scale=guidance)[1]

    @staticmethod
    def _condition(kwargs: dict[str, object], count: int) -> Condition:
        keep = ("encoder_hidden_states", "added_cond_kwargs", "timestep_cond", "class_labels")
        return Condition({k: v for k, v in kwargs.items() if k in keep and v is not None}, count)

    def text_states(self, texts: Sequence[str]) -> TextStates:
        towers = [(self.pipe.tokenizer, self.pipe.text_encoder)]
        if self.family == "sdxl":
            towers.append((self.pipe.tokenizer_2, self.pipe.text_encoder_2))
        towers = [(tok, enc) for tok, enc in towers if enc is not None]
        parts, lengths, ids = [], [], torch.empty(0)
        for tok, enc in towers:
            limit = min(tok.model_max_length, enc.config.max_position_embeddings)
            batch = tok(list(texts), padding="longest", truncation=True, max_length=limit, return_tensors="pt")
            lengths = batch.attention_mask.sum(1).tolist()
            ids = batch.input_ids
            with torch.no_grad():
                out = enc(ids.to(enc.device), output_hidden_states=self.family == "sdxl")
            parts.append(out.hidden_states[-2] if self.family == "sdxl" else out[0])
        joined = torch.cat(parts, -1)
        return TextStates(
            tuple(i[:n] for i, n in zip(ids, lengths, strict=True)),
            tuple(s[:n] for s, n in zip(joined, lengths, strict=True)),
        )

    def inputs(self, module: str, cond: Condition) -> Tensor:
        seen: list[Tensor] = []
        target = self.modules("all").get(module)
        if target is None:
            raise unknown("module", module, self.modules("all"))
        handle = target.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().clone()))
        c, *_ = self.latent_shape
        size = 2 ** (len(self.pipe.unet.config.block_out_channels) - 1)
        try:
            with torch.no_grad():
                self.denoise(torch.zeros(len(cond), c, size, size), torch.zeros(len(cond), dtype=torch.long), cond)
        finally:
            handle.remove()
        return seen[0]

    # ------------------------------------------------------------ diffusion

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        x, t = x.to(self.device, self.dtype), t.to(self.device)
        return self.pipe.unet(x, t, **cond.kwargs, return_dict=False)[0]

    def _coefficients(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), each [B, 1, 1, 1], in float32."""
        abar = self._alphas.to(x.device)[t.to(x.device).long()].view(-1, *[1] * (x.ndim - 1))
        return abar.sqrt(), (1 - abar).sqrt()

    def noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        a, s = self._coefficients(x0, t)
        return (a * x0 + s * eps).to(x0.dtype)

    def x0(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        a, s = self._coefficients(x, t)
        value = (x - s * out) / a if self.prediction == "epsilon" else a * x - s * out
        return value.to(x.dtype)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return eps
        a, s = self._coefficients(x0, t)
        return (a * eps - s * x0).to(x0.dtype)

    def times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(len(self._alphas), (n,), generator=generator)

    @torch.no_grad()
    def partial(
        self,
        cond: Condition,
        stop: Tensor,
        noise: Tensor,
        *,
        steps: int,
        guidance: float,
        null: Condition | None = None,
    ) -> tuple[Tensor, Tensor]:
        if len(stop) != len(cond) or not ((stop >= 0) & (stop <= steps)).all():
            raise InputError(f"expected {len(cond)} stops from 0 to {steps}, got {stop.tolist()}")
        if not 1 <= steps < len(self._alphas):
            raise InputError(f"sampler-steps: expected 1 to {len(self._alphas) - 1}, got {steps}")
        scheduler = _sampler("ddim", self.pipe.scheduler.config)
        scheduler.set_timesteps(steps, device=self.device)
        stop, x = stop.to(self.device), noise.to(self.device, self.dtype).clone()
        if guidance != 1.0 and null is None:
            null = self.unconditional(1)
        for k, t in enumerate(scheduler.timesteps[: int(stop.max())]):
            rows = (stop > k).nonzero().flatten()  # a row that has arrived costs nothing more
            part, led = x[rows], cond[rows]
            if guidance == 1.0 or null is None:
                out = self.denoise(part, t.expand(len(rows)), led)
            else:
                both = null[[0] * len(rows)] + led
                free, out = self.denoise(torch.cat([part, part]), t.expand(2 * len(rows)), both).chunk(2)
                out = free + guidance * (out - free)
            x[rows] = scheduler.step(out, t, part, return_dict=False)[0].to(x.dtype)
        times = torch.cat([scheduler.timesteps, scheduler.timesteps.new_zeros(1)])
        return x, times[stop]

    # ------------------------------------------------------------ images

    @torch.no_grad()
    def latents(self, images: Sequence[Image.Image]) -> Tensor:
        with self._vae() as vae:
            x = self.pipe.image_processor.preprocess(list(images)).to(vae.device, vae.dtype)
            return vae.encode(x).latent_dist.mode().to(self.dtype) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, z: Tensor) -> list[Image.Image]:
        with self._vae() as vae:
            x = vae.decode(z.to(vae.device, vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(x, output_type="pil")

    @contextmanager
    def _vae(self) -> Iterator[AutoencoderKL]:
        """The autoencoder, in float32 where its config says that it overflows in float16 (SDXL's)."""
        vae, dtype = self.pipe.vae, self.pipe.vae.dtype
        upcast = dtype == torch.float16 and vae.config.force_upcast
        try:
            yield vae.to(torch.float32) if upcast else vae
        finally:
            if upcast:
                vae.to(dtype)

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int = 25,
        guidance: float = 7.5,
        sampler: str | None = None,
        batch: int = 8,
    ) -> list[Image.Image]:
        if len(prompts) != len(seeds):
            raise InputError(f"expected one seed for each prompt, got {len(prompts)} prompts and {len(seeds)} seeds")
        images: list[Image.Image] = []
        with self._sampler(sampler):
            for k in range(0, len(prompts), batch):
                noise = [torch.Generator("cpu").manual_seed(s) for s in seeds[k : k + batch]]
                images += self.pipe(
                    list(prompts[k : k + batch]),
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=noise,
                ).images
        return images

    @contextmanager
    def _sampler(self, name: str | None) -> Iterator[None]:
        if name is not None and name not in SAMPLERS:
            raise unknown("sampler", name, SAMPLERS)
        own = self.pipe.scheduler
        if name is not None:
            self.pipe.scheduler = _sampler(name, own.config)
        try:
            yield
        finally:
            self.pipe.scheduler = own

    # ------------------------------------------------------------ weights

    def modules(self, group: Group) -> dict[str, nn.Linear]:
        found = {}
        for component, root in self._roots(group):
            for path, module in root.named_modules():
                if ADAPTER_PARTS & set(path.split(".")):
                    continue
                if isinstance(base := _base(module), nn.Linear) and _in_group(path, group):
                    found[f"{component}.{path}"] = base
        return found

    def parameters(self, group: Group) -> dict[str, nn.Parameter]:
        return {
            f"{component}.{path}".replace(".base_layer", ""): p
            for component, root in self._roots(group)
            for path, p in root.named_parameters()
            if _in_group(path, group) and not ADAPTER_PARTS - {"base_layer"} & set(path.split("."))
        }

    def _roots(self, group: Group) -> list[tuple[str, nn.Module]]:
        if group != "text-encoder":
            return [("unet", self.pipe.unet)]
        names = ("text_encoder", "text_encoder_2")
        return [(n, m) for n in names if (m := getattr(self.pipe, n, None)) is not None]

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        with only(adapter, self.pipe.unet, *(m for _, m in self._roots("text-encoder"))), self._covered(adapter):
            yield

    def save_denoiser(self, folder: Path) -> None:
        self.pipe.unet.save_pretrained(folder)

    @contextmanager
    def checkpointed(self) -> Iterator[None]:
        unet = self.pipe.unet
        was_on, was_training = unet.is_gradient_checkpointing, unet.training
        unet.enable_gradient_checkpointing()
        unet.train()  # diffusers checkpoints in training mode only
        try:
            yield
        finally:
            unet.train(was_training)
            if not was_on:
                unet.disable_gradient_checkpointing()

    def _covered(self, label: str | None) -> AbstractContextManager[None]:
        covered = overlay(self.denoiser) is not None
        return showing(self.denoiser, self.parameters("all"), label) if covered else nullcontext()

    def cover(self, values: Mapping[str, Tensor], label: str) -> None:
        cover(self.denoiser, self.parameters("all"), values, label)

    def uncover(self, label: str) -> None:
        uncover(self.denoiser, self.parameters("all"), label)


def _base(module: nn.Module) -> nn.Module:
    """The layer under an adapter, the layer itself where there is none."""
    return getattr(module, "base_layer", module)


def _in_group(path: str, group: Group) -> bool:
    parts = path.split(".")
    match group:
        case "text-kv":
            return "attn2" in parts and ("to_k" in parts or "to_v" in parts)
        case "cross":
            return "attn2" in parts
        case "self":
            return "attn1" in parts
        case "not-cross":
            return "attn2" not in parts
        case "all" | "text-encoder":
            return True
    raise unknown("module group", group, get_args(Group))
