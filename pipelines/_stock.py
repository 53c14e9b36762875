"""What backbones over stock diffusers pipelines share, whatever their family."""

from __future__ import annotations

import inspect
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce
from operator import add
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage, DDIMScheduler, DiffusionPipeline, SchedulerMixin
from PIL import Image
from torch import Tensor, nn

from ..prompts import InputError, unknown
from ._adapters import only
from ._backbone import Condition, Group, TextStates
from ._few import Drawing, config_of, leading
from ._fingerprint import fingerprint
from ._held import Values, eagerly, execution_device, located, quantised, wake
from ._law import Flow, Law
from ._memory import Embeddings, answering, check_known, encoders, in_order, listening, named, unencodable
from ._overlay import cover, overlay, showing, uncover
from ._prompted import Read, letting, telling, unwrapped, writers

Maker = Callable[[Mapping[str, Any]], SchedulerMixin]

ADAPTER_PARTS = {"base_layer", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_dropout"}
"""What PEFT puts under a layer it adapts."""


def ddim(config: Mapping[str, Any]) -> SchedulerMixin:
    """DDIM on a pipeline's noise schedule. It would clip latents to [-1, 1] where the pipeline's own scheduler does not
    know the setting.
    """
    return DDIMScheduler.from_config(config, clip_sample=config.get("clip_sample", False))


class _Seen(Exception):
    """Leaves the denoiser once a layer has been reached."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class StockBackbone:
    """`Backbone` but for what depends on the family: the text side, the denoiser's call and the groups of its layers.

    Attributes:
        component: the denoiser's name in the pipeline.
        samplers: name -> maker of a scheduler from the pipeline's own scheduler config.
        law: how latents are noised and what the denoiser answers.
        pooled: the Linear that reads the pooled text vector, if there is one.
        call: more arguments of every stock call, such as `max_sequence_length`.
        returns: names of what the pipeline's `encode_prompt` returns.
        listed: it returns lists of single prompts' tensors.
        reads: where a prompt's signal is read.
        free_first: whether the unconditional rows of a shared call come first.
        shared: whether both sides of guidance share a call in this family.
        embeddings: the prompts it remembers.
        drawing: how it draws, where it is a generator of few steps.
        provenance: what else than its name says what it was loaded from: revision, commit, variant, config, quantized.
        compiler: the backend of `torch.compile` that it draws with; "" is none.
    """

    component: str
    samplers: Mapping[str, Maker]
    law: Law
    pooled: str | None
    returns: tuple[str, ...]
    listed: bool = False
    reads: Read
    free_first: bool = True
    shared: bool = True
    embeddings: Embeddings | None = None
    drawing: Drawing | None = None
    provenance: Mapping[str, str] = MappingProxyType({})
    compiler: str = ""

    def __init__(
        self, pipe: DiffusionPipeline, name: str, *, family: str, preset: str, call: Mapping[str, Any] | None
    ) -> None:
        self.pipe, self.name, self.family, self.preset = pipe, name, family, preset
        self.call: Mapping[str, Any] = call or {}
        self._fast: Callable[..., Any] | None = None

    @property
    def world(self) -> str:
        return "canvas" if self.preset.startswith("canvas") else ""

    @property
    def denoiser(self) -> nn.Module:
        return getattr(self.pipe, self.component)

    @property
    def device(self) -> torch.device:
        return execution_device(self.denoiser)  # diffusers' own property walks over every module

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.denoiser.parameters() if p.is_floating_point())  # others are quantised

    @property
    def quantized(self) -> str:
        return quantised(self.denoiser)

    # ------------------------------------------------------------ what a family adds

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]: ...

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor: ...

    @abstractmethod
    def unconditional(self, n: int) -> Condition: ...

    @abstractmethod
    def _encode(self, prompts: Sequence[str]) -> Condition:
        """The condition of prompts that go into one stock call."""

    @abstractmethod
    def _text_states(self, texts: Sequence[str], padded: bool) -> tuple[TextStates, ...]:
        """The states of texts that go into one stock call."""

    def _reading(self) -> AbstractContextManager[dict[str, tuple[Tensor, Tensor | None]]]:
        """Inside, the token numbers and mask that text encoders are given, where they cannot be had otherwise."""
        return nullcontext({})

    @abstractmethod
    def trajectory(self, steps: int) -> SchedulerMixin:
        """A deterministic sampler of its own, its times set."""

    @abstractmethod
    def in_group(self, path: str, group: Group) -> bool:
        """Whether the layer or parameter at that path of the denoiser belongs to the group."""

    def reads_pooled(self, path: str) -> bool:
        """Whether it is, or is of, the layer that reads the pooled text vector."""
        return self.pooled is not None and f"{self.component}.{path}.".startswith(f"{self.pooled}.")

    def guided(self, cond: Condition, guidance: float) -> Condition:
        """The condition with guidance in it, where the denoiser takes it as an input; else the condition itself."""
        return cond

    def combine(self, free: Tensor, led: Tensor, guidance: float) -> Tensor:
        """The guided prediction from the unconditional and the conditional one."""
        return free + guidance * (led - free)

    @property
    def defaults(self) -> tuple[int, float]:
        """Sampler steps and guidance of a stock call that names neither."""
        given = inspect.signature(type(self.pipe).__call__).parameters
        (name,) = self.guidance_call(1.0, 0).keys()
        less = 1.0 - self.guidance_call(1.0, 0)[name]
        return int(given["num_inference_steps"].default), float(given[name].default) + less

    def guidance_call(self, guidance: float, n: int) -> dict[str, Any]:
        """The stock call's arguments for that guidance on n prompts."""
        return {"guidance_scale": guidance}

    # ------------------------------------------------------------ prompts, encoded now or remembered

    def encode(self, prompts: Sequence[str]) -> Condition:
        groups = self._groups(prompts)
        parts = [self._encode([prompts[k] for k in group]) for group in groups]
        if len(parts) == 1:
            return parts[0]
        places = [k for group in groups for k in group]
        return reduce(add, parts)[sorted(range(len(places)), key=places.__getitem__)]

    def text_states(self, texts: Sequence[str], *, padded: bool = False) -> tuple[TextStates, ...]:
        groups = self._groups(texts)
        parts = [self._text_states([texts[k] for k in group], padded) for group in groups]
        return tuple(
            TextStates(
                tuple(in_order(groups, [s.ids for s in stream])),
                tuple(in_order(groups, [s.states for s in stream])),
                stream[0].spell,
            )
            for stream in zip(*parts, strict=True)
        )

    @torch.no_grad()
    def remember(self, prompts: Sequence[str]) -> Embeddings:
        held = self.embeddings
        states = {} if held is None else {p: held.states[p] for p in ["", *prompts] if p in held.states}
        for text in dict.fromkeys(["", *prompts]):
            if text not in states:
                with self._reading() as seen, listening(self.pipe) as heard:
                    self._encode([text])
                told = {f"{e}.{k}": v for e, pair in seen.items() for k, v in zip(("ids", "mask"), pair, strict=True)}
                states[text] = named(self.returns, heard[0]) | {k: v for k, v in told.items() if v is not None}
        if held is not None:
            return Embeddings(states, held.free, held.origin)
        with listening(self.pipe) as heard:
            self.unconditional(1)
        free = {k: v for k, v in named(self.returns, heard[0]).items() if k.startswith("negative_")}
        return Embeddings(states, free, self.origin())

    def origin(self) -> dict[str, Any]:
        """What tells the pipeline whose prompts these are from others, see `Embeddings`."""
        with self.using(None):
            weights = fingerprint(self.values("all"))["weights"]
        takes = inspect.signature(self.pipe.encode_prompt).parameters
        call = json.loads(json.dumps({k: v for k, v in self.call.items() if k in takes}, default=str))
        found = encoders(self.pipe)
        few = {"quantized": self.quantized} if self.quantized else {}
        return {"family": self.family, "base": self.name, "weights": weights, "call": call, "encoders": found, **few}

    def _groups(self, prompts: Sequence[str]) -> list[list[int]]:
        """Places of the prompts that go into one stock call each: those encoded now, those remembered of one shape."""
        held = self.embeddings
        check_known(self.pipe, held, prompts)
        groups: dict[object, list[int]] = {}
        for k, prompt in enumerate(prompts):
            known = held is not None and prompt in held.states
            groups.setdefault(held.shape(prompt) if held and known and not self.listed else known, []).append(k)
        return list(groups.values()) or [[]]

    def unencodable(self, prompts: Sequence[str]) -> list[str]:
        return unencodable(self.pipe, self.embeddings, prompts)

    @contextmanager
    def noting(self) -> Iterator[dict[str, None]]:
        own: Callable[[Sequence[str]], list[list[int]]] = self._groups
        asked: dict[str, None] = {}

        def groups(prompts: Sequence[str]) -> list[list[int]]:
            asked.update(dict.fromkeys(prompts))
            return own(prompts)

        vars(self)["_groups"] = groups
        try:
            yield asked
        finally:
            del vars(self)["_groups"]

    def _recalling(self) -> AbstractContextManager[None]:
        """Inside, the stock call is told what is remembered."""
        if self.embeddings is None and encoders(self.pipe):
            return nullcontext()
        return answering(self.pipe, self.embeddings, names=self.returns, dtype=self.dtype, listed=self.listed)

    # ------------------------------------------------------------ noise

    def noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return self.law.noise(x0, t, eps)

    def x0(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        return self.law.x0(x, t, out)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return self.law.target(x0, eps, t)

    def times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.law.times(n, generator)

    def few(self, steps: int, first: int) -> Drawing:
        if isinstance(self.law, Flow):
            times = [self.law.scale] if steps == 1 else self.trajectory(steps).timesteps.tolist()
            return Drawing(config_of(self.pipe.scheduler), steps, tuple(times))
        scheduler = leading(self.pipe.scheduler.config, steps, first)
        return Drawing(config_of(scheduler), steps, tuple(scheduler.timesteps.tolist()))

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
        scheduler = self.trajectory(steps)
        stop, x = stop.to(self.device), noise.to(self.device, self.dtype).clone()
        if (told := self.guided(cond, guidance)) is not cond:
            cond, guidance = told, 1.0
        if guidance != 1.0 and null is None:
            null = self.unconditional(1)
        for k, t in enumerate(scheduler.timesteps[: int(stop.max())]):
            rows = (stop > k).nonzero().flatten()  # a row that has arrived costs nothing more
            part, led = x[rows], cond[rows]
            if guidance == 1.0 or null is None:
                out = self.denoise(part, t.expand(len(rows)), led)
            else:
                both = null[[0] * len(rows)] + led
                with telling(self.denoiser, "second"):
                    free, out = self.denoise(torch.cat([part, part]), t.expand(2 * len(rows)), both).chunk(2)
                out = self.combine(free, out, guidance)
            x[rows] = scheduler.step(self.law.forward(out), t, part, return_dict=False)[0].to(x.dtype)
        times = torch.cat([scheduler.timesteps, scheduler.timesteps.new_zeros(1)])
        return x, times[stop]

    # ------------------------------------------------------------ images

    @torch.no_grad()
    def latents(self, images: Sequence[Image.Image]) -> Tensor:
        with self._vae() as vae:
            x = self.pipe.image_processor.preprocess(list(images)).to(execution_device(vae), vae.dtype)
            x = x.unsqueeze(2) if _has_frames(vae) else x
            code = vae.encode(x)
            z = code.latent_dist.mode() if hasattr(code, "latent_dist") else code.latent
            return self._pack(z.to(self.dtype))

    @torch.no_grad()
    def decode(self, z: Tensor) -> list[Image.Image]:
        with self._vae() as vae:
            x = vae.decode(self._unpack(z.to(execution_device(vae), vae.dtype)), return_dict=False)[0]
            x = x[:, :, 0] if _has_frames(vae) else x
        return self.pipe.image_processor.postprocess(x, output_type="pil")

    def _pack(self, z: Tensor) -> Tensor:
        """From the autoencoder's latents to the denoiser's."""
        config = self.pipe.vae.config
        return (z - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    def _unpack(self, z: Tensor) -> Tensor:
        config = self.pipe.vae.config
        return z / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)

    @contextmanager
    def _vae(self) -> Iterator[AutoencoderKL]:
        """The autoencoder, in float32 where its config says that it overflows in float16 (SDXL's)."""
        vae, dtype = self.pipe.vae, self.pipe.vae.dtype
        upcast = dtype == torch.float16 and vae.config.get("force_upcast", False)
        try:
            yield vae.to(torch.float32) if upcast else vae
        finally:
            if upcast:
                vae.to(dtype)

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int | torch.Generator],
        *,
        steps: int = 25,
        guidance: float = 7.5,
        sampler: str | None = None,
        batch: int = 8,
    ) -> list[Image.Image]:
        if len(prompts) != len(seeds):
            raise InputError(f"expected one seed for each prompt, got {len(prompts)} prompts and {len(seeds)} seeds")
        groups = self._groups(prompts)
        parts = [group[k : k + batch] for group in groups for k in range(0, len(group), batch)]
        images: list[list[Image.Image]] = []
        with self._sampler(sampler), self._recalling(), self._compiled():
            for part in parts:
                noise = [_generator(seeds[k]) for k in part]
                images.append(
                    self.pipe(
                        prompt=[prompts[k] for k in part],
                        num_inference_steps=steps,
                        generator=noise,
                        **self.guidance_call(guidance, len(noise)),
                        **self.call,
                    ).images
                )
        return in_order(parts, images)

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        """Inside, the denoiser's own call is the compiled one. Its hooks stay outside of that; hypernetworks, which are
        hooks on its layers, are drawn without.
        """
        net: Any = self.denoiser
        if not self.compiler or writers(net):
            yield
            return
        self._fast = self._fast or torch.compile(net.forward, backend=self.compiler)
        net.forward = self._fast
        try:
            yield
        finally:
            del net.forward

    @contextmanager
    def _sampler(self, name: str | None) -> Iterator[None]:
        if name is not None and name not in self.samplers:
            raise unknown("sampler", name, self.samplers)
        own = self.pipe.scheduler
        if name is not None:
            self.pipe.scheduler = self.samplers[name](own.config)
        try:
            yield
        finally:
            self.pipe.scheduler = own

    # ------------------------------------------------------------ weights

    def inputs(self, module: str, cond: Condition) -> Tensor:
        target = self.modules("all").get(module)
        if target is None:
            raise unknown("module", module, self.modules("all"))

        def stop(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _Seen(args[0].detach().clone())

        handle = target.register_forward_pre_hook(stop)
        x, t = torch.zeros(len(cond), *self.latent_shape), torch.zeros(len(cond), dtype=torch.long)
        try:
            with torch.no_grad(), eagerly(self.denoiser):
                self.denoise(x, t, cond)
        except _Seen as seen:
            return seen.value
        finally:
            handle.remove()
        raise InputError(f"{module} takes no part in denoising")

    def modules(self, group: Group) -> dict[str, nn.Linear]:
        found = {}
        for component, root in self._roots(group):
            for path, module in root.named_modules():
                if ADAPTER_PARTS & set(path.split(".")):
                    continue
                if isinstance(base := _base(module), nn.Linear) and self.in_group(path, group):
                    found[f"{component}.{path}"] = base
        return found

    def parameters(self, group: Group) -> dict[str, nn.Parameter]:
        return {
            f"{component}.{path}".replace(".base_layer", ""): p
            for component, root in self._roots(group)
            for path, p in root.named_parameters()
            if self.in_group(path, group) and not ADAPTER_PARTS - {"base_layer"} & set(path.split("."))
        }

    def values(self, group: Group) -> Values:
        roots = dict(self._roots(group))
        held = {f"{c}.{path}": place for c, root in roots.items() for path, place in located(root)}
        return Values({name: held[path] for path, name in self._named(group)})

    def _named(self, group: Group) -> Iterator[tuple[str, str]]:
        """Full path and full name of every parameter of a group; a layer under an adapter is named as without."""
        for component, root in self._roots(group):
            for path, _ in root.named_parameters():
                if self.in_group(path, group) and not ADAPTER_PARTS - {"base_layer"} & set(path.split(".")):
                    yield f"{component}.{path}", f"{component}.{path}".replace(".base_layer", "")

    def wake(self) -> None:
        wake(self.denoiser)

    def _roots(self, group: Group) -> list[tuple[str, nn.Module]]:
        if group != "text-encoder":
            return [(self.component, unwrapped(self.denoiser))]
        names = ("text_encoder", "text_encoder_2", "text_encoder_3")
        return [(n, m) for n in names if (m := getattr(self.pipe, n, None)) is not None]

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        parts = (self.denoiser, *(m for _, m in self._roots("text-encoder")))
        with only(adapter, *parts), self._covered(adapter), letting(self.denoiser, adapter):
            yield

    def save_denoiser(self, folder: Path) -> None:
        net: Any = self.denoiser
        net.save_pretrained(folder)

    @property
    def recomputes(self) -> bool:
        net: Any = self.denoiser
        return net.config.get("force_inference_output") is not False  # HiDream answers otherwise in training mode

    @contextmanager
    def checkpointed(self) -> Iterator[None]:
        net: Any = self.denoiser
        if not self.recomputes:
            raise InputError(f"{self.family} cannot be trained with --gradient-checkpointing: leave it out")
        was_on, was_training = net.is_gradient_checkpointing, net.training
        net.enable_gradient_checkpointing()
        net.train()  # diffusers checkpoints in training mode only
        try:
            yield
        finally:
            net.train(was_training)
            if not was_on:
                net.disable_gradient_checkpointing()

    def _covered(self, label: str | None) -> AbstractContextManager[None]:
        covered = overlay(self.denoiser) is not None
        return showing(self.denoiser, self.parameters("all"), label) if covered else nullcontext()

    def cover(self, values: Mapping[str, Tensor], label: str) -> None:
        cover(self.denoiser, self.parameters("all"), values, label)

    def uncover(self, label: str) -> None:
        uncover(self.denoiser, self.parameters("all"), label)


def _generator(seed: int | torch.Generator) -> torch.Generator:
    """A CPU generator of that seed; a generator is taken as it stands."""
    return seed if isinstance(seed, torch.Generator) else torch.Generator("cpu").manual_seed(seed)


def _base(module: nn.Module) -> nn.Module:
    """The layer under an adapter, the layer itself where there is none."""
    return getattr(module, "base_layer", module)


def _has_frames(vae: nn.Module) -> bool:
    """Whether an autoencoder is for video, an image being one frame."""
    return isinstance(vae, AutoencoderKLQwenImage)
