"""Erased Stable Diffusion: the teacher's own guidance, turned round, becomes the target (Gandikota et al.,
arXiv 2303.07345). The published code since 2024 starts from e(c) where the paper (equation 7) starts from e(""); with
its eta one larger it is the same target. Ours is the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..pipelines import Backbone
from ..prompts import InputError
from . import _published
from ._esd import Trainer, looking
from ._esd import away as away
from ._finetune import Finetune
from ._looks import pooled
from ._method import Task
from ._needs import Call, Sheet, Stage


@dataclass(frozen=True)
class ESD(Finetune):
    """Fine-tuning away from the concept by the model's own negative guidance."""

    eta: float = field(default=1.0, metadata={"help": "strength of the negative guidance (>= 0; the paper: 1 to 3)"})
    from_: str | None = field(
        default=None,
        metadata={"help": "erase the concept as an attribute of this host, such as 'car' for red (a prompt)"},
    )
    guidance: float = field(default=3.0, metadata={"help": "guidance of the partial denoising (1: off)"})
    sampler_steps: int = field(default=50, metadata={"help": "length of the partial denoising's trajectory (>= 1)"})
    pool: int = field(
        default=0,
        metadata={"help": "latents drawn once and used again and again; 0, as published: new ones every step"},
    )
    refresh: int = field(
        default=0, metadata={"help": "steps after which the student draws half of the pool again (0: never)"}
    )
    keep: float = field(
        default=0.0, metadata={"help": "weight of staying with the teacher on preserved prompts; 0, as published: off"}
    )
    relative: float = field(
        default=0.0,
        metadata={
            "help": "weigh each latent by |e_concept - e_null|^2 to minus this power: at 1 early times, where little "
            "moves and much is decided, count as much as late ones; 0, as published, weighs all alike"
        },
    )
    compose: bool = field(
        default=False,
        metadata={
            "help": "without --from: also train on sentences that name the concept beside a preserved one of the other "
            "kind (object, style), away from the concept and towards the other alone; keep such pairs of preserved"
        },
    )

    paper: ClassVar[str] = "arXiv 2303.07345"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **_published.ESD,
        "sd": {"rank": 8, "steps": 200, "lr": 1e-4, "batch": 4},
        "canvas": {
            "rank": 8,
            "steps": 160,
            "batch": 16,
            "lr": 2e-3,
            "decay": True,
            "contexts": 6,
            "sampler_steps": 10,
            "pool": 256,
            "refresh": 40,
            "keep": 6.0,
            "relative": 0.5,
            "compose": True,
        },
        "canvas-flow": dict(train="prompt", steps=80, lr=3e-3, eta=2.0, pool=128, refresh=0, relative=0.0),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta < float("inf") or (self.eta == 0 and self.from_ is not None):
            raise InputError(f"eta: expected a number of at least 0, with --from above it, got {self.eta}")
        if not 0 <= self.relative <= 1:
            raise InputError(f"relative: expected a number from 0 to 1, got {self.relative}")
        for name, least in (("keep", 0), ("pool", 0), ("refresh", 0), ("sampler_steps", 1)):
            if not least <= getattr(self, name) < float("inf"):
                got = getattr(self, name)
                raise InputError(f"{name.replace('_', '-')}: expected a number of at least {least}, got {got}")

    @property
    def to_preserve(self) -> str:
        """What would let preserved names have a part: nothing where they have one."""
        return "" if self.keep or (self.compose and self.from_ is None) else "add --keep 1"

    def run(self, backbone: Backbone, task: Task) -> Trainer:
        """What trains the student."""
        return Trainer(self, backbone, task)

    def passes(self, sheet: Sheet, rows: int) -> tuple[Call, ...]:
        """New latents unless there is a pool, and one pass that learns."""
        learn = Call(rows * (2 if self.keep else 1), learns=self.learns)
        return (learn,) if self.pool else (*looking(self, sheet, rows), learn)

    def before(self, sheet: Sheet) -> tuple[Stage, ...]:
        """The pool."""
        look = looking(self, sheet, self.batch)
        return pooled(sheet, self, look, batch=self.batch, kept=4 if self.keep else 2)

    def prompted(self, task: Task) -> int:
        """The concepts' sentences, the empty one, and those that are kept."""
        kept = sum(len(self.sentences(c)) for c in task.preserve) if self.keep else 0
        return super().prompted(task) + kept
