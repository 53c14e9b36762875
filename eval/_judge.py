"""Judges: image classifiers that say which object and which style a picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, PreTrainedModel

from ..pipelines import Backbone, canvas_folder, quiet
from ..prompts import InputError


@dataclass(frozen=True)
class Verdict:
    """What the judges saw in each image of a gallery: object names and style names."""

    objects: tuple[str, ...]
    styles: tuple[str, ...]


class Judges:
    """One object classifier and one style classifier from transformers folders (safetensors).

    Args:
        object_folder, style_folder: image classifiers whose labels are the concepts' names.
    """

    def __init__(self, object_folder: Path, style_folder: Path) -> None:
        with quiet():
            self._object, self._style = (
                AutoModelForImageClassification.from_pretrained(f, use_safetensors=True).eval()
                for f in (object_folder, style_folder)
            )

    def look(self, images: Sequence[Image.Image], batch: int = 256) -> Verdict:
        """Name every image.

        Raises:
            InputError: no images.
        """
        if not images:
            raise InputError("expected at least one image to judge, got none")
        return Verdict(tuple(_names(self._object, images, batch)), tuple(_names(self._style, images, batch)))


@torch.no_grad()
def _names(model: PreTrainedModel, images: Sequence[Image.Image], batch: int) -> list[str]:
    labels = model.config.id2label
    out: list[str] = []
    for k in range(0, len(images), batch):
        x = torch.from_numpy(np.stack([np.asarray(i.convert("RGB")) for i in images[k : k + batch]]))
        x = x.permute(0, 3, 1, 2).to(model.device, torch.float32) / 127.5 - 1
        out += [labels[i] for i in model(pixel_values=x).logits.argmax(1).tolist()]
    return out


def judges(backbone: Backbone) -> Judges:
    """The judges of a pipeline's world.

    Raises:
        InputError: the pipeline's world has none.
    """
    if backbone.world != "canvas":
        raise InputError(
            f"no judges for {backbone.name!r}: UA, IRA and CRA need classifiers trained on its images; known: canvas"
        )
    return Judges(canvas_folder("judge-object"), canvas_folder("judge-style"))
