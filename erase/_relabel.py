"""Relabelling: on images of the concept its prompt learns the anchor's prediction, while other images are trained on as
usual. SalUn is this under a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ..pipelines import Backbone
from ..prompts import InputError, unknown
from ._finetune import Finetuner, everyday, flat, pick, relabelled, together
from ._images import OnImages, drawn
from ._needs import Call, Sheet, Stage
from ._pictures import Picture, of_concept, read, retained, some
from ._saliency import digest
from ._train import Session

Target = Literal["moving", "frozen"]
Retain = Literal["images", "base"]


@dataclass(frozen=True)
class Relabel(OnImages):
    """Settings of every such method."""

    target: Target = field(
        default="moving", metadata={"help": "the anchor's prediction: moving, the student's own, or frozen, the base's"}
    )
    alpha: float = field(default=0.5, metadata={"help": "weight of the loss on retain images (0: none)"})
    retain: Retain = field(
        default="images",
        metadata={"help": "what is learnt there: images (the ordinary loss, as published) or the base's prediction"},
    )
    early: float = field(
        default=0.0,
        metadata={
            "help": "weigh relabelling errors as those of the raw output (0, as published), of the clean image (1), or "
            "between: early times, which decide what is drawn, count more"
        },
    )
    compose: bool = field(
        default=False,
        metadata={"help": "also relabel and retain sentences that name an object and a style (images the base draws)"},
    )
    forget_images: str | None = field(
        default=None,
        metadata={"help": "folder of images of the concept; by default the base draws them", "folder": True},
    )
    retain_images: str | None = field(
        default=None,
        metadata={"help": "folder of images to stay with; by default the base draws what is preserved", "folder": True},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (("target", Target), ("retain", Retain)):
            if getattr(self, name) not in get_args(kind):
                raise unknown(name, getattr(self, name), get_args(kind))
        if not 0 <= self.alpha < float("inf"):
            raise InputError(f"alpha: expected a number of at least 0, got {self.alpha}")
        if self.retain_images and not self.alpha:
            raise InputError("retain-images: with --alpha 0 nothing is retained; leave one of them out")
        if not 0 <= self.early <= 1:
            raise InputError(f"early: expected a number from 0 to 1, got {self.early}")

    @property
    def to_preserve(self) -> str:
        """What would let preserved names have a part: nothing where they have one."""
        if (self.alpha and not self.retain_images) or (self.compose and not self.forget_images):
            return ""
        return "leave out --retain-images" if self.alpha else "add --alpha 1"

    def passes(self, sheet: Sheet, rows: int) -> tuple[Call, ...]:
        """The anchor's prediction, the base's on retain images, and a pass that learns on both."""
        learn = Call(2 * rows if self.alpha else rows, learns=self.learns)
        return (Call(rows), *((Call(rows),) if self.alpha and self.retain == "base" else ()), learn)

    def before(self, sheet: Sheet) -> tuple[Stage, ...]:
        """Drawing the images that no folder holds."""
        sides = (not self.forget_images) + bool(self.alpha and not self.retain_images)
        n = sides * self.images
        return (sheet.images(n, self.batch, steps=self.sampler_steps, guidance=self.guidance),) if n else ()


def clean_share(backbone: Backbone, x: Tensor, t: Tensor) -> Tensor:
    """How many times larger a square error of the clean latent is than the raw output's that causes it, [B]: for
    epsilon sigma^2 / alpha^2, for flows sigma^2.
    """
    one = torch.ones(len(x), *[1] * (x.ndim - 1), device=x.device)
    return backbone.x0(torch.zeros_like(one), t, one).square().flatten()


class Relabeller(Finetuner):
    """Images, draws and loss."""

    settings: Relabel

    def start(self, session: Session) -> None:
        """Encodes only: the student may have to wait for the images.

        Raises:
            InputError: fp16 training of weights under a mask.
        """
        self.session = session
        if self.settings.dense and session.accelerator.mixed_precision == "fp16":
            raise InputError("--mixed-precision fp16 scales gradients, which a mask does not know: use bf16 or no")
        with torch.no_grad(), self.backbone.using(None):
            self.null = self.backbone.unconditional(1)
            self.encode()

    def encode(self) -> None:
        s, concepts, preserve = self.settings, self.task.concepts, self.task.preserve
        own = [list(zip(s.sentences(c), s.sentences(c, c.anchor), strict=True)) for c in concepts]
        words, kept = [p for pairs in own for p in pairs], flat([s.sentences(c) for c in preserve])
        self.owner = torch.tensor([k for k, pairs in enumerate(own) for _ in pairs])
        if s.compose:
            words += relabelled(concepts, preserve, synonyms=s.synonyms) if not s.forget_images else []
            kept += together(preserve, preserve, synonyms=False)
        self.pictures: list[Picture] = []
        if s.retain_images:
            self.pictures = some(retained(Path(s.retain_images), concepts), s.images, self.task.seed)
            kept = [p.prompt for p in self.pictures]
        if s.alpha and not kept:
            kept = everyday(self.backbone, concepts)
        self.words = [words, kept]
        self.forget, self.anchor = (self.backbone.encode(list(side)) for side in zip(*words, strict=True))
        self.kept = self.backbone.encode(kept) if s.alpha else None

    def setup(self, rng: torch.Generator) -> None:
        s, backbone = self.settings, self.backbone
        with backbone.using(None), self.session.autocast():
            forget = self._photos(rng) if s.forget_images else drawn(s, backbone, self.forget, null=self.null, rng=rng)
            self.images = {f"forget {k}": v for k, v in forget.items()}
            if self.pictures:
                latent = read([p.path for p in self.pictures], backbone, batch=s.batch)
                self.images |= {"kept latent": latent, "kept prompt": torch.arange(len(latent))}
            elif self.kept is not None:
                kept = drawn(s, backbone, self.kept, null=self.null, rng=rng)
                self.images |= {f"kept {k}": v for k, v in kept.items()}

    def _photos(self, rng: torch.Generator) -> dict[str, Tensor]:
        """Latents of the user's images of the concepts, each with a sentence about its own."""
        s, concepts = self.settings, self.task.concepts
        prompts: list[Tensor] = []
        paths: list[Path] = []
        for k, concept in enumerate(concepts):
            mine = of_concept(Path(str(s.forget_images)), concept, alone=len(concepts) == 1)
            paths += (mine := some(mine, s.images, self.task.seed))
            own = (self.owner == k).nonzero().flatten()
            prompts.append(own[pick(len(mine), len(own), rng)])
        return {"latent": read(paths, self.backbone, batch=s.batch), "prompt": torch.cat(prompts)}

    def noised(self, side: str, row: Tensor, *, time: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noised latents of some of the "forget" or "kept" images, their times, the numbers of their prompts, and the
        family's training target there.
        """
        device = self.backbone.device
        x0 = self.images[f"{side} latent"].to(device)[row.to(device)]
        t, eps = time.to(device), noise.to(device, x0.dtype)
        x, truth = self.backbone.noise(x0, t, eps), self.backbone.target(x0, eps, t).float()
        return x, t, self.images[f"{side} prompt"][row], truth

    def draw(self, rng: torch.Generator) -> Mapping[str, Tensor]:
        n = self.settings.batch
        draws = {}
        for side in ("forget", "kept") if self.kept is not None else ("forget",):
            draws[side] = pick(n, len(self.images[f"{side} latent"]), rng)
            draws[f"{side} time"] = self.backbone.times(n, rng)
            draws[f"{side} noise"] = torch.randn(n, *self.backbone.latent_shape, generator=rng)
        return draws

    def loss(self, draws: Mapping[str, Tensor]) -> Tensor:
        s, student, denoise = self.settings, self.student, self.backbone.denoise

        def seen(side: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return self.noised(side, draws[side], time=draws[f"{side} time"], noise=draws[f"{side} noise"])

        x, t, prompt, _ = seen("forget")
        n, asked, all_x, all_t = len(x), self.forget[prompt], x, t
        with torch.no_grad(), student.teacher() if s.target == "frozen" else student.on():
            anchor = denoise(x, t, self.anchor[prompt]).float()
        if self.kept is not None:
            more, when, which, truth = seen("kept")
            if s.retain == "base":
                with torch.no_grad(), student.teacher():
                    truth = denoise(more, when, self.kept[which]).float()
            all_x, all_t = torch.cat([x, more]), torch.cat([t, when])
            asked = asked + self.kept[which]
        with student.on():
            out = denoise(all_x, all_t, asked).float()
        error = (clean_share(self.backbone, x, t) ** s.early * (out[:n] - anchor).square().flatten(1).mean(1)).mean()
        return error if self.kept is None else error + s.alpha * (out[n:] - truth).square().mean()

    def state(self) -> dict[str, Tensor]:
        sentences = torch.tensor(list(digest({}, self.words).encode()))
        return super().state() | {f"images/{k}": v for k, v in self.images.items()} | {"sentences": sentences}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take a state back.

        Raises:
            InputError: the retain images' prompts are not those of the run that is resumed.
        """
        if bytes(state["sentences"].tolist()).decode() != digest({}, self.words):
            raise InputError("retain-images: files or prompts there have changed since; put them back, or --restart")
        self.images = {k.removeprefix("images/"): v for k, v in state.items() if k.startswith("images/")}
        super().restore(state)
