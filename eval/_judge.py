"""Judges: image classifiers that say which object and which style a picture shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from ..pipelines import Backbone, canvas_folder, chosen_device, quiet
from ..prompts import CANVAS, InputError, World, first_line

LENS_FILE = "preprocessor_config.json"
RECORD_FILE = "judge.json"
UNMEASURED = "not measured"


@dataclass(frozen=True)
class Verdict:
    """What the judges saw in each image of a gallery: object names and style names."""

    objects: tuple[str, ...]
    styles: tuple[str, ...]


@dataclass(frozen=True)
class Lens:
    """How a judge is shown an image.

    Attributes:
        size: height and width it is resized to; None: as it is.
        resample: Pillow's filter for that.
        mean, std: of each channel, of values from 0 to 1.
    """

    size: tuple[int, int] | None = None
    resample: int = Image.Resampling.BILINEAR
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def read(cls, folder: Path) -> Lens:
        """From a judge's folder. Without a record of it, images are scaled to [-1, 1], and resized where the network's
        own config names a size.

        Raises:
            InputError: a preparation that is not known here.
        """
        path = folder / LENS_FILE
        if not path.exists():
            side = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("image_size")
            return cls((side, side)) if isinstance(side, int) else cls()
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            size = told.get("size") or {}
            if told.get("do_center_crop") or (told.get("do_resize", True) and set(size) != {"height", "width"}):
                raise InputError(f"{path}: expected a resize to height and width and no crop, got {size}")
            return cls(
                (int(size["height"]), int(size["width"])) if told.get("do_resize", True) else None,
                int(told.get("resample", Image.Resampling.BILINEAR)),
                tuple(told.get("image_mean", cls.mean)),
                tuple(told.get("image_std", cls.std)),
            )
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise error if isinstance(error, InputError) else InputError(f"cannot read {path}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """As transformers writes it."""
        if self.size is None:
            raise ValueError("expected a size to write")
        return {
            "do_resize": True,
            "size": {"height": self.size[0], "width": self.size[1]},
            "resample": int(self.resample),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "image_processor_type": "ViTImageProcessor",
        }

    def see(self, images: Sequence[Image.Image], device: torch.device | str) -> Tensor:
        """What the judge is given of them, float32 [N, 3, H, W]."""
        if self.size is None:
            shown = [i.convert("RGB") for i in images]
        else:
            side = (self.size[1], self.size[0])
            shown = [i.convert("RGB").resize(side, Image.Resampling(self.resample)) for i in images]
        x = torch.from_numpy(np.stack([np.asarray(i) for i in shown])).to(device)
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x.permute(0, 3, 1, 2).to(torch.float32) / 255 - mean) / std


class Judges:
    """One object classifier and one style classifier from transformers folders (safetensors).

    Args:
        object_folder, style_folder: image classifiers whose labels are the concepts' names.
        world: whose concepts these must be.
        device: where they work; a GPU where there is one by default.

    Raises:
        InputError: a folder is no judge, or has no label for a concept of the world; no such device.
    """

    def __init__(
        self, object_folder: Path, style_folder: Path, *, world: World = CANVAS, device: str | None = None
    ) -> None:
        self.world = world
        self.folders = {"object": Path(object_folder), "style": Path(style_folder)}
        self.device = torch.device(chosen_device(device))
        self._models = {d: _load(f, d, self.device) for d, f in self.folders.items()}
        self._lenses = {d: Lens.read(f) for d, f in self.folders.items()}
        self._labels = {d: _labels(m, d, world, self.folders[d]) for d, m in self._models.items()}

    @classmethod
    def from_folder(cls, folder: Path, world: World, device: str | None = None) -> Judges:
        """From the sub-folders `object` and `style` of a folder."""
        return cls(folder / "object", folder / "style", world=world, device=device)

    def look(self, images: Sequence[Image.Image], batch: int = 64) -> Verdict:
        """Name every image; both judges see it while it is in memory, so that thousands may lie in files.

        Raises:
            InputError: no images.
        """
        if not images:
            raise InputError("expected at least one image to judge, got none")
        seen: dict[str, list[str]] = {"object": [], "style": []}
        for k in range(0, len(images), batch):
            part = images[k : k + batch]
            for domain, names in seen.items():
                names += self._names(domain, part)
        return Verdict(tuple(seen["object"]), tuple(seen["style"]))

    @torch.no_grad()
    def _names(self, domain: str, images: Sequence[Image.Image]) -> list[str]:
        sizes = {i.size for i in images}
        if self._lenses[domain].size is None and len(sizes) > 1:
            raise InputError(f"expected images of one size, got {sorted(sizes)}: draw them alike")
        logits = self._models[domain](pixel_values=self._lenses[domain].see(images, self.device)).logits
        return [self._labels[domain][i] for i in logits.argmax(1).tolist()]

    def watch(self, batch: int = 64) -> Watch:
        """Judges images as they come; see `Watch`."""
        return Watch(self, batch)

    def record(self) -> dict[str, Any]:
        """Which judges these are and how often they are right on real images, as far as it is known."""
        return {domain: _record(folder) for domain, folder in self.folders.items()}


class Watch:
    """Judges images as they come, so many at a time: the verdict is that of `Judges.look` on all of them at once, and
    less than a batch waits in memory.
    """

    def __init__(self, judges: Judges, batch: int) -> None:
        self._judges, self._batch = judges, batch
        self._waiting: list[Image.Image] = []
        self._seen: tuple[list[str], list[str]] = [], []

    def add(self, images: Sequence[Image.Image]) -> None:
        """More images, in their order."""
        self._waiting += images
        while len(self._waiting) >= self._batch:
            self._look()

    def _look(self) -> None:
        part, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
        seen = self._judges.look(part, self._batch)
        for names, more in zip(self._seen, (seen.objects, seen.styles), strict=True):
            names += more

    def verdict(self) -> Verdict:
        """On all of them.

        Raises:
            InputError: there were none.
        """
        if self._waiting or not self._seen[0]:
            self._look()
        return Verdict(tuple(self._seen[0]), tuple(self._seen[1]))


def _load(folder: Path, domain: str, device: torch.device) -> PreTrainedModel:
    if not (folder / "config.json").is_file():
        raise InputError(
            f"no {domain} judge in {folder}: expected a classifier's config.json; make one with "
            "`erasers convert-judge` or `erasers train-judge`"
        )
    try:
        with quiet():
            model = AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"cannot load the {domain} judge in {folder}: {first_line(error)}") from error
    return model.eval().to(device)


def _labels(model: PreTrainedModel, domain: str, world: World, folder: Path) -> list[str]:
    """Names by label number, written as the world writes them."""
    known = {n.replace(" ", "_").lower(): n for n in world.names(domain)}
    raw = [str(model.config.id2label[k]) for k in range(model.config.num_labels)]
    names = [known.get(label.replace(" ", "_").lower(), label) for label in raw]
    if lacking := [n for n in world.names(domain) if n not in names]:
        raise InputError(
            f"the {domain} judge in {folder} has no label for {lacking[0]!r} ({len(lacking)} of {len(known)} missing): "
            f"expected a judge of {world.name}"
        )
    return names


def _record(folder: Path) -> dict[str, Any]:
    weights = folder / "model.safetensors"
    mark = "" if not weights.exists() else _digest(weights)
    try:
        told = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = {}
    return {"weights": mark, "accuracy on real images": told.get("accuracy on real images", UNMEASURED)}


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]


def judges(backbone: Backbone) -> Judges:
    """The judges of a pipeline's world.

    Raises:
        InputError: the pipeline's world has none.
    """
    if backbone.world != "canvas":
        raise InputError(
            f"no judges for {backbone.name!r}: UA, IRA and CRA need classifiers trained on its images; known: canvas; "
            "for a model fine-tuned on UnlearnCanvas see `--judges`"
        )
    return Judges(canvas_folder("judge-object"), canvas_folder("judge-style"), device=str(backbone.device))
