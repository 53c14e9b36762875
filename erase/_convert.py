"""A delta in other shapes: as low-rank factors by singular values, and as the full differences of LyCORIS files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..prompts import InputError
from ._delta import Change, Delta
from ._kohya import TWICE, unet_layer
from ._lora import Factors


def split(change: Tensor, *, rank: int | None, energy: float | None) -> tuple[Tensor, Tensor, float]:
    """The closest update of low rank (Eckart and Young, 1936), A [r, in] and B [out, r], of a convolution A
    [r, in, kh, kw] and B [out, r, 1, 1]; and how much of the change's square norm it holds.

    Args:
        change: new minus old weights, [out, in] or [out, in, kh, kw].
        rank: r, or the full rank where that is smaller.
        energy: instead, the smallest r whose share of the square norm is at least this.
    """
    u, s, v = torch.linalg.svd(change.flatten(1).double(), full_matrices=False)
    held = s.square().cumsum(0)
    if energy is not None:
        rank = int((held < energy * held[-1]).sum()) + 1
    r = min(int(rank or 1), len(s))
    root = s[:r].sqrt()
    a, b = root[:, None] * v[:r], u[:, :r] * root
    if change.ndim == 4:
        a, b = a.unflatten(1, change.shape[1:]), b[:, :, None, None]
    return a.float(), b.float(), held[r - 1].item()


def difference(change: Change, base: Tensor) -> Tensor:
    """New minus old values of a parameter, in float32 on the CPU."""
    old = base.detach().cpu()
    return change.applied(old).float() - old.float()


def as_factors(
    delta: Delta, base: Mapping[str, Tensor], *, rank: int | None, energy: float | None
) -> tuple[Factors, dict[str, Any]]:
    """Low-rank factors for every Linear and convolution that a delta changes, and what was lost on the way.

    Args:
        delta: the change.
        base: the base's values of all parameters.
        rank: of every layer; or
        energy: the share of each layer's square norm to hold, above 0 and at most 1.

    Raises:
        InputError: both or neither given, or out of range; nothing in the delta fits a LoRA, or the LoRA would be
            larger than the weights.
    """
    if (rank is None) == (energy is None):
        raise InputError("a delta becomes a LoRA of a given rank or energy: name one of --rank and --energy")
    if rank is not None and rank < 1:
        raise InputError(f"rank: expected at least 1, got {rank}")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"energy: expected a share above 0 and at most 1, got {energy}")
    factors, total, held, left = {}, 0.0, 0.0, []
    for name, change in delta.changes.items():
        moved = difference(change, base[name])
        size = float(moved.double().square().sum())
        total += size
        if not size:
            continue
        if name.endswith(".weight") and moved.ndim in (2, 4):
            a, b, part = split(moved, rank=rank, energy=energy)
            factors[name.removesuffix(".weight")] = a, b
            held += part
        else:
            left.append(name)
    if not factors:
        raise InputError("nothing in this delta fits a LoRA: it changes no weight of a Linear or a convolution")
    most, dense = max(len(a) for a, _ in factors.values()), sum(base[f"{n}.weight"].numel() for n in factors)
    numbers = sum(most * (a[0].numel() + len(b)) for a, b in factors.values())  # every layer is written at one rank
    if numbers > dense:
        raise InputError(
            f"a LoRA of rank {most} has {numbers:,} numbers, the weights themselves {dense:,}: choose a smaller --rank "
            "or --energy, or export to component or lycoris"
        )
    about = {"from": "delta", "captured energy": round(held / total, 6), "rank": most}
    return factors, about | {"parameters left out": len(left)}


def lycoris_layer(name: str, family: str) -> str:
    """The name of a UNet's layer that both ComfyUI and A1111 find: where A1111 has no rule for diffusers' name, the
    layer's first one.
    """
    key = unet_layer(name, family)
    first = {"lora_unet_conv_norm_out": "lora_unet_out_0", **(TWICE if family == "sdxl" else {})}
    return first.get(key, key)


def lycoris_keys(delta: Delta, base: Mapping[str, Tensor], family: str = "sd") -> dict[str, Tensor]:
    """New minus old values under LyCORIS' names: `lora_unet_<layer>.diff` and `.diff_b` (weight and bias), for norms
    `.w_norm` and `.b_norm`. In float32; adding them rounds, so it is exact to a unit in the last place only.

    Args:
        delta: the change.
        base: the base's values of all parameters.
        family: of the base.

    Raises:
        InputError: a parameter of a transformer, for which no name is known to be read.
    """
    out = {}
    for name, change in delta.changes.items():
        component, _, path = name.partition(".")
        layer, _, kind = path.rpartition(".")
        if component != "unet" or kind not in ("weight", "bias"):
            raise InputError(f"LyCORIS files have no name that is known to be read for {name!r}: export to component")
        weight = base[f"{component}.{layer}.weight"]
        names = {"weight": "w_norm", "bias": "b_norm"} if weight.ndim == 1 else {"weight": "diff", "bias": "diff_b"}
        key = lycoris_layer(f"{component}.{layer}", family)
        out[f"{key}.{names[kind]}"] = difference(change, base[name])
        # readers look at a bias only beside its weight, and at a norm's weight only beside its bias
        for partner in names.values() if weight.ndim == 1 else [names["weight"]]:
            if f"{key}.{partner}" not in out:
                out[f"{key}.{partner}"] = torch.zeros(weight.shape)
    return out
