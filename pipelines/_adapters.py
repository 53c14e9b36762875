"""Which PEFT adapters are on: asked and switched layer by layer, without touching `requires_grad`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..prompts import InputError
from ._held import value
from ._quiet import quiet


def layers(*roots: nn.Module) -> list[BaseTunerLayer]:
    """Every layer an adapter was put into."""
    return [m for root in roots for m in root.modules() if isinstance(m, BaseTunerLayer)]


_ON_PURPOSE: ContextVar[bool] = ContextVar("switched on purpose", default=False)
"""Set inside `only`, where an eraser that is off is off on purpose."""


@contextmanager
def only(adapter: str | None, *roots: nn.Module) -> Iterator[None]:
    """Inside, `adapter` is the only one that acts; with None the base acts alone. States come back afterwards."""
    found = layers(*roots)
    before = [(m._disable_adapters, m._active_adapter) for m in found]
    token = _ON_PURPOSE.set(True)
    try:
        for m in found:
            m._disable_adapters = adapter is None
            m._active_adapter = m._active_adapter if adapter is None else [adapter]
        yield
    finally:
        _ON_PURPOSE.reset(token)
        for m, (off, active) in zip(found, before, strict=True):
            m._disable_adapters, m._active_adapter = off, active


def acting(adapter: str, *roots: nn.Module) -> bool:
    """Whether the adapter changes anything now: merged into some layer, or on there with weights and a scale that are
    not zero.
    """
    for m in layers(*roots):
        if adapter in m.merged_adapters:
            return True
        on = adapter in getattr(m, "scaling", {}) and not m.disable_adapters and adapter in m.active_adapters
        if on and m.scaling[adapter] != 0.0 and bool(value(m.lora_B[adapter], "weight").any()):
            return True
    return False


State = dict[BaseTunerLayer, tuple[bool, list[str]]]
"""Layer -> (switched off, names of its active adapters)."""


def _state(roots: list[nn.Module]) -> State:
    return {m: (m.disable_adapters, list(m.active_adapters)) for m in layers(*roots)}


def plug(pipe: DiffusionPipeline, tensors: Mapping[str, Tensor], name: str) -> State:
    """Load LoRA weights under PEFT keys as adapter `name`. What was on before stays on, layer by layer, and what was
    off stays off: diffusers' own loader switches the others off. Returns how things were, for `unplug`.

    Raises:
        RuntimeError: some pair of tensors found no module.
    """
    roots = components(pipe)
    before = _state(roots)
    flags = [(p, p.requires_grad) for root in roots for p in root.parameters()]
    with quiet(), warnings.catch_warnings():  # diffusers warns that a component has no keys, which is no fault
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # several are meant to live
        if hasattr(pipe, "load_lora_weights"):
            pipe.load_lora_weights(dict(tensors), adapter_name=name)
        else:
            _inject(pipe, tensors, name)
    for p, flag in flags:
        p.requires_grad_(flag)  # PEFT freezes the base
    mine = {m for m in layers(*roots) if name in getattr(m, "scaling", {})}
    if len(mine) != len(tensors) // 2:
        unplug(pipe, name, before)
        raise RuntimeError(f"{len(tensors) // 2 - len(mine)} of {len(tensors) // 2} LoRA pairs found no module")
    for root in roots:
        here = [before[m] for m in layers(root) if m in before]
        on = list(dict.fromkeys(n for off, names in here if not off for n in names))
        for m in layers(root):
            off, names = before.get(m, (False, on))
            # names of adapters that a layer does not have are skipped there, but diffusers reports the first layer's
            m._disable_adapters, m._active_adapter = off, names if off else [*names, name]
            if off and m in mine:
                m._disable_adapters, m._active_adapter = False, [name]
    return before


def _inject(pipe: DiffusionPipeline, tensors: Mapping[str, Tensor], name: str) -> None:
    """What `load_lora_weights` does, for families whose pipelines have none (PixArt)."""
    for part, root in _parts(pipe):
        mine = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
        paths = sorted({k.rpartition(".lora_")[0] for k in mine} & {n for n, _ in root.named_modules()})
        if paths:
            rank = len(mine[f"{paths[0]}.lora_A.weight"])
            exactly = "|".join(re.escape(p) for p in paths)
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=f"({exactly})"), root, name)
            set_peft_model_state_dict(root, mine, adapter_name=name)


def _remove(pipe: DiffusionPipeline, name: str) -> None:
    """Take an adapter out from among others."""
    if hasattr(pipe, "delete_adapters"):
        pipe.delete_adapters([name])
        return
    for root in components(pipe):
        for m in layers(root):
            if name in getattr(m, "scaling", {}):
                m._active_adapter = [n for n in m.active_adapters if n != name]
                m.delete_adapter(name)
        getattr(root, "peft_config", {}).pop(name, None)


def _clear(pipe: DiffusionPipeline) -> None:
    """Take every adapter out: the layers are the original ones."""
    if hasattr(pipe, "unload_lora_weights"):
        pipe.unload_lora_weights()
        return
    for root in components(pipe):
        for path, m in list(root.named_modules()):
            if isinstance(m, BaseTunerLayer):
                root.set_submodule(path, m.get_base_layer())
        vars(root).pop("peft_config", None)


def unplug(pipe: DiffusionPipeline, name: str, before: State) -> None:
    """Take an adapter out and leave the others as they are; with the last one gone the layers are the original ones.

    Raises:
        InputError: the adapter was fused into the weights; taking it out would leave it there.
    """
    roots = components(pipe)
    now = _state(roots)
    if any(name in m.merged_adapters for m in now):
        raise InputError(f"{name!r} is fused into the weights: call pipe.unfuse_lora() first, then detach it")
    if not {n for m in now for n in getattr(m, "scaling", {})} - {name}:
        _clear(pipe)
        return
    _remove(pipe, name)
    for m in layers(*roots):
        off, names = now.get(m, (False, []))
        was_off, were = before.get(m, (off, names))
        rest = [n for n in names if n != name]
        untouched = rest == ([] if was_off else were)
        m._disable_adapters, m._active_adapter = (was_off, were) if untouched else (off, rest)


def watch(pipe: DiffusionPipeline, name: str, denoiser: nn.Module, message: str) -> RemovableHandle:
    """Warn, once each time it happens, when the denoiser runs while adapter `name` has been switched off by others
    coming on: what `pipe.load_lora_weights` does. Switching all adapters off (`pipe.disable_lora()`) is no accident
    and says nothing. Take the watch away with the handle's `remove()`.
    """
    told = False

    def look(_module: nn.Module, _args: object) -> None:
        nonlocal told
        if torch.compiler.is_compiling() or _ON_PURPOSE.get():
            return
        mine = [m for m in layers(*components(pipe)) if name in getattr(m, "scaling", {})]
        lost = bool(mine) and not any(m.disable_adapters or m.merged_adapters for m in mine)
        lost = lost and not any(name in m.active_adapters for m in mine)
        if lost and not told:
            warnings.warn(message, UserWarning, stacklevel=2)
        told = lost

    return denoiser.register_forward_pre_hook(look)


def activate(pipe: DiffusionPipeline, name: str) -> bool:
    """Let adapter `name` act again beside whatever acts now. False if it is not there."""
    there = False
    for root in components(pipe):
        found = layers(root)
        on = list(dict.fromkeys(n for m in found if not m.disable_adapters for n in m.active_adapters))
        if any(name in getattr(m, "scaling", {}) for m in found):
            there = True
            for m in found:
                m._disable_adapters, m._active_adapter = False, [*(n for n in on if n != name), name]
    return there


def low_rank(pipe: DiffusionPipeline, name: str) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """The live factors A [r, in] and B [out, r] of adapter `name`, by full module name."""
    return {
        f"{part}.{path}": (m.lora_A[name].weight, m.lora_B[name].weight)
        for part, root in _parts(pipe)
        for path, m in root.named_modules()
        if isinstance(m, BaseTunerLayer) and name in m.lora_A
    }


def _parts(pipe: DiffusionPipeline) -> list[tuple[str, nn.Module]]:
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    return [(n, m) for n in names if isinstance(m := getattr(pipe, n, None), nn.Module)]


def components(pipe: DiffusionPipeline) -> list[nn.Module]:
    """The parts of a pipeline that can carry an adapter."""
    return [m for _, m in _parts(pipe)]
