"""Other values for some of a network's parameters, switched on and off on the one network.

What PEFT does for low-rank updates, for dense ones. The untouched values of the covered parameters are kept beside the
network; switching moves pointers and copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..prompts import InputError
from ._adapters import layers
from ._held import check_writable

_KEY = "_erasers_overlay"


@dataclass
class Overlay:
    """What covers a network's parameters.

    Attributes:
        base: the untouched values of every covered parameter.
        covers: label -> parameter name -> values.
        on: labels that act, in the order they were put on.
    """

    base: dict[str, Tensor] = field(default_factory=dict)
    covers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    on: list[str] = field(default_factory=list)

    def effective(self, name: str, labels: list[str]) -> Tensor:
        """The values of a parameter under some covers: theirs exactly where one covers it, the sum of the changes
        where several do.
        """
        parts = [self.covers[k][name] for k in labels if name in self.covers.get(k, {})]
        if len(parts) == 1:
            return parts[0]
        base = self.base[name]
        total = base
        for part in parts:
            total = total + (part - base).to(total.device, total.dtype)
        return total

    def show(self, parameters: Mapping[str, nn.Parameter], labels: list[str]) -> None:
        """Let some covers act, and no other."""
        for name in self.base:
            p = parameters[name]
            p.data = self.effective(name, labels).to(p.device, p.dtype)


def overlay(root: nn.Module) -> Overlay | None:
    """What covers this network, if anything does."""
    return getattr(root, _KEY, None)


def check_unfused(root: nn.Module, what: str) -> None:
    """Refuse a network whose weights hold a fused LoRA, so that its untouched values are not there.

    Raises:
        InputError: one is fused.
    """
    if any(m.merged_adapters for m in layers(root)):
        raise InputError(f"{what}: a LoRA is fused into the weights; call pipe.unfuse_lora() first")


def cover(root: nn.Module, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], label: str) -> None:
    """Put other values over some parameters, beside what covers them already.

    Args:
        root: the network.
        parameters: all its parameters by full name.
        values: the new values of some, by the same names, of the same shapes; kept, not copied, where device and
            precision are the parameter's.
        label: name of this cover.

    Raises:
        InputError: a LoRA is fused into the network, so that its untouched values are not there; or they are offloaded
            or quantised.
    """
    check_unfused(root, f"cannot attach {label!r}")
    check_writable(root, f"cannot attach {label!r}, which holds new values of the weights")
    over = overlay(root) or Overlay()
    for name in values:
        if name not in over.base:
            over.base[name] = parameters[name].data
    over.covers[label] = {n: v.to(parameters[n].device, parameters[n].dtype) for n, v in values.items()}
    over.on.append(label)
    setattr(root, _KEY, over)
    over.show(parameters, over.on)


def uncover(root: nn.Module, parameters: Mapping[str, nn.Parameter], label: str) -> None:
    """Take a cover away; with the last one gone every parameter is what it was, bit for bit.

    Raises:
        InputError: a LoRA is fused into the network.
    """
    over = overlay(root)
    if over is None or label not in over.covers:
        return
    check_unfused(root, f"cannot detach {label!r}")
    del over.covers[label]
    over.on = [k for k in over.on if k != label]
    over.show(parameters, over.on)
    if not over.covers:
        delattr(root, _KEY)
        return
    still = {n for values in over.covers.values() for n in values}
    over.base = {n: t for n, t in over.base.items() if n in still}


@contextmanager
def showing(root: nn.Module, parameters: Mapping[str, nn.Parameter], label: str | None) -> Iterator[None]:
    """Inside, only the cover of that label acts; with None the untouched values do. Pointers only: what a training
    step changed inside stays changed.
    """
    over = overlay(root)
    if over is None:
        yield
        return
    before = over.on
    over.on = [label] if label in over.covers else []
    over.show(parameters, over.on)
    try:
        yield
    finally:
        over.on = before
        over.show(parameters, over.on)
