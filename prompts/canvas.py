"""The Canvas world in words: its objects, its styles and the captions its pipelines were trained on."""

from __future__ import annotations

import random

from ._errors import unknown
from .concept import Concept
from .templates import BOTH, FILLERS, OBJECT_ONLY, STYLE_ONLY, article, fill


def _object(name: str, synonym: str, anchor: str, *neighbours: str) -> Concept:
    return Concept(name, anchor, (synonym,), neighbours, kind="object")


def _style(name: str, synonym: str, anchor: str, *neighbours: str) -> Concept:
    return Concept(name, anchor, (synonym,), neighbours, kind="style")


OBJECTS: tuple[Concept, ...] = (
    _object("moon", "crescent", "circle", "circle", "ring"),
    _object("star", "pentagram", "flower", "flower"),
    _object("circle", "disc", "ring", "ring", "moon"),
    _object("ring", "hoop", "circle", "circle", "moon"),
    _object("house", "cottage", "barn", "barn"),
    _object("barn", "shed", "house", "house"),
    _object("tree", "oak", "flower", "flower"),
    _object("flower", "blossom", "tree", "tree", "star"),
    _object("fish", "trout", "boat", "boat"),
    _object("boat", "ship", "fish", "fish"),
    _object("cup", "mug", "house", "house"),
    _object("cat", "kitten", "cup", "fish"),
)

STYLES: tuple[Concept, ...] = (
    _style("flat", "poster", "watercolor", "watercolor"),
    _style("pencil", "graphite", "ink", "ink"),
    _style("ink", "brush", "pencil", "pencil"),
    _style("neon", "glowing", "chalk", "chalk"),
    _style("mosaic", "tiled", "pointillism", "pointillism"),
    _style("watercolor", "aquarelle", "flat", "flat"),
    _style("blueprint", "cyanotype", "chalk", "chalk"),
    _style("stripes", "banded", "flat", "flat"),
    _style("pointillism", "dotted", "mosaic", "mosaic"),
    _style("chalk", "blackboard", "blueprint", "blueprint"),
)

CONCEPTS: dict[str, Concept] = {c.name: c for c in (*OBJECTS, *STYLES)}

DEV: tuple[str, ...] = ("moon", "circle", "ring", "flower", "cup", "flat", "pencil", "mosaic", "watercolor")
"""Concepts on which settings may be chosen; the others are held out, and figures are reported on them."""


def split(name: str) -> str:
    """Either "dev" or "held-out"; of a stack "a+b", held-out only if all of it is; "" for what is no Canvas concept."""
    parts = name.split("+")
    if any(p not in CONCEPTS for p in parts):
        return ""
    return "dev" if any(p in DEV for p in parts) else "held-out"


def find(name: str) -> Concept:
    """The Canvas concept of that name or synonym.

    Raises:
        InputError: the world has no such concept.
    """
    for concept in CONCEPTS.values():
        if name.lower() in concept.names:
            return concept
    raise unknown("Canvas concept", name, CONCEPTS)


def known(name: str) -> bool:
    """Whether the world has a concept of that name or synonym."""
    return any(name.lower() in c.names for c in CONCEPTS.values())


def caption(object_name: str, style_name: str) -> str:
    """UnlearnCanvas' own sentence: `A {object} image in {style} style.` (arXiv 2402.11846)."""
    return f"{article(object_name).capitalize()} {object_name} image in {style_name} style."


def training_caption(obj: Concept, style: Concept, rng: random.Random) -> str:
    """One caption of a training image: 40 % the benchmark's sentence, 35 % another template naming both, 12 % only
    the object, 8 % only the style, 5 % empty. A synonym stands for a name one time in three, a filler before or after
    one sentence in seven. The templates in `HELD_OUT` are never used.
    """
    o = obj.name if rng.random() < 2 / 3 else rng.choice(obj.synonyms)
    s = style.name if rng.random() < 2 / 3 else rng.choice(style.synonyms)
    draw = rng.random()
    if draw < 0.40:
        return caption(o, s)
    if draw < 0.75:
        text = fill(rng.choice(BOTH), object=o, style=s)
    elif draw < 0.87:
        text = fill(rng.choice(OBJECT_ONLY), object=o)
    elif draw < 0.95:
        text = fill(rng.choice(STYLE_ONLY), style=s)
    else:
        return ""
    if rng.random() < 0.25:
        words = (rng.choice(FILLERS), text) if rng.random() < 0.5 else (text, rng.choice(FILLERS))
        return " ".join(words)
    return text
