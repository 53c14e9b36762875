"""Naming an image by CLIP: the class whose sentence lies nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..erase import filed
from ..prompts import InputError, Prompt, canvas, fill
from ._against import drawings, world
from ._distances import unit
from ._evaluator import GRID, Case
from ._features import Picked, clip, extractor
from ._gallery import Stored
from ._score import NotApplicable

TEMPLATE = "a photo of the {x}"
CANVAS = {
    "object": "{a_x} {x}|a picture of {a_x} {x}|a drawing of {a_x} {x}",
    "style": "{x} style|an image in {x} style|{a_x} {x} picture",
}


@dataclass(frozen=True)
class ZeroShot:
    """Classes and the vectors of their sentences.

    Attributes:
        model: which CLIP.
        classes: the names to choose from.
        template: sentences with a hole `{x}` (and `{a_x}` for its article), a bar between; their vectors are averaged.
    """

    model: str
    classes: tuple[str, ...]
    template: str

    def __post_init__(self) -> None:
        if len(set(self.classes)) < 2:
            raise InputError(f"expected at least two classes to tell apart, got {list(self.classes)}: name them")
        if "{x}" not in self.template:
            raise InputError(f"template: expected a sentence with {{x}} in it, got {self.template!r}")

    def chances(self, images: Sequence[Image.Image]) -> Tensor:
        """Probability of every class [n, classes]: softmax of 100 times the cosine, as CLIP was trained."""
        model = clip(self.model)
        sentences = self.template.split("|")
        read = unit(model.texts([fill(t, x=c) for c in self.classes for t in sentences]))
        text = unit(read.unflatten(0, (len(self.classes), len(sentences))).mean(1))
        return torch.softmax(100 * unit(extractor(self.model)(images)) @ text.T, 1)


def zero_shot(case: Case, model: str, classes: str, template: str) -> ZeroShot | NotApplicable:
    """The classes of a case: those named, else every name that its prompts ask for in the concept's domain.

    Raises:
        InputError: one class only is named, or the template has no place for it.
    """
    names = tuple(c.strip() for c in classes.split(",") if c.strip())
    if not names:
        found = [asked(p, domain(case)) for p in case.gallery.prompts if p.role in GRID]
        names = tuple(dict.fromkeys([case.concept.name, *(n for n in found if n)]))
        if len(names) < 2:
            return NotApplicable(f"its prompts ask for {names[0]} alone: name others with the setting classes")
    text = template or (CANVAS[domain(case)] if world(case) == "canvas" else TEMPLATE)
    return ZeroShot(model, names, text)


def on_real(case: Case, judge: ZeroShot, rows: Sequence[int], folder: str = "") -> dict[str, Any]:
    """How often the judge names real images rightly, as details of a score: those of a folder, else Canvas' own
    drawings; nothing where there are neither.

    Raises:
        InputError: a folder laid out otherwise, an unreadable image, or none of the classes among its folders.
    """
    if folder:
        share, n = _on_folder(judge, folder, domain(case))
    elif world(case) == "canvas":
        pictures, cells = drawings(case, rows)
        share, n = _share(judge, pictures, [cell[domain(case) == "style"] for cell in cells]), len(cells)
    else:
        return {"top 1 on real images": "not measured: name a folder of them with the setting real"}
    return {"top 1 on real images": share, "real images": n}


@lru_cache(maxsize=64)
def _on_folder(judge: ZeroShot, folder: str, kind: str) -> tuple[float, int]:
    """Of all images of the classes; read once for all concepts that share them."""
    names = {c.lower(): c for c in judge.classes}
    there = [f for f in filed(Path(folder)) if getattr(f, kind) in names]
    if not there:
        some = ", ".join(judge.classes[:3])
        raise InputError(f"real: {folder} has no {kind} of the classes ({some} ...): expected style/object/1.jpg")
    pictures = Stored(tuple((f.path, "") for f in there))
    return _share(judge, pictures, [names[getattr(f, kind)] for f in there]), len(there)


def _share(judge: ZeroShot, pictures: Sequence[Image.Image], want: Sequence[str]) -> float:
    """Percent of images that the judge names as wanted."""
    named = [judge.classes[k] for k in judge.chances(pictures).argmax(1).tolist()]
    return round(100 * sum(a == b for a, b in zip(named, want, strict=True)) / len(want), 4)


def domain(case: Case) -> str:
    """Which of a prompt's names counts: "style" where the concept is one, else "object"."""
    return "style" if canvas.CONCEPTS.get(case.concept.name, case.concept).kind == "style" else "object"


def asked(prompt: Prompt, kind: str) -> str:
    """The object or style that a prompt asks for, or its own `concept`."""
    return (prompt.object if kind == "object" else prompt.style) or prompt.concept


def right(case: Case, judge: ZeroShot, rows: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
    """Probability of the class that was asked for and whether it came first, with the eraser and without.

    Returns:
        [2, n] probabilities, [2, n] hits, and the rows whose asked name is among the classes.
    """
    rows = [k for k in rows if asked(case.gallery.prompts[k], domain(case)) in judge.classes]
    want = torch.tensor([judge.classes.index(asked(case.gallery.prompts[k], domain(case))) for k in rows])
    if not rows:
        return torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), []
    p = torch.stack([judge.chances(Picked(g.images, rows)) for g in (case.gallery, case.control)])
    return p[:, torch.arange(len(rows)), want], p.argmax(2) == want, rows
