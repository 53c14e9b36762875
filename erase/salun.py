"""SalUn: relabel the concept as its anchor, in the weights that matter for it only (Fan et al., arXiv 2310.12508).

The mask is applied: weights outside it are bit-identical afterwards. Other masks of the same size stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from ..pipelines import Backbone, Learns, check_trainable, fingerprint
from ..prompts import InputError, unknown
from . import _published
from ._finetune import Part
from ._images import CANVAS
from ._masked import MaskedStudent, check_precision, under_mask
from ._method import Task
from ._needs import Call, Needs, Sheet, Stage
from ._relabel import Relabel, Relabeller
from ._saliency import Choice, Combination, Mask, cached, choose, digest, forgetting, gradient_sum, salient_layers
from ._student import Student

LEARNS = "what learns: prompt (what first acts on it), text-kv (keys and values of it), cross, self, not-cross, all"


@dataclass(frozen=True)
class SalUn(Relabel):
    """Relabelling under a weight saliency mask."""

    train: Part = field(default="all", metadata={"help": LEARNS})
    dense: bool = field(
        default=True, metadata={"help": "train the weights under the mask (a delta); off: a LoRA on Linears it picks"}
    )
    mask: Choice = field(
        default="saliency",
        metadata={"help": "which ranked weights learn: saliency; controls of that size: random, lowest; none: all"},
    )
    density: float = field(default=0.5, metadata={"help": "share of the ranked weights in the mask (above 0, up to 1)"})
    rank_over: Part = field(
        default="all", metadata={"help": "weights ranked together, by one threshold; must hold all that learns"}
    )
    mask_guidance: float = field(default=7.5, metadata={"help": "guidance in the loss whose gradient ranks weights"})
    combine: Combination = field(
        default="extrapolate",
        metadata={"help": "its form: interpolate, e0 + g (ec - e0), the paper's; extrapolate, (1 + g) ec - g e0"},
    )
    mask_passes: int = field(default=1, metadata={"help": "passes over the forget images that rank weights (>= 1)"})
    soft: float = field(
        default=0.0,
        metadata={"help": "soft threshold: share of changes put to 0 after the first step, falling to none (0: off)"},
    )

    paper: ClassVar[str] = "arXiv 2310.12508"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **_published.SALUN,
        "sd": {"train": "cross", "rank_over": "cross", "rank": 8, "steps": 200, "batch": 8, "lr": 1e-5, "contexts": 3},
        "canvas": {
            **CANVAS,
            "train": "cross",
            "rank_over": "cross",
            "steps": 160,
            "lr": 2e-3,
            "decay": True,
            "alpha": 3.0,
            "retain": "base",
            "early": 0.5,
            "compose": True,
            "images": 256,
            "mask_passes": 2,
        },
        "canvas-flow": {"train": "prompt", "rank_over": "prompt", "steps": 80, "images": 128},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (("mask", Choice), ("combine", Combination), ("rank_over", Part)):
            if getattr(self, name) not in get_args(kind):
                raise unknown(name.replace("_", "-"), getattr(self, name), get_args(kind))
        if not 0 < self.density <= 1:
            raise InputError(f"density: expected a share above 0 and at most 1, got {self.density}")
        if not 0 <= self.soft < 1:
            raise InputError(f"soft: expected a share of at least 0 and below 1, got {self.soft}")
        if self.soft and not self.dense:
            raise InputError("soft: it puts weights' own changes to 0, and a LoRA has none: leave out --no-dense")
        if not self.mask_passes >= 1:
            raise InputError(f"mask-passes: expected at least 1, got {self.mask_passes}")
        if not abs(self.mask_guidance) < float("inf"):
            raise InputError(f"mask-guidance: expected a number, got {self.mask_guidance}")

    def run(self, backbone: Backbone, task: Task) -> _Trainer:
        """What trains the student.

        Raises:
            InputError: something learns that is not ranked.
        """
        ranked = backbone.parameters(self.rank_over)
        if stray := [n for n in backbone.parameters(self.train) if n not in ranked]:
            rest = f"{stray[0]}, which learns: choose all, or {self.train}"
            raise InputError(f"rank-over {self.rank_over!r} leaves out {rest}")
        check_trainable(backbone.denoiser, f"cannot rank the weights of {backbone.name}", dense=True)
        if self.dense:
            check_precision(backbone)
        return _Trainer(self, backbone, task)

    @property
    def learns(self) -> Learns:
        """The student: weights under the mask, or a LoRA on some of the Linears."""
        share = 1.0 if self.mask == "none" else self.density
        return replace(super().learns, at_once=self.dense) if self.dense else replace(super().learns, share=share)

    def before(self, sheet: Sheet) -> tuple[Stage, ...]:
        """Drawing the images, and ranking the weights."""
        rows, ranked = sheet.parts(self.batch)[0], Learns(self.rank_over)
        call = Call(2 * rows, times=self.mask_passes * self.images / rows, learns=ranked)
        stages = super().before(sheet)
        images = {k: v for s in stages for k, v in s.held.items()}
        mask = Stage("mask", (call,), {**images, "gradients": 4 * ranked.count(sheet.backbone)}, again=True)
        return (*stages, mask) if self.mask in ("saliency", "lowest") else stages

    def needs(self, sheet: Sheet) -> Needs:
        """What a run with these settings asks for."""
        share, backbone = 1.0 if self.mask == "none" else self.density, sheet.backbone
        check_trainable(backbone.denoiser, f"cannot rank the weights of {backbone.name}", dense=True)
        return under_mask(sheet, self, ranked=self.rank_over, share=share) if self.dense else super().needs(sheet)


class _Trainer(Relabeller):
    """SalUn's mask, and the student under it."""

    settings: SalUn

    def setup(self, rng: torch.Generator) -> None:
        super().setup(rng)
        s, backbone, ranked = self.settings, self.backbone, self.backbone.parameters(self.settings.rank_over)
        made = ("mask", "density", "rank_over", "mask_guidance", "combine", "mask_passes", "batch")
        about = {k: getattr(s, k) for k in made} | {"base": backbone.name, "seed": self.task.seed}
        about |= {"concepts": [c.name for c in self.task.concepts], "images": digest(self.images, self.words)}

        def make() -> Mask:
            magnitudes: Mapping[str, Tensor] = ranked
            if s.mask in ("saliency", "lowest"):
                magnitudes = gradient_sum(backbone.denoiser, ranked, losses=self._forgetting(rng))
            return choose(magnitudes, s.density, choice=s.mask, generator=rng, about=about)

        with backbone.using(None):
            about["weights"] = digest({}, fingerprint(ranked))
            if self.session.main:  # the others take its mask: nobody's rounding may differ
                mask = cached(self.session.work, about, make=make)
            else:
                mask = choose(ranked, s.density, choice="none", generator=rng, about=about)
        mask = mask.only(list(ranked))  # a file has its own order
        self._build(Mask(self.session.share(mask.bitmaps), mask.shapes, mask.about))

    def _forgetting(self, rng: torch.Generator) -> Iterator[Tensor]:
        """The forgetting loss of one batch after another."""
        s, backbone, count = self.settings, self.backbone, len(self.images["forget latent"])
        for row in (r for _ in range(s.mask_passes) for r in torch.randperm(count, generator=rng).split(s.batch)):
            noise = torch.randn(len(row), *backbone.latent_shape, generator=rng)
            time = backbone.times(len(row), rng)
            for part in torch.arange(len(row)).tensor_split(min(self.session.accumulate, len(row))):
                x, t, prompt, truth = self.noised("forget", row[part], time=time[part], noise=noise[part])
                with self.session.autocast():
                    both = self.null[[0] * len(part)] + self.forget[prompt]
                    free, led = backbone.denoise(torch.cat([x, x]), t.repeat(2), both).float().chunk(2)
                loss = forgetting(free, led, truth, scale=s.mask_guidance, how=s.combine)
                yield loss * len(part) / len(row)

    def _build(self, mask: Mask) -> None:
        s, backbone = self.settings, self.backbone
        self.mask = mask
        if s.dense:
            learns = mask.only(list(backbone.parameters(s.train)))
            self.optimiser = self._student = MaskedStudent(backbone, learns, self.session, lr=s.lr, clip=s.clip)
            self.names = []  # the student keeps its own moments
            return
        first = torch.Generator().manual_seed(self.task.seed)
        linears = mask.only([f"{n}.weight" for n in backbone.modules(s.train)])
        layers = salient_layers(linears, s.density, choice=s.mask, generator=first)
        self._student = Student(backbone, s.train, rank=s.rank, generator=first, only=layers)
        self.adam(s.lr)

    def update(self, k: int) -> float:
        if not isinstance(self.student, MaskedStudent):
            return super().update(k)
        norm = self.student.update()
        self.student.soften(self.settings.soft * (1 - (k + 1) / self.steps))
        return norm

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"mask/{n}": b for n, b in self.mask.bitmaps.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        ranked = self.backbone.parameters(self.settings.rank_over)
        bitmaps = {n: state[f"mask/{n}"] for n in ranked}
        self._build(Mask(bitmaps, {n: tuple(p.shape) for n, p in ranked.items()}, {}))
        super().restore(state)
