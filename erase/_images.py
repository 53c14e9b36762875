"""What methods that train on images share. The images are the teacher's own, drawn once before training: no data set is
needed, and they never leave latent space.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..pipelines import Backbone, Condition
from ..prompts import InputError
from ._finetune import Finetune, Finetuner, flat, pick
from ._needs import Call, Sheet, Stage

CANVAS: Mapping[str, Any] = {
    "rank": 8,
    "batch": 16,
    "lr": 1e-3,
    "contexts": 6,
    "images": 128,
    "guidance": 4.0,
    "sampler_steps": 12,
}
"""What such methods share in their presets for the Canvas pipelines."""


@dataclass(frozen=True)
class OnImages(Finetune):
    """Settings of every such method."""

    images: int = field(
        default=200,
        metadata={"help": "images to train on: as many as the teacher draws, or at most of a folder's (>= 1)"},
    )
    guidance: float = field(default=7.5, metadata={"help": "guidance with which they are drawn (1: off)"})
    sampler_steps: int = field(default=50, metadata={"help": "sampler steps with which they are drawn (>= 1)"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("images", "sampler_steps"):
            if not getattr(self, name) >= 1:
                raise InputError(f"{name.replace('_', '-')}: expected at least 1, got {getattr(self, name)}")

    @property
    def to_preserve(self) -> str:
        """What would let preserved names have a part: another method."""
        return "choose uce, salun, or esd with --keep 1"

    def passes(self, sheet: Sheet, rows: int) -> tuple[Call, ...]:
        """One pass, which learns."""
        return (Call(rows, learns=self.learns),)

    def before(self, sheet: Sheet) -> tuple[Stage, ...]:
        """Drawing the images."""
        return (sheet.images(self.images, self.batch, steps=self.sampler_steps, guidance=self.guidance),)


@torch.no_grad()
def drawn(
    settings: OnImages, backbone: Backbone, source: Condition, *, null: Condition, rng: torch.Generator
) -> dict[str, Tensor]:
    """Clean latents [images, *latent_shape] that the network draws now, each of a prompt of `source` picked at random,
    and the numbers [images] of those prompts.
    """
    n, steps = settings.images, settings.sampler_steps
    prompt = pick(n, len(source), rng)
    noise = torch.randn(n, *backbone.latent_shape, generator=rng)
    parts = []
    for rows in torch.arange(n).split(settings.batch):
        stop = torch.full((len(rows),), steps)
        cond = source[prompt[rows]]
        parts.append(backbone.partial(cond, stop, noise[rows], steps=steps, guidance=settings.guidance, null=null)[0])
    return {"latent": torch.cat(parts), "prompt": prompt}


class ImageTrainer(Finetuner):
    """A `Finetuner` on noised latents of drawn images. `forget` and `anchor` hold the same sentences, naming the
    concept and what is to be drawn instead.
    """

    settings: OnImages

    @property
    @abstractmethod
    def source(self) -> Condition:
        """The prompts of the images: `forget` or `anchor`."""

    @abstractmethod
    def mismatch(self, x: Tensor, t: Tensor, prompt: Tensor, truth: Tensor) -> Tensor:
        """The loss at noised latents x of images of the prompts with those numbers; `truth` is the family's target."""

    def encode(self) -> None:
        concepts, words = self.task.concepts, self.settings.sentences
        self.forget = self.backbone.encode(flat([words(c) for c in concepts]))
        self.anchor = self.backbone.encode(flat([words(c, c.anchor) for c in concepts]))

    def setup(self, rng: torch.Generator) -> None:
        with self.student.teacher(), self.session.autocast():
            self.images = drawn(self.settings, self.backbone, self.source, null=self.null, rng=rng)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"images/{k}": v for k, v in self.images.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        super().restore(state)
        self.images = {k.removeprefix("images/"): v for k, v in state.items() if k.startswith("images/")}

    def draw(self, rng: torch.Generator) -> Mapping[str, Tensor]:
        n = self.settings.batch
        return {
            "row": pick(n, self.settings.images, rng),
            "time": self.backbone.times(n, rng),
            "noise": torch.randn(n, *self.backbone.latent_shape, generator=rng),
        }

    def loss(self, draws: Mapping[str, Tensor]) -> Tensor:
        device = self.backbone.device
        x0 = self.images["latent"].to(device)[draws["row"].to(device)]
        t, eps = draws["time"].to(device), draws["noise"].to(device, x0.dtype)
        x, truth = self.backbone.noise(x0, t, eps), self.backbone.target(x0, eps, t)
        return self.mismatch(x, t, self.images["prompt"][draws["row"]], truth.float())
