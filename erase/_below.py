"""Erasers below another one: what was erased before, in the weights for as long as the next eraser is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..pipelines import Backbone, check_writable
from ..prompts import Concept, InputError
from ._eraser import Eraser
from ._export import check_bare
from ._lora import Lora
from ._method import Method, name_of


@contextmanager
def in_the_weights(erasers: Sequence[Eraser], backbone: Backbone) -> Iterator[None]:
    """Former erasers in the weights of a pipeline, and out again to the last bit.

    Raises:
        InputError: one is no LoRA or was made for another base, or the weights cannot be written.
    """
    if not erasers:
        yield
        return
    for one in erasers:
        if not isinstance(one.payload, Lora):
            names, kind = ", ".join(one.recipe.names), one.recipe.kind
            raise InputError(f"the eraser of {names} is a {kind}: what is to lie below another must be a LoRA")
        one.check_base(backbone)
    check_bare(backbone, "erase on top of others", loras=True)
    check_writable(backbone.denoiser, "cannot erase on top of others")
    weights = erasers[0].payload.weights(backbone)
    before = {n: weights[n].detach().clone() for one in erasers for n in one.payload.shapes}
    try:
        for one in erasers:
            one.payload.bake(backbone, one.recipe.scale)
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                weights[name].copy_(weight)


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
