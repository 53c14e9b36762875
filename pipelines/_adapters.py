"""Which PEFT adapters are on: asked and switched layer by layer, without touching `requires_grad`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


def layers(*roots: nn.Module) -> list[BaseTunerLayer]:
    """Every layer an adapter was put into."""
    return [m for root in roots for m in root.modules() if isinstance(m, BaseTunerLayer)]


@contextmanager
def only(adapter: str | None, *roots: nn.Module) -> Iterator[None]:
    """Inside, `adapter` is the only one that acts; with None the base acts alone. States come back afterwards."""
    found = layers(*roots)
    before = [(m._disable_adapters, m._active_adapter) for m in found]
    try:
        for m in found:
            m._disable_adapters = adapter is None
            m._active_adapter = m._active_adapter if adapter is None else [adapter]
        yield
    finally:
        for m, (off, active) in zip(found, before, strict=True):
            m._disable_adapters, m._active_adapter = off, active


def acting(adapter: str, *roots: nn.Module) -> bool:
    """Whether the adapter changes anything now: on in some layer with a scale that is not zero, or merged into it."""
    for m in layers(*roots):
        if adapter in m.merged_adapters:
            return True
        on = not m.disable_adapters and adapter in m.active_adapters
        if on and getattr(m, "scaling", {}).get(adapter, 0.0) != 0.0:
            return True
    return False


def active(*roots: nn.Module) -> list[str]:
    """Names of the adapters that are on somewhere, in the order they were found."""
    return list(dict.fromkeys(n for m in layers(*roots) if not m.disable_adapters for n in m.active_adapters))


def plug(pipe: DiffusionPipeline, tensors: Mapping[str, Tensor], name: str, scale: float) -> None:
    """Load LoRA weights under PEFT keys as adapter `name`, beside whatever was on before: diffusers' own loader
    switches the others off.

    Raises:
        RuntimeError: diffusers loaded nothing because no key matched a module.
    """
    roots = components(pipe)
    before = active(*roots)
    pipe.load_lora_weights(dict(tensors), adapter_name=name)
    mine = [m for m in layers(*roots) if name in getattr(m, "scaling", {})]
    if len(mine) != len(tensors) // 2:
        unplug(pipe, name)
        raise RuntimeError(f"{len(tensors) // 2 - len(mine)} of {len(tensors) // 2} LoRA pairs found no module")
    for m in mine:
        m.scaling[name] *= scale
    _activate([*before, name], *roots)


def unplug(pipe: DiffusionPipeline, name: str) -> None:
    """Take an adapter out and leave the others as they are; with the last one gone the layers are the original ones."""
    roots = components(pipe)
    before = [n for n in active(*roots) if n != name]
    if {n for m in layers(*roots) for n in getattr(m, "scaling", {})} - {name}:
        pipe.delete_adapters([name])
        _activate(before, *roots)
    else:
        pipe.unload_lora_weights()


def _activate(names: list[str], *roots: nn.Module) -> None:
    for m in layers(*roots):
        m._disable_adapters, m._active_adapter = not names, list(names)


def components(pipe: DiffusionPipeline) -> list[nn.Module]:
    """The parts of a pipeline that can carry an adapter."""
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    return [m for n in names if isinstance(m := getattr(pipe, n, None), nn.Module)]
