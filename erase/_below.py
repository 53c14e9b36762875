"""Erasers below another one: what was erased before, in the weights for as long as the next eraser is made."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..pipelines import Backbone, check_writable
from ..prompts import Concept, InputError
from ._eraser import Eraser
from ._export import check_bare
from ._lora import Lora
from ._method import Method, name_of

LOST = 0.1
"""Share of what lies below that may get lost where the weights are rounded; above it a warning says so."""


@contextmanager
def in_the_weights(erasers: Sequence[Eraser], backbone: Backbone) -> Iterator[None]:
    """Former erasers in the weights of a pipeline, and out again to the last bit; the weights are kept in the
    computer's memory meanwhile. A warning says how much of them is lost where the pipeline's precision is too low.

    Raises:
        InputError: `check_below`, one was made for another base, or the weights cannot be written.
    """
    if not erasers:
        yield
        return
    check_below(erasers)
    for one in erasers:
        one.check_base(backbone)
    check_bare(backbone, "erase on top of others", loras=True)
    check_writable(backbone.denoiser, "cannot erase on top of others")
    weights = erasers[0].payload.weights(backbone)
    before = {n: weights[n].detach().to("cpu", copy=True) for one in erasers for n in one.payload.shapes}
    try:
        lost = _add(erasers, weights)
        if lost > LOST:
            warnings.warn(
                f"{lost:.0%} of what the erasers below change is lost in {backbone.name}'s {backbone.dtype} weights: "
                "load it in float32",
                UserWarning,
                stacklevel=4,
            )
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                weights[name].copy_(weight)


def _add(erasers: Sequence[Eraser], weights: Any) -> float:  # noqa: ANN401
    """Add the sum of the erasers' updates to the weights, rounded once; the share of it that the rounding took."""
    sums: dict[str, Tensor] = {}
    for one in erasers:
        assert isinstance(one.payload, Lora), "see check_below"
        for name in one.payload.factors:
            update = one.payload.update(name, weights[name], one.recipe.scale)
            sums[name] = sums[name] + update if name in sums else update
    off = size = 0.0
    with torch.no_grad():
        for name, update in sums.items():
            want = weights[name].float() + update
            weights[name].copy_(want.to(weights[name].dtype))
            off += float((weights[name].float() - want).square().sum())
            size += float(update.square().sum())
    return (off / size) ** 0.5 if size else 0.0


def check_below(erasers: Sequence[Eraser]) -> None:
    """Refuse erasers on top of which nothing can be made.

    Raises:
        InputError: one is no LoRA or a generator of few steps, lies there twice, or was itself made on top of others
            than those before it.
    """
    for one in erasers:
        names, kind = ", ".join(one.recipe.names), one.recipe.kind
        if not isinstance(one.payload, Lora):
            raise InputError(f"the eraser of {names} is a {kind}: what is to lie below another must be a LoRA")
        if one.drawing:
            raise InputError(f"the eraser of {names} draws in few steps: what is to lie below another must not")
    made_on_top(erasers)


def made_on_top(erasers: Sequence[Eraser]) -> tuple[bool, ...]:
    """Of each, whether it was made on top of all before it (so of the first, and of those that were made alone not).

    Raises:
        InputError: one was made on top of others, or a concept is erased by two of them.
    """
    names = [n.lower() for e in erasers for n in e.recipe.names]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"{twice[0]!r} is erased by two of the erasers: leave one of the two out")
    if not any(e.recipe.base.get("on") for e in erasers):
        return (True,) + (False,) * (len(erasers) - 1)
    prints = [e.fingerprint for e in erasers]
    out = []
    for k, one in enumerate(erasers):
        below = one.recipe.base.get("on", [])
        if below and [b["fingerprint"] for b in below] != prints[:k]:
            mine, made = ", ".join(one.recipe.names), ", ".join(n for b in below for n in b["concepts"])
            raise InputError(f"the eraser of {mine} was made on top of those of {made}: expected just them before it")
        out.append(bool(below) or k == 0)
    return tuple(out)


def warn_alone(erasers: Sequence[Eraser]) -> None:
    """Warn of an eraser that was made on top of others which are not beside it."""
    if not any(e.recipe.base.get("on") for e in erasers):
        return
    here = {e.fingerprint for e in erasers}
    for one in erasers:
        missing = [b for b in one.recipe.base.get("on", []) if b["fingerprint"] not in here]
        if missing:
            mine, made = ", ".join(one.recipe.names), ", ".join(n for b in missing for n in b["concepts"])
            warnings.warn(
                f"the eraser of {mine} was made on top of those of {made}, which are not beside it here",
                UserWarning,
                stacklevel=3,
            )


def check_adds_up(tool: Method) -> None:
    """Refuse a method that trains the weights themselves: its values would replace what lies below.

    Raises:
        InputError: it does.
    """
    learns = getattr(tool, "learns", None)
    if learns is not None and not learns.rank:
        raise InputError(
            f"{name_of(tool)} trains the weights themselves and cannot lie on top of erasers: say --no-dense"
        )


def concepts_of(erasers: Sequence[Eraser]) -> tuple[Concept, ...]:
    """What they erase."""
    return tuple(Concept.from_json(c) for one in erasers for c in one.recipe.concepts)


def record_of(erasers: Sequence[Eraser]) -> list[dict[str, Any]]:
    """What an eraser's record says of those below it."""
    return [
        {"concepts": e.recipe.names, "method": e.recipe.method, "scale": e.recipe.scale, "fingerprint": e.fingerprint}
        for e in erasers
    ]
