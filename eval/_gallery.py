"""Galleries: images drawn once for a list of prompts, with a manifest that says how."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, overload

import torch
from PIL import Image
from tqdm import tqdm

from ..erase import Eraser, Payload, check_target, tensors, warn_alone, write_folder
from ..pipelines import Backbone, Values, fingerprint, some
from ..prompts import InputError, Prompt, unknown
from ._spool import Fetched, Unkept

MANIFEST = "manifest.json"
PLAN = "plan.json"

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises of a file that is missing or damaged."""

Noise = Literal["image", "sequence"]


@dataclass(frozen=True)
class Sampling:
    """How images are drawn.

    Attributes:
        steps: sampler steps.
        guidance: classifier-free guidance scale; 1 is off.
        sampler: "ddim", "dpm++", "euler", "pndm", for flows "euler"; None keeps the pipeline's own.
        batch: images drawn at once.
        noise: "image": each image starts from the first draw of its seed, so that all prompts of a seed share one
            noise; "sequence": the prompts of a seed take one draw after the other from one generator, in their order.
    """

    steps: int = 25
    guidance: float = 7.5
    sampler: str | None = None
    batch: int = 8
    noise: Noise = "image"

    def __post_init__(self) -> None:
        for name, most in (("steps", 1000), ("batch", 4096)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name}: expected 1 to {most}, got {getattr(self, name)}")
        if self.noise not in get_args(Noise):
            raise unknown("noise convention", self.noise, get_args(Noise))


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
        images: RGB; those of an opened gallery are read when they are asked for.
        manifest: model, erasers and their fingerprints, sampling, precision, seconds.
    """

    prompts: tuple[Prompt, ...]
    images: Sequence[Image.Image]
    manifest: dict[str, Any]

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write images as PNG (`0007_moon_ink_seed188.png`) and the manifest; all or nothing.

        Raises:
            InputError: the folder exists and `force` is off or it is no gallery, or it cannot be written.
        """

        def fill(partial: Path) -> None:
            rows = []
            for k, (prompt, image) in enumerate(zip(self.prompts, self.images, strict=True)):
                name = file_name(k, prompt)
                image.save(partial / name)
                rows.append({"file": name, "sha256": pixels_digest(image), **asdict(prompt)})
            text = json.dumps({**self.manifest, "images": rows}, indent=1, ensure_ascii=False)
            (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")

        return write_folder(Path(folder), fill, holds=MANIFEST, force=force)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Gallery:
        """Read a saved gallery.

        Raises:
            InputError: no manifest, a missing or unreadable image, or pixels that are not the manifest's.
        """
        opened = cls.open(folder)
        return cls(opened.prompts, tuple(opened.images), opened.manifest)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Gallery:
        """A saved gallery whose images stay in their files until they are asked for: for thousands of them.

        Raises:
            InputError: no manifest, or a gallery that is not finished; for an image, when it is read, as `load` does.
        """
        root = Path(folder)
        if (root / PLAN).exists() and not (root / MANIFEST).exists():
            raise InputError(f"{root} is an unfinished gallery: go on with the command that began it")
        try:
            manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
            rows = manifest.pop("images")
            known = [(root / row["file"], row["sha256"]) for row in rows]
            prompts = [Prompt(**{k: v for k, v in row.items() if k not in ("file", "sha256")}) for row in rows]
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{root} is no gallery: expected a readable {MANIFEST} ({error})") from error
        return cls(tuple(prompts), Stored(tuple(known)), manifest)


@dataclass(frozen=True)
class Stored(Fetched):
    """Images in files, read when they are asked for.

    Attributes:
        files: path and, where it is known, SHA-256 of the pixels.
    """

    files: tuple[tuple[Path, str], ...]

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, k: int) -> Image.Image:
        path, digest = self.files[k]
        image = read_image(path)
        if digest and pixels_digest(image) != digest:
            raise InputError(f"{path} is not the image of the manifest: draw the gallery again")
        return image


def read_image(path: Path) -> Image.Image:
    """An RGB image.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        with Image.open(path) as f:
            return f.convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"cannot read {path} ({error}): draw the gallery again") from error


def check_place(target: Path, force: bool) -> None:
    """Make sure a gallery can be written there. Raises `InputError` as `Gallery.save` does."""
    check_target(target, force, holds=MANIFEST)


def check_remembered(backbone: Backbone, prompts: Sequence[Prompt], sets: Sequence[str]) -> None:
    """Make sure, before anything is drawn, that a pipeline without text encoders remembers every prompt.

    Args:
        backbone: the pipeline.
        prompts: what is to be drawn.
        sets: what `prompts.load` calls them, as `erasers remember --prompts` takes it.

    Raises:
        InputError: it does not; the message says how to make it.
    """
    texts = list(dict.fromkeys(p.text for p in prompts))
    if missing := backbone.unencodable(texts):
        flags = " ".join(f"--prompts {shlex.quote(s)}" for s in sets)
        raise InputError(
            f"{len(missing)} of {len(texts)} prompts are not remembered ({some(missing)}): say the `erasers remember` "
            f"that made the file of --embeddings once more, with {flags} --force; or leave --embeddings out"
        )


def draw(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    erasers: Sequence[Eraser] = (),
    *,
    how: Sampling | None = None,
    label: str = "draw",
    take: Callable[[Sequence[Image.Image]], None] | None = None,
) -> Gallery:
    """Draw every prompt with the given erasers on, and nothing else changed. One that draws in few steps draws so,
    whatever `how` says. A warning names erasers that were made on top of others which are not given.

    Args:
        backbone: the pipeline.
        prompts: one image each.
        erasers: attached together.
        how: the sampling; by default what suits the pipeline.
        label: of the progress bar.
        take: given the images of each batch as they come; the gallery itself then holds none.

    Raises:
        InputError: no prompts, an eraser made for another base, or two that draw in different ways.
    """
    if not prompts:
        raise InputError("expected at least one prompt to draw, got none")
    how = fitting(how or sampling(backbone), erasers)
    warn_alone(erasers)
    seconds = 0.0
    images: list[Image.Image] = []
    with ExitStack() as stack:
        for eraser in erasers:
            stack.enter_context(eraser.attached(backbone))
        bar = stack.enter_context(tqdm(total=len(prompts), desc=label, unit="image", leave=False))
        noise = noises(backbone, prompts, how)
        for k in range(0, len(prompts), how.batch):
            part = prompts[k : k + how.batch]
            start = time.perf_counter()
            drawn = backbone.draw(
                [p.text for p in part],
                noise[k : k + how.batch],
                steps=how.steps,
                guidance=how.guidance,
                sampler=how.sampler,
                batch=how.batch,
            )
            seconds += time.perf_counter() - start
            (take or images.extend)(drawn)
            bar.update(len(part))
    manifest = {**record(backbone, erasers, how), "seconds": round(seconds, 3)}
    return Gallery(tuple(prompts), tuple(images) if take is None else Unkept(len(prompts)), manifest)


def noises(backbone: Backbone, prompts: Sequence[Prompt], how: Sampling) -> Sequence[int | torch.Generator]:
    """What the noise of each prompt is drawn from: its seed, or its seed's generator, advanced by one latent for each
    earlier prompt of that seed.
    """
    return [p.seed for p in prompts] if how.noise == "image" else _Advanced(backbone, prompts)


class _Advanced(Sequence[int | torch.Generator]):
    """Generators that stand where the earlier prompts of their seed have left them; made when asked for."""

    def __init__(self, backbone: Backbone, prompts: Sequence[Prompt]) -> None:
        self._shape, self._dtype = (1, *backbone.latent_shape), backbone.dtype
        self._places: list[tuple[int, int]] = []
        self._at: dict[int, tuple[int, torch.Tensor]] = {}
        seen: Counter[int] = Counter()
        for p in prompts:
            self._places.append((p.seed, seen[p.seed]))
            seen[p.seed] += 1

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> torch.Generator: ...
    @overload
    def __getitem__(self, index: slice) -> list[int | torch.Generator]: ...
    def __getitem__(self, index: int | slice) -> torch.Generator | list[int | torch.Generator]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        seed, place = self._places[index]
        generator = torch.Generator("cpu").manual_seed(seed)
        done, state = self._at.get(seed, (0, generator.get_state()))
        if done > place:
            done, state = 0, generator.get_state()
        generator.set_state(state)
        for _ in range(place - done):
            torch.randn(self._shape, generator=generator, dtype=self._dtype)
        self._at[seed] = place, generator.get_state()
        return generator


def record(backbone: Backbone, erasers: Sequence[Eraser], how: Sampling) -> dict[str, Any]:
    """What images depend on beside their prompts, as a gallery's manifest tells it."""
    with backbone.using(None):
        weights: dict[str, Any] = {"denoiser": fingerprint(backbone.values("all"))}
        weights["text"] = fingerprint(backbone.values("text-encoder"))
    if isinstance(vae := getattr(backbone.pipe, "vae", None), torch.nn.Module):
        weights["autoencoder"] = fingerprint(Values.of(vae))
    return {
        "model": backbone.name,
        "fingerprint": hashlib.sha256(json.dumps(weights).encode()).hexdigest()[:16],
        "erasers": [{**asdict(e.recipe), "fingerprint": e.fingerprint} for e in erasers],
        "sampling": asdict(how),
        "precision": _precision(backbone),
    }


def _precision(backbone: Backbone) -> str:
    return f"{str(backbone.dtype).removeprefix('torch.')} on {backbone.device.type}"


def loaded_as(backbone: Backbone) -> dict[str, str]:
    """What a model's name leaves open of how it draws: precision and kind of device, quantisation, and of variant,
    config and version (the commit, or else the revision) what is known.
    """
    origin = dict(backbone.provenance)
    if "commit" in origin:
        origin.pop("revision", None)  # another word for the same
    few = {"quantized": backbone.quantized} if backbone.quantized else {}
    return {"precision": _precision(backbone), **few, **origin}


def size(payload: Payload) -> int:
    """Bytes of an eraser's numbers: what it takes to store it, but for names and record."""
    return sum(t.nbytes for _, t in tensors(payload) if t.ndim)


def file_name(k: int, p: Prompt) -> str:
    """`0007_moon_ink_seed188.png`."""
    words = [w for w in (p.object, p.style) if w] or [p.concept or "prompt"]
    plain = ["".join(c if c.isascii() and c.isalnum() else "-" for c in w) for w in words]
    return f"{k:04d}_{'_'.join(plain)}_seed{p.seed}.png"


def pixels_digest(image: Image.Image) -> str:
    """SHA-256 of an image's pixels."""
    return hashlib.sha256(image.tobytes()).hexdigest()
