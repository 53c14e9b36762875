"""Galleries: images drawn once for a list of prompts, with a manifest that says how."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..erase import Eraser, check_target, write_folder
from ..pipelines import Backbone
from ..prompts import InputError, Prompt

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Sampling:
    """How images are drawn.

    Attributes:
        steps: sampler steps.
        guidance: classifier-free guidance scale; 1 is off.
        sampler: "ddim", "dpm++", "euler", "pndm", for flows "euler"; None keeps the pipeline's own.
        batch: images drawn at once.
    """

    steps: int = 25
    guidance: float = 7.5
    sampler: str | None = None
    batch: int = 8

    def __post_init__(self) -> None:
        for name, most in (("steps", 1000), ("batch", 4096)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name}: expected 1 to {most}, got {getattr(self, name)}")


SAMPLING = {
    "canvas": Sampling(steps=12, guidance=4.0, sampler="dpm++", batch=60),
    "canvas-flow": Sampling(steps=10, guidance=4.0, sampler="euler", batch=60),
    "sd": Sampling(),
}


def sampling(backbone: Backbone) -> Sampling:
    """The evaluation settings that suit a pipeline (docs/canvas.md: how Canvas' were chosen); for transformers
    the stock call's own.
    """
    if backbone.drawing is not None:
        return Sampling(steps=backbone.drawing.steps, guidance=backbone.drawing.guidance, batch=60)
    if backbone.component == "transformer" and not backbone.world:
        steps, guidance = backbone.defaults
        return Sampling(steps=steps, guidance=guidance)
    return SAMPLING[backbone.preset]


def fitting(how: Sampling, erasers: Sequence[Eraser]) -> Sampling:
    """The settings with these erasers on: those of one that draws in few steps, which brings its own scheduler along;
    else the given ones.

    Raises:
        InputError: two of them draw in different ways.
    """
    own = [d for e in erasers if (d := e.drawing) is not None]
    if not own:
        return how
    if any(d != own[0] for d in own):
        raise InputError(f"these erasers draw at different times, {[d.times for d in own]}: use one of them")
    return replace(how, steps=own[0].steps, guidance=own[0].guidance, sampler=None)


@dataclass(frozen=True)
class Gallery:
    """Images in the order of their prompts.

    Attributes:
        prompts: one per image.
        images: RGB.
        manifest: model, erasers, sampling, seconds, and an SHA-256 of each image's pixels.
    """

    prompts: tuple[Prompt, ...]
    images: tuple[Image.Image, ...]
    manifest: dict[str, Any]

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write images as PNG (`0007_moon_ink_seed188.png`) and the manifest; all or nothing.

        Raises:
            InputError: the folder exists and `force` is off or it is no gallery, or it cannot be written.
        """

        def fill(partial: Path) -> None:
            rows = []
            for k, (prompt, image) in enumerate(zip(self.prompts, self.images, strict=True)):
                name = _file_name(k, prompt)
                image.save(partial / name)
                rows.append({"file": name, "sha256": _digest(image), **asdict(prompt)})
            text = json.dumps({**self.manifest, "images": rows}, indent=1, ensure_ascii=False)
            (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")

        return write_folder(Path(folder), fill, holds=MANIFEST, force=force)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Gallery:
        """Read a saved gallery.

        Raises:
            InputError: no manifest, a missing or unreadable image, or pixels that are not the manifest's.
        """
        root = Path(folder)
        try:
            manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
            rows = manifest.pop("images")
        except (OSError, json.JSONDecodeError, KeyError) as error:
            raise InputError(f"{root} is no gallery: expected a readable {MANIFEST} ({error})") from error
        prompts, images = [], []
        for row in rows:
            try:
                with Image.open(root / row["file"]) as f:
                    image = f.convert("RGB")
            except OSError as error:
                raise InputError(f"cannot read {root / row['file']} ({error}): draw the gallery again") from error
            if _digest(image) != row["sha256"]:
                raise InputError(f"{root / row['file']} is not the image of the manifest: draw the gallery again")
            prompts.append(Prompt(**{k: v for k, v in row.items() if k not in ("file", "sha256")}))
            images.append(image)
        return cls(tuple(prompts), tuple(images), manifest)


def check_place(target: Path, force: bool) -> None:
    """Make sure a gallery can be written there. Raises `InputError` as `Gallery.save` does."""
    check_target(target, force, holds=MANIFEST)


def draw(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    erasers: Sequence[Eraser] = (),
    *,
    how: Sampling | None = None,
    label: str = "draw",
) -> Gallery:
    """Draw every prompt with the given erasers on, and nothing else changed. One that draws in few steps draws so,
    whatever `how` says.

    Raises:
        InputError: no prompts, an eraser made for another base, or two that draw in different ways.
    """
    if not prompts:
        raise InputError("expected at least one prompt to draw, got none")
    how = fitting(how or sampling(backbone), erasers)
    start = time.perf_counter()
    images: list[Image.Image] = []
    with ExitStack() as stack:
        for eraser in erasers:
            stack.enter_context(eraser.attached(backbone))
        bar = stack.enter_context(tqdm(total=len(prompts), desc=label, unit="image", leave=False))
        for k in range(0, len(prompts), how.batch):
            part = prompts[k : k + how.batch]
            images += backbone.draw(
                [p.text for p in part],
                [p.seed for p in part],
                steps=how.steps,
                guidance=how.guidance,
                sampler=how.sampler,
                batch=how.batch,
            )
            bar.update(len(part))
    manifest = {
        "model": backbone.name,
        "erasers": [asdict(e.recipe) for e in erasers],
        "sampling": asdict(how),
        "seconds": round(time.perf_counter() - start, 3),
    }
    return Gallery(tuple(prompts), tuple(images), manifest)


def _file_name(k: int, p: Prompt) -> str:
    words = [w for w in (p.object, p.style) if w] or [p.concept or "prompt"]
    plain = ["".join(c if c.isascii() and c.isalnum() else "-" for c in w) for w in words]
    return f"{k:04d}_{'_'.join(plain)}_seed{p.seed}.png"


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
