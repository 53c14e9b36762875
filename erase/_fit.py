"""What would make a run fit: one change after another, those that leave its result alone first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..pipelines import Backbone
from ..prompts import InputError
from ._method import Method
from ._plan import Ask, Estimate, Planner, networks

Changed = tuple[str, Ask]
"""What to say for a change, and the run with it."""

REMEMBERED = "load(..., embeddings=FILE)"


def _checkpointing(ask: Ask, backbone: Backbone) -> Changed | None:
    if not _trained(ask) or ask.loop.gradient_checkpointing or not _checkpoints(backbone):
        return None
    return "--gradient-checkpointing", replace(ask, loop=replace(ask.loop, gradient_checkpointing=True))


def _checkpoints(backbone: Backbone) -> bool:
    config: Any = backbone.denoiser.config
    return config.get("force_inference_output") is not False


def _accumulate(ask: Ask, backbone: Backbone) -> Changed | None:
    batch = getattr(ask.tool, "batch", 1)
    if ask.loop.accumulate >= batch:
        return None
    n = min(2 * ask.loop.accumulate, batch)
    return f"--accumulate {n}", replace(ask, loop=replace(ask.loop, accumulate=n))


def _precise(ask: Ask, backbone: Backbone) -> Changed | None:
    if backbone.dtype != torch.float32:
        return None
    if getattr(ask.tool, "dense", False):
        if ask.loop.mixed_precision not in ("auto", "no"):
            return None
        return "--mixed-precision bf16", replace(ask, loop=replace(ask.loop, mixed_precision="bf16"))
    kind = "float16" if backbone.family in ("sd", "sdxl") and not ask.machine.host else "bfloat16"
    return f"--dtype {kind}", replace(ask, machine=replace(ask.machine, dtype=kind))


def _remembered(ask: Ask, backbone: Backbone) -> Changed | None:
    if ask.machine.embeddings or not any(n.startswith("text_encoder") for n, _ in networks(backbone)):
        return None
    return REMEMBERED, replace(ask, machine=replace(ask.machine, embeddings=True))


def _unsaved(ask: Ask, backbone: Backbone) -> Changed | None:
    if not _trained(ask) or not ask.machine.host or ask.loop.work is None or not ask.loop.checkpoint_every:
        return None
    return "--checkpoint-every 0", replace(ask, loop=replace(ask.loop, checkpoint_every=0))


def _batch(ask: Ask, backbone: Backbone) -> Changed | None:
    batch = getattr(ask.tool, "batch", 1)
    if batch < 2:
        return None
    loop = replace(ask.loop, accumulate=min(ask.loop.accumulate, batch // 2))
    return f"--batch {batch // 2}", replace(ask, tool=_with(ask.tool, batch=batch // 2), loop=loop)


def _low_rank(ask: Ask, backbone: Backbone) -> Changed | None:
    if not getattr(ask.tool, "dense", False):
        return None
    return "--no-dense", replace(ask, tool=_with(ask.tool, dense=False))


def _rank(ask: Ask, backbone: Backbone) -> Changed | None:
    rank = getattr(ask.tool, "rank", None) or 0
    if rank < 8 or getattr(ask.tool, "dense", False):
        return None
    return f"--rank {rank // 2}", replace(ask, tool=_with(ask.tool, rank=rank // 2))


LEVERS: tuple[Callable[[Ask, Backbone], Changed | None], ...] = (
    *(_checkpointing, _accumulate, _precise, _remembered, _unsaved),  # these learn the same, up to rounding
    *(_batch, _low_rank, _rank),  # and these something else
)
"""What may be changed, in the order in which it is tried. An optimiser with smaller moments, and weights kept elsewhere
or in fewer bits, belong behind `_remembered`, as soon as `Loop` and `load` know them."""


def _trained(ask: Ask) -> bool:
    return hasattr(ask.tool, "steps")


def _with(tool: Method, **changes: Any) -> Method:  # noqa: ANN401
    return replace(tool, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class Fit:
    """The settings that were found.

    Attributes:
        words: what to say for them, beside what was said.
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
    return Fit(_words(planner, ask, taken), now, best, best.fits(memory))


def _changes(planner: Planner, ask: Ask, kinds: Sequence[int]) -> list[Changed | None]:
    """The run changed by one lever after another."""
    out: list[Changed | None] = []
    for kind in kinds:
        out.append(LEVERS[kind](ask, planner.blueprint(ask.machine)))
        ask = out[-1][1] if out[-1] is not None else ask
    return out


def _tried(planner: Planner, ask: Ask, kinds: Sequence[int]) -> tuple[Ask, Estimate] | None:
    """The run changed so and its estimate; None where the last change is none, or is refused."""
    changed = _changes(planner, ask, kinds)
    if changed and changed[-1] is None:
        return None
    try:
        after = next((c[1] for c in reversed(changed) if c is not None), ask)
        return after, planner.estimate(after)
    except InputError:
        return None


def _words(planner: Planner, ask: Ask, kinds: Sequence[int]) -> tuple[str, ...]:
    """What to say: of each kind the last."""
    changed = zip(kinds, _changes(planner, ask, kinds), strict=True)
    said = {kind: c[0] for kind, c in changed if c is not None}
    return tuple(said[k] for k in sorted(said))
