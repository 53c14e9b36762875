"""Unified Concept Editing: a closed form on the projections that read the prompt (Gandikota et al., arXiv 2308.14761).

Ours emits the update itself instead of edited weights. With C the edited token states, A* the states they should act
like, P the states to preserve, the paper's solution (equation 7) minus the old weight is

    W' - W = s_e W (A* - C) C^T M^-1,    M = s_e C C^T + s_p P P^T + ridge I

which is a LoRA of rank at most the number of edited states, exactly: no SVD, one factorisation for all layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from ..pipelines import Backbone
from ..prompts import Concept, InputError
from . import _published
from ._lora import Factors
from ._method import Task
from ._needs import Needs, Sheet, Stage, lora_files
from ._tokens import Tokens, contexts, edited, preserved


def directions(
    c: Tensor, anchor: Tensor, p: Tensor, *, scales: tuple[float, float], ridge: float
) -> tuple[Tensor, Tensor]:
    """The part of the closed form that no layer changes: D [d, r] and A [r, d] with W' - W = W D A.

    Args:
        c: edited states, [d, n].
        anchor: the states they should act like, [d, n].
        p: states to preserve, [d, m].
        scales: erase scale s_e and preserve scale s_p.
        ridge: weight of the old weights, > 0.

    r = n, or d where n > d (then A is the identity). Computed in float64, returned in float32.

    Raises:
        InputError: the ridge is too small for the system to be solved.
    """
    c, anchor, p = c.double(), anchor.double(), p.double()
    erase, keep = scales
    m = erase * c @ c.T + keep * p @ p.T + ridge * torch.eye(len(c), dtype=c.dtype, device=c.device)
    factor, failed = torch.linalg.cholesky_ex(m)
    if failed:
        raise InputError(f"ridge {ridge:g} is too small to solve for these states: choose a larger one")
    a = erase * torch.cholesky_solve(c, factor).T
    d = anchor - c
    if c.shape[1] > c.shape[0]:
        d, a = d @ a, torch.eye(len(c), dtype=c.dtype, device=c.device)
    return d.float(), a.float()


@dataclass(frozen=True)
class UCE:
    """Closed-form erasure on the projections that act on the prompt, and on the pooled path where there is one.

    With cross-attention these are all keys and values, and the edit is the paper's. With joint attention it is the one
    projection through which the prompt enters (`context_embedder`): what the text tokens make of the prompt in later
    layers follows from it, but states of the prompt's other tokens, which have read the concept in the text encoder,
    are not edited unless `tokens` says so.
    """

    tokens: Tokens = field(
        default="last",
        metadata={"help": "token states to edit: last of the name, subject (all of it), or all up to the padding"},
    )
    erase_scale: float = field(default=1.0, metadata={"help": "weight of the erased states (a factor, > 0)"})
    preserve_scale: float = field(default=1.0, metadata={"help": "weight of the preserved states (a factor, >= 0)"})
    ridge: float = field(default=0.5, metadata={"help": "weight of the old weights, the paper's lambda (> 0)"})
    contexts: int = field(default=1, metadata={"help": "sentences in which each name is edited (1 = the bare name)"})
    synonyms: bool = field(default=True, metadata={"help": "erase the concept's known synonyms too"})
    pooled: bool = field(
        default=True,
        metadata={"help": "edit the pooled text path as well (SDXL, SD3 and others), which leaks otherwise"},
    )

    paper: ClassVar[str] = "arXiv 2308.14761"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **_published.UCE,
        "sd": {},
        "canvas": {"contexts": 6},
        "canvas-flow": {"tokens": "all", "ridge": 10.0},
    }

    def __post_init__(self) -> None:
        if self.tokens not in get_args(Tokens):
            raise InputError(f"tokens: expected one of {', '.join(get_args(Tokens))}, got {self.tokens!r}")
        for name in ("erase_scale", "ridge"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name.replace('_', '-')}: expected a number above 0, got {getattr(self, name)}")
        if not 0 <= self.preserve_scale < float("inf"):
            raise InputError(f"preserve-scale: expected a number of at least 0, got {self.preserve_scale}")
        if not self.contexts >= 1:
            raise InputError(f"contexts: expected at least 1 sentence, got {self.contexts}")

    @property
    def to_preserve(self) -> str:
        """What would let preserved names have a part: nothing where they have one."""
        return "" if self.preserve_scale else "add --preserve-scale 1"

    @torch.no_grad()
    def run(self, backbone: Backbone, task: Task) -> Factors:
        """A LoRA on every "text-in" Linear, exact up to float32 rounding."""
        c, anchor = edited(backbone, task.concepts, self.tokens, self.contexts, self.synonyms)
        p = preserved(backbone, task, self.contexts)
        scales = (self.erase_scale, self.preserve_scale)
        d, a = directions(c, anchor, p, scales=scales, ridge=self.ridge)
        weights = backbone.values("all")
        factors = {n: (a.clone(), weights[f"{n}.weight"].to(d) @ d) for n in backbone.modules("text-in")}
        if self.pooled and backbone.pooled is not None:
            d, a = self._pooled(backbone, backbone.pooled, task, scales)
            factors[backbone.pooled] = (a, weights[f"{backbone.pooled}.weight"].to(d) @ d)
        return factors

    def needs(self, sheet: Sheet) -> Needs:
        """States of the edited tokens, one factorisation, and the update of every layer. Of `subject` and `all` the
        number of tokens is a guess: two of a name, and a whole text.
        """
        backbone, task = sheet.backbone, sheet.task
        names = sum(len(c.names) if self.synonyms else 1 for c in task.concepts) * self.contexts
        layers = backbone.modules("text-in")
        width = max(m.in_features for m in layers.values())
        edits = min(width, names * {"last": 1, "subject": 2, "all": 70}[self.tokens])
        kept = 1 + len(task.preserve) * self.contexts
        if self.pooled and backbone.pooled is not None:
            layers = {**layers, backbone.pooled: backbone.modules("all")[backbone.pooled]}
        shapes: dict[str, tuple[int, ...]] = {}
        for n, m in layers.items():
            shapes |= {f"{n}.lora_A.weight": (edits, m.in_features), f"{n}.lora_B.weight": (m.out_features, edits)}
        numbers = sum(a * b for a, b in shapes.values())
        sizes = [m.in_features * m.out_features for m in layers.values()]
        peak = 8 * (3 * width**2 + 4 * width * (edits + 8 * kept)) + 4 * max(sizes)
        flops = 2 * edits * sum(sizes) + 2 * width**2 * (width + edits + 8 * kept)
        held = {"prompts": sheet.encoded(2 * names + kept), "update": 4 * numbers}
        # weights are read where they wait; of transformers the denoiser is asked what a prompt's states become
        alone = backbone.component == "unet"
        solve = Stage("solve", (), held, peak=peak, flops=flops, runs="texts" if alone else "both")
        pooled = (replace(solve, name="pooled", flops=0, runs="both"),) * (self.pooled and backbone.pooled is not None)
        return Needs((solve, *pooled), numbers, 2 * names + kept, lora_files(shapes))

    def _pooled(self, backbone: Backbone, layer: str, task: Task, scales: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """The same closed form on what enters the layer that reads the pooled text vector: one vector a sentence."""

        def states(texts: list[str]) -> Tensor:
            return backbone.inputs(layer, backbone.encode(texts)).float().T

        pairs = [pair for concept in task.concepts for pair in _sentences(concept, self.contexts, self.synonyms)]
        c, anchor = states([x for x, _ in pairs]), states([y for _, y in pairs])
        keep = [s for concept in task.preserve for s in contexts(concept, self.contexts)]
        return directions(c, anchor, states(["", *keep]), scales=scales, ridge=self.ridge)


def _sentences(concept: Concept, n: int, synonyms: bool) -> list[tuple[str, str]]:
    names = concept.names if synonyms else concept.names[:1]
    return [
        (s, t)
        for name in names
        for s, t in zip(contexts(concept, n, name), contexts(concept, n, concept.anchor), strict=True)
    ]
