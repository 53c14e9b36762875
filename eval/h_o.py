"""H_o: forgetting, keeping and generalising in one figure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..prompts import InputError
from ._against import clusters, resampled, suited
from ._distances import h_o
from ._evaluator import NO_CONTROL, NO_JUDGE, Case
from ._score import NotApplicable, Score, bounds
from ._zero_shot import on_real, right, zero_shot
from .clip_accuracy import CLASSES_HELP, REAL_HELP, TEMPLATE_HELP
from .clip_score import CLIP_B, CLIP_HELP


@dataclass(frozen=True)
class HO:
    """H_o = 3 / (1 / (1 - Acc_e) + 1 / Acc_s + 1 / (1 - Acc_g)) (MACE, arXiv 2403.06135; UnHype), in percent: Acc_e on
    prompts of the erased concept, Acc_s on the others, Acc_g on the erased concept's synonyms.

    An eraser that does nothing and one that erases everything both get 0 or nearly so. The interval puts the
    bounds of all three together, so it is wider than 95 %. `soft` takes CLIP's mean probability for each accuracy, as
    MACE's own script does.
    """

    by: str = field(default="clip", metadata={"help": "who names the images: clip (as MACE) or judge"})
    model: str = field(default="", metadata={"help": CLIP_HELP})
    classes: str = field(default="", metadata={"help": CLASSES_HELP})
    template: str = field(default="", metadata={"help": TEMPLATE_HELP})
    real: str = field(default="", metadata={"help": REAL_HELP})
    soft: bool = field(default=False, metadata={"help": "mean probability instead of the share of hits (by clip)"})

    higher_is_better: ClassVar[bool] = True
    default: ClassVar[bool] = False
    about: ClassVar[str] = "H_o: harmonic mean of forgetting the concept, keeping the others, forgetting its synonyms."

    def __post_init__(self) -> None:
        if self.by not in ("clip", "judge"):
            raise InputError(f"by: expected clip or judge, got {self.by!r}")
        if self.soft and self.by == "judge":
            raise InputError("soft: judges give no probabilities; leave it out, or take by=clip")

    @property
    def pictures(self) -> bool:
        """Whether images are looked at, not their verdicts alone."""
        return self.by != "judge"

    def score(self, case: Case) -> Score | NotApplicable:
        """Beside the unerased model's own, on the same prompts and seeds."""
        sets = {"erased": case.targets(), "kept": case.others(), "synonyms": case.targets("synonym")}
        if not case.paired:
            return NotApplicable(NO_CONTROL)
        missing = [name for name, rows in sets.items() if not rows]
        if missing:
            return NotApplicable(f"no prompts of the role {' and '.join(missing)}")
        if self.by == "judge" and case.seen is None:
            return NotApplicable(NO_JUDGE)
        found = self._hits(case, sets)
        if isinstance(found, NotApplicable):
            return found
        who, parts = found
        if any(hits.shape[1] == 0 for hits, _ in parts.values()):
            return NotApplicable("some of its prompts ask for none of the classes")
        shares = np.array([[float(side.double().mean()) for side in hits] for hits, _ in parts.values()]).T
        value, base = (100 * h_o(*row) for row in shares)
        rng = np.random.default_rng(0)
        draws = np.stack([resampled(hits.double().numpy(), names, 2000, rng) for hits, names in parts.values()], 2)
        changes = [100 * (h_o(*a) - h_o(*b)) for a, b in zip(*draws, strict=True)]
        if self.soft:
            redrawn = [resampled(hits.double().numpy(), names, 2000, rng) for hits, names in parts.values()]
            ends = [[[float(np.quantile(s[k], q)) for q in (0.025, 0.975)] for s in redrawn] for k in (0, 1)]
        else:
            ends = [[list(bounds(hits[k].tolist(), names)) for hits, names in parts.values()] for k in (0, 1)]
        own, bases = ((100 * h_o(e[0][1], e[1][0], e[2][1]), 100 * h_o(e[0][0], e[1][1], e[2][0])) for e in ends)
        change = float(np.quantile(changes, 0.025)), float(np.quantile(changes, 0.975))
        sides = zip(("eraser", "unerased"), 100 * shares.round(6), strict=True)
        details = {
            **who,
            "soft": self.soft,
            "convention": f"{'mean probability' if self.soft else 'top 1'} by {who['by']}; targets, others, synonyms",
            **{f"Acc_e, Acc_s, Acc_g, {side}": row.tolist() for side, row in sides},
        }
        n = sum(hits.shape[1] for hits, _ in parts.values())
        return Score(value, n, *own, base, value - base, *change, *bases, details=details)

    def _hits(
        self, case: Case, sets: dict[str, list[int]]
    ) -> tuple[dict[str, Any], dict[str, tuple[Tensor, list[str]]]] | NotApplicable:
        """Who judges, as details; whether it saw what was asked for (`soft`: its probability) [2, n], and the images'
        clusters.
        """
        if self.by == "judge":
            hits = {n: torch.tensor(case.correct(case.domain, rows)) for n, rows in sets.items()}
            return {"by": "judge"}, {n: (h, clusters(case, sets[n])) for n, h in hits.items()}
        judge = zero_shot(case, suited(case, self.model, "canvas-clip", CLIP_B), self.classes, self.template)
        if isinstance(judge, NotApplicable):
            return judge
        out = {}
        for name, rows in sets.items():
            chances, seen, used = right(case, judge, rows)
            out[name] = chances if self.soft else seen, clusters(case, used)
        told = on_real(case, judge, [*sets["erased"], *sets["kept"]], self.real)
        return {"by": judge.model, "template": judge.template, **told}, out
