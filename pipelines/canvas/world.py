"""The Canvas world as tensors: images, labels and captions, drawn once and kept."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...prompts import canvas
from .draw import draw

OBJECT_NAMES = [c.name for c in canvas.OBJECTS]
STYLE_NAMES = [c.name for c in canvas.STYLES]
HELD_OUT_SEED = 1_000_000


@dataclass
class World:
    """Images of the grid, cell by cell.

    Attributes:
        images: uint8 [N, 3, H, W].
        objects: int64 [N] index into `canvas.OBJECTS`.
        styles: int64 [N] index into `canvas.STYLES`.
    """

    images: Tensor
    objects: Tensor
    styles: Tensor

    def pixels(self, index: Tensor) -> Tensor:
        """Chosen images as float32 [B, 3, H, W] in -1..1."""
        return self.images[index].float().div_(127.5).sub_(1.0)

    def without(self, name: str | None) -> World:
        """The world in which a concept was never drawn."""
        if name is None:
            return self
        labels, names = (self.objects, OBJECT_NAMES) if name in OBJECT_NAMES else (self.styles, STYLE_NAMES)
        keep = labels != names.index(name)
        return World(self.images[keep], self.objects[keep], self.styles[keep])


def world(per_cell: int, first_seed: int, cache: Path | None = None) -> World:
    """`per_cell` drawings of every object in every style, with seeds from `first_seed` on; cached as safetensors."""
    if cache is not None and cache.exists():
        return World(**load_file(cache))
    images, objects, styles = [], [], []
    for o, obj in enumerate(OBJECT_NAMES):
        for s, style in enumerate(STYLE_NAMES):
            for k in range(per_cell):
                images.append(np.asarray(draw(obj, style, first_seed + k)))
                objects.append(o)
                styles.append(s)
    out = World(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(objects),
        torch.tensor(styles),
    )
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(cache, vars(out))
    return out


@dataclass
class Captions:
    """Training captions: a table of different sentences and, per image, some rows of it.

    Attributes:
        table: the sentences.
        rows: int64 [N, K] sentences that describe each image.
        objects, styles: int64 [len(table)] what each sentence names, -1 for nothing.
    """

    table: list[str]
    rows: Tensor
    objects: Tensor
    styles: Tensor


def captions(data: World, per_image: int, seed: int) -> Captions:
    """Draw `per_image` training captions for every image."""
    rng = random.Random(seed)
    index: dict[str, int] = {}
    named: list[tuple[int, int]] = []
    rows = []
    for o, s in zip(data.objects.tolist(), data.styles.tolist(), strict=True):
        row = []
        for _ in range(per_image):
            text = canvas.training_caption(canvas.OBJECTS[o], canvas.STYLES[s], rng)
            if text not in index:
                index[text] = len(index)
                words = set(text.lower().replace(".", " ").replace(",", " ").replace(":", " ").split())
                named.append(
                    (
                        o if words & set(canvas.OBJECTS[o].names) else -1,
                        s if words & set(canvas.STYLES[s].names) else -1,
                    )
                )
            row.append(index[text])
        rows.append(row)
    what = torch.tensor(named)
    return Captions(list(index), torch.tensor(rows), what[:, 0], what[:, 1])


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write atomically."""
    partial = path.with_suffix(path.suffix + ".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, partial)
    partial.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write atomically."""
    partial = path.with_suffix(path.suffix + ".part")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    partial.replace(path)
