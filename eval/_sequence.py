"""Sequential erasure: what one eraser after another does to the concepts erased before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..erase import Eraser, made_on_top
from ..pipelines import Backbone
from ..prompts import InputError
from ._evaluate import Control, Report, evaluate
from ._evaluator import Evaluator
from ._gallery import check_remembered
from ._score import Score


@dataclass(frozen=True)
class Steps:
    """Reports after each step, in the order of erasing.

    Attributes:
        erased: names of the concepts that each step erased.
        reports: of all erasers up to and with that step, attached together.
        on_top: of each step's eraser whether it was made on top of all before it (`erase(..., on=...)`), as
            UnlearnCanvas does; otherwise it was made alone, and what adds up is the updates.
    """

    erased: tuple[tuple[str, ...], ...]
    reports: tuple[Report, ...]
    on_top: tuple[bool, ...] = ()

    def table(self, score: str = "ua") -> list[dict[str, Any]]:
        """A row for each step and each concept erased by then: the score, and its change since the concept's own step
        ("rebound"; for UA below 0 where the concept comes back).
        """
        rows = []
        first: dict[str, float] = {}
        for step, report in enumerate(self.reports, start=1):
            for name in [n for part in self.erased[:step] for n in part]:
                value = report.by_concept[name][score]
                row: dict[str, Any] = {"step": step, "concept": name, "erased at": self._step(name)}
                if isinstance(value, Score):
                    first.setdefault(name, value.value)
                    figures = {"value": value.value, "low": value.low, "high": value.high, "n": value.n}
                    row |= {**figures, "rebound": value.value - first[name]}
                else:
                    row |= {"value": None, "reason": value.reason}
                rows.append(row)
        return rows

    def _step(self, name: str) -> int:
        return next(k for k, part in enumerate(self.erased, start=1) if name in part)


def in_sequence(
    erasers: Sequence[Eraser],
    backbone: Backbone,
    *,
    only: Sequence[str] | Mapping[str, Evaluator] | None = None,
    control: Control | None = None,
) -> Steps:
    """Attach erasers one after the other and score every concept erased so far after each (UnlearnCanvas' sequential
    unlearning, if each was made on top of those before).

    Raises:
        InputError: fewer than two erasers, a concept that two of them erase, one made on top of others than those
            before it, or what `evaluate` refuses.
    """
    if len(erasers) < 2:
        raise InputError(f"expected at least two erasers to attach one after the other, got {len(erasers)}")
    control = control or Control(backbone)
    names = [tuple(control.world.find(n).name for n in e.recipe.names) for e in erasers]
    flat = [n for part in names for n in part]
    if twice := sorted({n for n in flat if flat.count(n) > 1}):
        raise InputError(f"{twice[0]!r} is erased twice in the sequence: leave one of the two out")
    on_top = made_on_top(erasers)
    asked = [p for n in flat for p in control.plan(control.world.find(n))]
    check_remembered(backbone, asked, [control.world.plan_name(n) for n in flat])  # before the first of them is scored
    reports = [evaluate(erasers[:k], backbone, only=only, control=control) for k in range(1, len(erasers) + 1)]
    return Steps(tuple(names), tuple(reports), on_top)
