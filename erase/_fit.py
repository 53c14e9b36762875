"""What would make a run fit: one change after another, those that leave its result alone first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..pipelines import Backbone, half_precision
from ..prompts import InputError
from ._method import Method
from ._plan import Ask, Estimate, Planner, networks, trained


def _checkpointing(ask: Ask, backbone: Backbone) -> Ask | None:
    if not trained(ask.tool) or ask.loop.gradient_checkpointing or not backbone.recomputes:
        return None
    return replace(ask, loop=replace(ask.loop, gradient_checkpointing=True))


def _accumulate(ask: Ask, backbone: Backbone) -> Ask | None:
    batch = getattr(ask.tool, "batch", 1)
    if ask.loop.accumulate >= batch:
        return None
    return replace(ask, loop=replace(ask.loop, accumulate=min(2 * ask.loop.accumulate, batch)))


def _mixed(ask: Ask, backbone: Backbone) -> Ask | None:
    if backbone.dtype != torch.float32 or not getattr(ask.tool, "dense", False):
        return None
    return replace(ask, loop=replace(ask.loop, mixed_precision="bf16")) if ask.loop.mixed_precision != "bf16" else None


def _half(ask: Ask, backbone: Backbone) -> Ask | None:
    if backbone.dtype != torch.float32 or getattr(ask.tool, "dense", False):
        return None
    kind = torch.bfloat16 if ask.machine.host else half_precision(type(backbone.pipe).__name__)
    return replace(ask, machine=replace(ask.machine, dtype=str(kind).removeprefix("torch.")))


def _components_wait(ask: Ask, backbone: Backbone) -> Ask | None:
    if ask.machine.host or ask.machine.offload != "none":
        return None
    return replace(ask, machine=replace(ask.machine, offload="model"))


def _layers_wait(ask: Ask, backbone: Backbone) -> Ask | None:
    if ask.machine.host or trained(ask.tool) or ask.machine.offload == "sequential":
        return None
    return replace(ask, machine=replace(ask.machine, offload="sequential"))


def _remembered(ask: Ask, backbone: Backbone) -> Ask | None:
    if ask.machine.embeddings or not any(n.startswith("text_encoder") for n, _ in networks(backbone)):
        return None
    return replace(ask, machine=replace(ask.machine, embeddings=True))


def _unsaved(ask: Ask, backbone: Backbone) -> Ask | None:
    if not trained(ask.tool) or not ask.machine.host or ask.loop.work is None or not ask.loop.checkpoint_every:
        return None
    return replace(ask, loop=replace(ask.loop, checkpoint_every=0))


def _small_moments(ask: Ask, backbone: Backbone) -> Ask | None:
    if not trained(ask.tool) or ask.loop.optimizer != "adam":
        return None
    return replace(ask, loop=replace(ask.loop, optimizer="adam8bit"))


def _batch(ask: Ask, backbone: Backbone) -> Ask | None:
    batch = getattr(ask.tool, "batch", 1)
    if batch < 2:
        return None
    loop = replace(ask.loop, accumulate=min(ask.loop.accumulate, batch // 2))
    return replace(ask, tool=_with(ask.tool, batch=batch // 2), loop=loop)


def _low_rank(ask: Ask, backbone: Backbone) -> Ask | None:
    return replace(ask, tool=_with(ask.tool, dense=False)) if getattr(ask.tool, "dense", False) else None


def _rank(ask: Ask, backbone: Backbone) -> Ask | None:
    rank = getattr(ask.tool, "rank", None) or 0
    if rank < 8 or getattr(ask.tool, "dense", False):
        return None
    return replace(ask, tool=_with(ask.tool, rank=rank // 2))


def _eight_bits(ask: Ask, backbone: Backbone) -> Ask | None:
    if ask.machine.quantize != "none":
        return None
    return replace(ask, machine=replace(ask.machine, quantize="bnb8" if _cuda(ask) else "ao-int8"))


def _cuda(ask: Ask) -> bool:
    """Whether bitsandbytes' layers run there."""
    return ask.machine.place.startswith("cuda")


def _four_bits(ask: Ask, backbone: Backbone) -> Ask | None:
    if not _cuda(ask) or ask.machine.quantize == "bnb4":
        return None
    return replace(ask, machine=replace(ask.machine, quantize="bnb4"))


LEVERS: tuple[Callable[[Ask, Backbone], Ask | None], ...] = (
    # these learn the same, up to rounding
    *(_checkpointing, _accumulate, _mixed, _half, _components_wait, _layers_wait, _remembered, _unsaved),
    # these something else
    *(_small_moments, _batch, _low_rank, _rank),
    # and these on another base
    *(_eight_bits, _four_bits),
)
"""What may be changed, in the order in which it is tried."""

SAID = (
    *(("loop", n) for n in ("gradient_checkpointing", "accumulate", "mixed_precision")),
    *(("machine", n) for n in ("dtype", "quantize", "offload", "embeddings")),
    *(("loop", n) for n in ("checkpoint_every", "optimizer")),
    *(("tool", n) for n in ("batch", "dense", "rank")),
)
"""What the levers change: parts of an `Ask` and their fields, in the order in which they are said."""


def _with(tool: Method, **changes: Any) -> Method:  # noqa: ANN401
    return replace(tool, **changes)  # type: ignore[type-var]


def changed(before: Ask, after: Ask) -> list[tuple[str, str]]:
    """In what two runs differ, of what the levers change."""
    return [(p, n) for p, n in SAID if _of(before, p, n) != _of(after, p, n)]


def _of(ask: Ask, part: str, name: str) -> Any:  # noqa: ANN401
    return getattr(getattr(ask, part), name, None)


def _word(name: str, value: object) -> str:
    """The flag of `erasers erase` for a setting."""
    flag = name.replace("_", "-")
    if name == "embeddings":
        return "--embeddings FILE"
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


@dataclass(frozen=True)
class Fit:
    """The settings that were found.

    Attributes:
        words: the flags of `erasers erase` for them, beside what was said. FILE in them is what `erasers remember`
            writes.
        ask: the run with them.
        estimate: of it.
        fits: whether it fits; if not, everything there is to change has been.
    """

    words: tuple[str, ...]
    ask: Ask
    estimate: Estimate
    fits: bool


def fit(planner: Planner, ask: Ask, memory: int) -> Fit:
    """The first settings that fit into so many bytes. What leaves the result as it is comes first; a change that helps
    nothing is left out, and one that turns out not to be needed is taken back.

    Args:
        planner: of the model.
        ask: the run as it was asked for.
        memory: bytes.

    Raises:
        InputError: see `Planner.estimate`.
    """
    taken: list[int] = []
    now, best, useless = ask, planner.estimate(ask), set[int]()
    while not best.fits(memory) and len(useless) < len(LEVERS):
        kind = next(k for k in range(len(LEVERS)) if k not in useless)
        tried = _tried(planner, ask, [*taken, kind])
        if tried is None or tried[1].memory > 0.995 * best.memory:
            useless.add(kind)
            continue
        taken, (now, best), useless = [*taken, kind], tried, set()
    if best.fits(memory):
        for kind in sorted(set(taken), reverse=True):
            fewer = [k for k in taken if k != kind]
            tried = _tried(planner, ask, fewer)
            if tried is not None and tried[1].fits(memory):
                taken, (now, best) = fewer, tried
    words = tuple(_word(name, _of(now, part, name)) for part, name in changed(ask, now))
    return Fit(words, now, best, best.fits(memory))


def _tried(planner: Planner, ask: Ask, kinds: Sequence[int]) -> tuple[Ask, Estimate] | None:
    """The run changed by one lever after another (one that has nothing to change leaves it) and its estimate; None
    where what comes of it is refused.
    """
    try:
        for kind in kinds:
            ask = LEVERS[kind](ask, planner.blueprint(ask.machine)) or ask
        return ask, planner.estimate(ask)
    except InputError:
        return None
