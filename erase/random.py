"""The control every method must beat: noise of the same size in the same place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..pipelines import Backbone
from ..prompts import InputError
from ._delta import Delta
from ._hyper import Hyper
from ._lora import Factors
from ._method import Task, configure
from ._needs import Needs, Planned, Sheet


def same_norm(a: Tensor, b: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gaussian factors [rank, in] and [out, rank] with the Frobenius norm of B A (B [out, r], A [r, in])."""
    x = torch.randn(rank, a.shape[1], generator=generator)
    y = torch.randn(b.shape[0], rank, generator=generator)
    # ||B A||^2 = tr(A A^T B^T B) needs no [out, in] matrix
    want, have = ((q @ q.T * (p.T @ p)).sum().clamp(min=0).sqrt() for p, q in ((b, a), (y, x)))
    return x, y * (want / have)


@dataclass(frozen=True)
class Random:
    """Random factors with the rank and the norm, layer by layer, of another method's update."""

    like: str = field(default="uce", metadata={"help": "the method whose norms and ranks are copied, at its preset"})
    rank: int | None = field(default=None, metadata={"help": "rank of the noise (>= 1); by default that method's"})
    strength: float = field(default=1.0, metadata={"help": "norm relative to that method's (a factor, > 0)"})

    paper: ClassVar[str] = "control: random factors of equal norm"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "sd": {}, "canvas": {}}

    def __post_init__(self) -> None:
        if self.like == "random":
            raise InputError("like: expected another method than random itself")
        if self.rank is not None and self.rank < 1:
            raise InputError(f"rank: expected at least 1, got {self.rank}")
        if not 0 < self.strength < float("inf"):
            raise InputError(f"strength: expected a number above 0, got {self.strength}")

    def run(self, backbone: Backbone, task: Task) -> Factors:
        """A LoRA on the same Linears as the other method's."""
        from ._erase import solve

        tool = configure(self.like, backbone.preset, {})
        gives = "delta" if getattr(tool, "dense", False) else getattr(tool, "gives", "lora")
        if gives != "lora":  # before it trains
            raise self._no_lora(gives)
        model = solve(tool, backbone, task=task)
        if isinstance(model, (Delta, Hyper)):
            raise self._no_lora(model.kind)
        generator = torch.Generator().manual_seed(task.seed)
        drawn = {n: same_norm(a.cpu(), b.cpu(), self.rank or len(a), generator) for n, (a, b) in model.items()}
        return {n: (x, self.strength * y) for n, (x, y) in drawn.items()}

    def needs(self, sheet: Sheet) -> Needs:
        """What the other method asks for."""
        tool = configure(self.like, sheet.backbone.preset, {})
        if not isinstance(tool, Planned):
            raise InputError(f"{self.like} does not say what it needs: give it `needs`, see docs/memory.md")
        return tool.needs(sheet)

    def _no_lora(self, gives: str) -> InputError:
        return InputError(f"like: expected a method that gives a LoRA, {self.like!r} gives a {gives}")
