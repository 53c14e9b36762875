"""How a network's weights are held (in full, in few bits, or waiting elsewhere), and reading them all the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import CpuOffload
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from torch import Tensor, nn

from ..prompts import InputError
from ._shrunk import WORDS, Few

BITS = {"Params4bit": "bitsandbytes, 4 bits", "Int8Params": "bitsandbytes, 8 bits", "GGUFParameter": "GGUF"}
"""Kinds of quantised parameters, by the names of their classes."""


def bits(p: Tensor) -> str:
    """How a parameter is quantised, in a few words; "" where it is not."""
    kind = type(p)
    if kind in (nn.Parameter, Tensor):
        return ""
    if isinstance(p, Few):
        return WORDS[p.how]
    return "torchao" if kind.__module__.startswith("torchao") else BITS.get(kind.__name__, "")


def quantised(root: nn.Module) -> str:
    """How a network is quantised, in a few words; "" where none of its parameters is."""
    return next(filter(None, map(bits, root.parameters())), "")


def _hooks(module: nn.Module) -> Iterator[object]:
    """Accelerate's hooks of one module."""
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", () if hook is None else (hook,))


def execution_device(root: nn.Module) -> torch.device:
    """Where a network computes: where its weights are, or where an offloaded one is brought to."""
    if hasattr(root, "_hf_hook"):
        for module in root.modules():
            for hook in _hooks(module):
                if (device := getattr(hook, "execution_device", None)) is not None:
                    return torch.device(device)
    return next(root.parameters()).device


def offloaded(root: nn.Module) -> str:
    """How a network is offloaded: "model" as a whole, "sequential" layer by layer, "" not at all. A device map leaves
    hooks too, under which weights stay in place.
    """
    if (told := vars(root).get(TOLD)) is not None:
        return str(told)
    if not hasattr(root, "_hf_hook"):
        return ""
    if any(p.is_meta for p in root.parameters()):
        return "sequential"
    return "model" if any(isinstance(h, CpuOffload) for h in _hooks(root)) else ""


TOLD = "_erasers_offloaded"
"""What a blueprint's network is told instead of having hooks."""


@contextmanager
def as_offloaded(root: nn.Module, how: str) -> Iterator[None]:
    """Inside, a blueprint's network counts as offloaded in that way ("model", "sequential", "none")."""
    vars(root)[TOLD] = "" if how == "none" else how
    try:
        yield
    finally:
        del vars(root)[TOLD]


def wake(root: nn.Module) -> None:
    """Bring a network that is offloaded as a whole to where it computes, in the place of what computed before it; its
    next turn takes it away again.
    """
    if offloaded(root) == "model":
        for hook in _hooks(root):
            if isinstance(hook, CpuOffload):
                hook.pre_forward(root)


def compiled(root: nn.Module) -> list[nn.Module]:
    """The parts of a network, itself included, that `torch.compile` has taken over in place."""
    return [m for m in root.modules() if getattr(m, "_compiled_call_impl", None) is not None]


@contextmanager
def eagerly(root: nn.Module) -> Iterator[None]:
    """Inside, a network that was compiled in place runs as it is written, so that hooks put in by now are seen."""
    held = [(m, m._compiled_call_impl) for m in compiled(root)]
    for m, _ in held:
        m._compiled_call_impl = None
    try:
        yield
    finally:
        for m, impl in held:
            m._compiled_call_impl = impl


def check_wrappable(pipe: Any) -> None:  # noqa: ANN401
    """Refuse a pipeline whose denoiser sits inside something that hooks and adapters do not get through.

    Raises:
        InputError: it is wrapped by `torch.compile`, or offloaded in groups.
    """
    for name in ("unet", "transformer"):
        net = getattr(pipe, name, None)
        if hasattr(net, "_orig_mod"):
            raise InputError(
                f"pipe.{name} is wrapped by torch.compile, which does not see adapters that come later: set "
                f"pipe.{name} = pipe.{name}._orig_mod, and compile once everything is attached"
            )
        if isinstance(net, nn.Module) and _is_group_offload_enabled(net):
            raise InputError(
                f"pipe.{name} is offloaded in groups, which is not followed here: choose enable_model_cpu_offload() or "
                "enable_sequential_cpu_offload()"
            )


def check_trainable(root: nn.Module, what: str, *, dense: bool = False) -> None:
    """Refuse a network that cannot be trained as it is held.

    Args:
        root: the network.
        what: what cannot be done.
        dense: its own weights are trained, not only a LoRA beside them.

    Raises:
        InputError: it is offloaded layer by layer, or compiled; with `dense` also offloaded or quantised at all.
    """
    if offloaded(root) == "sequential":
        raise InputError(f"{what}: its layers are offloaded one by one; load it with --offload model, or without")
    if compiled(root):
        raise InputError(f"{what}: it is compiled, and adapters come and go in training; compile it afterwards")
    if dense:
        check_writable(root, what)


def check_writable(root: nn.Module, what: str) -> None:
    """Refuse a network whose own weights cannot be written.

    Raises:
        InputError: it is offloaded or quantised.
    """
    if offloaded(root):
        raise InputError(f"{what}: the weights are offloaded and must stay in place for that; leave out --offload")
    if few := quantised(root):
        raise InputError(
            f"{what}: the weights are quantised ({few}); load them without --quantize and not from a .gguf file, or "
            "use a method that makes a LoRA"
        )


class Values(Mapping[str, Tensor]):
    """What parameters hold, by name, each read when it is asked for: brought from where an offloaded layer waits, and
    made whole again where it is in few bits. A parameter that is neither is given itself.
    """

    def __init__(self, places: Mapping[str, tuple[nn.Module, str]]) -> None:
        self._places = places

    @classmethod
    def of(cls, root: nn.Module) -> Values:
        """Of all parameters of a network."""
        return cls(dict(located(root)))

    def __getitem__(self, name: str) -> Tensor:
        module, leaf = self._places[name]
        return value(module, leaf)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def renamed(self, names: Mapping[str, str]) -> Values:
        """Some of them under other names: old name -> new name."""
        return Values({new: self._places[old] for old, new in names.items()})

    def dimensions(self, name: str) -> int:
        """How many dimensions it has, without reading it."""
        module, leaf = self._places[name]
        p = getattr(module, leaf)
        return 2 if leaf == "weight" and bits(p) and isinstance(module, nn.Linear) else p.ndim


def located(root: nn.Module) -> Iterable[tuple[str, tuple[nn.Module, str]]]:
    """Every parameter's name, with the module it is in and its name there."""
    modules = dict(root.named_modules())
    for path, _ in root.named_parameters():
        owner, _, leaf = path.rpartition(".")
        yield path, (modules[owner], leaf)


def value(module: nn.Module, leaf: str) -> Tensor:
    """What one parameter holds, see `Values`."""
    p: Tensor = getattr(module, leaf)
    if p.is_meta:
        for hook in _hooks(module):
            if (held := getattr(hook, "weights_map", None)) is not None:
                return held[leaf]
        raise InputError(f"the weight {leaf!r} of a {type(module).__name__} is on no device: load the model anew")
    return in_full(p, module) if bits(p) else p


def in_full(p: Any, module: Any) -> Tensor:  # noqa: ANN401
    """A quantised parameter's values; nothing of it or of its module changes."""
    match type(p).__name__:
        case "Params4bit":
            from bitsandbytes.functional import dequantize_4bit

            return dequantize_4bit(p.data, p.quant_state)
        case "Int8Params":  # rows of whole numbers with a scale each, which the first forward pass takes away
            scale = p.SCB if getattr(p, "SCB", None) is not None else module.state.SCB
            return p.data.float() * (scale.to(p.device).float() / 127)[:, None]
        case "GGUFParameter":
            from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor  # needs the library gguf

            return dequantize_gguf_tensor(p)
    return p.dequantize()
