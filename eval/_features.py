"""From images to feature vectors: one face for every network that image metrics are measured with.

A name says the network, its weights and what happens to an image before it:

- `canvas-judges`: pooled features of both bundled judges side by side, 256; `canvas-clip`: the bundled CLIP, 128;
- `inception-clean[:FILE]`, `inception-torchmetrics[:FILE]`: FID's Inception, 2048, with clean-fid's resize or with
  torchmetrics' default one;
- `clip:ID|FOLDER` (transformers), `open_clip:ARCH:WEIGHTS|hf-hub:ID|FOLDER`: CLIP's projected image vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..pipelines import canvas_folder, quiet
from ..prompts import InputError, unknown
from ._clip import Clip, canvas_clip, open_clip_clip, squash, transformers_clip
from ._inception import clean_pixels, fid_inception, torchmetrics_pixels

KINDS = ("canvas-clip", "canvas-judges", "clip", "inception-clean", "inception-torchmetrics", "open_clip")
CLIPS = ("canvas-clip", "clip:ID or FOLDER", "open_clip:ARCH:WEIGHTS or FOLDER")
BATCH = 64


class Extractor:
    """Images -> feature vectors. An image is looked at once however often it is asked for.

    Attributes:
        name: how it was asked for.
        convention: what happens to an image before the network sees it.
    """

    def __init__(self, name: str, convention: str, look: Callable[[Sequence[Image.Image]], Tensor]) -> None:
        self.name, self.convention, self._look = name, convention, look
        self._known: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], batch: int = BATCH) -> Tensor:
        """Features [n, d], float32.

        Raises:
            InputError: no images.
        """
        if not images:
            raise InputError("expected at least one image to measure, got none")
        out: list[Tensor] = []
        for start in range(0, len(images), batch):
            part = [images[k] for k in range(start, min(start + batch, len(images)))]
            keys = [_key(i) for i in part]
            new = {k: i for k, i in zip(keys, part, strict=True) if k not in self._known}
            if new:
                self._known |= zip(new, self._look(list(new.values())).float().cpu(), strict=True)
            out += [self._known[k] for k in keys]
        return torch.stack(out)


class Picked(Sequence[Image.Image]):
    """Some rows of a sequence of images, fetched when they are asked for: a gallery may lie on disk."""

    def __init__(self, images: Sequence[Image.Image], rows: Sequence[int]) -> None:
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, k: int) -> Image.Image: ...
    @overload
    def __getitem__(self, k: slice) -> Picked: ...
    def __getitem__(self, k: int | slice) -> Image.Image | Picked:
        if isinstance(k, slice):
            return Picked(self._images, self._rows[k])
        return self._images[self._rows[k]]


@lru_cache(maxsize=8)
def extractor(name: str) -> Extractor:
    """The feature network of that name, loaded once.

    Raises:
        InputError: no such kind, or its weights cannot be had.
    """
    kind, _, where = name.partition(":")
    if kind not in KINDS:
        raise unknown("feature network", name, KINDS)
    if kind in ("clip", "open_clip", "canvas-clip"):
        model = clip(name)
        return Extractor(name, model.convention, model.images)
    if kind == "canvas-judges":
        return Extractor(name, "the judges' own 64 x 64 input", _judge_features())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = fid_inception(where).to(device)
    resize = clean_pixels if kind == "inception-clean" else torchmetrics_pixels
    how = "Pillow bicubic on floats" if kind == "inception-clean" else "bilinear with antialiasing"

    def look(images: Sequence[Image.Image]) -> Tensor:
        out = [resize(torch.from_numpy(np.array(i.convert("RGB"))).permute(2, 0, 1)[None]) for i in images]
        return net(torch.cat(out).to(device))  # type: ignore[no-any-return]

    return Extractor(name, f"resized to 299 x 299, {how}", look)


@lru_cache(maxsize=4)
def clip(name: str) -> Clip:
    """The CLIP of that name, loaded once.

    Raises:
        InputError: no such kind, no model named, or it cannot be had.
    """
    kind, _, where = name.partition(":")
    if name == "canvas-clip":
        return canvas_clip()
    if kind not in ("clip", "open_clip") or not where:
        raise InputError(f"expected a CLIP, one of {', '.join(CLIPS)}; got {name!r}")
    return transformers_clip(where) if kind == "clip" else open_clip_clip(where)


def _judge_features() -> Callable[[Sequence[Image.Image]], Tensor]:
    from transformers import AutoModelForImageClassification

    with quiet():
        nets = [
            AutoModelForImageClassification.from_pretrained(canvas_folder(f), use_safetensors=True).eval().resnet
            for f in ("judge-object", "judge-style")
        ]

    def look(images: Sequence[Image.Image]) -> Tensor:
        x = squash(images, 64) / 127.5 - 1
        return torch.cat([net(pixel_values=x).pooler_output.flatten(1) for net in nets], 1)

    return look


def _key(image: Image.Image) -> bytes:
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest()
