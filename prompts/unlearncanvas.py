"""UnlearnCanvas in words: its themes, its objects, its sentences (arXiv 2402.11846; names and settings as published by
OPTML-Group/UnlearnCanvas, MIT licence). Anchors are left empty, and look-alikes and synonyms are this project's own
choice: the benchmark names none.
"""

from __future__ import annotations

import re

from ._errors import InputError
from .concept import Concept
from .templates import article

PHOTO = "Seed Images"
"""The unstylised photographs: the 51st theme, drawn and judged, never erased."""

OBJECT_NAMES: tuple[str, ...] = (
    *("Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes", "Flame", "Flowers", "Frogs"),
    *("Horses", "Human", "Jellyfish", "Rabbits", "Sandwiches", "Sea", "Statues", "Towers", "Trees", "Waterfalls"),
)

# In the order of the published judges' labels, which is that of their folders' names.
THEME_NAMES: tuple[str, ...] = (
    *("Abstractionism", "Artist Sketch", "Blossom Season", "Bricks", "Byzantine", "Cartoon", "Cold Warm"),
    *("Color Fantasy", "Comic Etch", "Crayon", "Cubism", "Dadaism", "Dapple", "Defoliation", "Early Autumn"),
    *("Expressionism", "Fauvism", "French", "Glowing Sunset", "Gorgeous Love", "Greenfield", "Impressionism"),
    *("Ink Art", "Joy", "Liquid Dreams", "Magic Cube", "Meta Physics", "Meteor Shower", "Monet", "Mosaic"),
    *("Neon Lines", "On Fire", "Pastel", "Pencil Drawing", "Picasso", "Pop Art", "Red Blue Ink", "Rust", PHOTO),
    *("Sketch", "Sponge Dabbed", "Structuralism", "Superstring", "Surrealism", "Ukiyoe", "Van Gogh", "Vibrant Flow"),
    *("Warm Love", "Warm Smear", "Watercolor", "Winter"),
)

LEFT_OUT: tuple[str, ...] = (
    *("Blue Blooming", "Crypto Punks", "Dreamweave", "Foliage Patchwork", "Impasto", "Palette Knife", "Pointillism"),
    *("Rainwash", "Realistic Watercolor", "Techno"),
)
"""Styles of the data set that are no part of the benchmark."""

NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "Architectures": ("Towers",),
    "Bears": ("Dogs",),
    "Birds": ("Butterfly",),
    "Butterfly": ("Birds", "Flowers"),
    "Cats": ("Dogs", "Rabbits"),
    "Dogs": ("Cats", "Bears"),
    "Fishes": ("Jellyfish",),
    "Flowers": ("Trees", "Butterfly"),
    "Frogs": ("Rabbits",),
    "Horses": ("Dogs",),
    "Human": ("Statues",),
    "Jellyfish": ("Fishes",),
    "Rabbits": ("Cats",),
    "Sea": ("Waterfalls",),
    "Statues": ("Human",),
    "Towers": ("Architectures",),
    "Trees": ("Flowers",),
    "Waterfalls": ("Sea",),
    "Artist Sketch": ("Sketch", "Pencil Drawing"),
    "Crayon": ("Pastel",),
    "Cubism": ("Picasso",),
    "Early Autumn": ("Defoliation",),
    "Defoliation": ("Early Autumn",),
    "Expressionism": ("Fauvism",),
    "Fauvism": ("Expressionism",),
    "Impressionism": ("Monet", "Van Gogh"),
    "Ink Art": ("Red Blue Ink",),
    "Monet": ("Impressionism", "Van Gogh"),
    "Pastel": ("Crayon",),
    "Pencil Drawing": ("Sketch", "Artist Sketch"),
    "Picasso": ("Cubism",),
    "Red Blue Ink": ("Ink Art",),
    "Sketch": ("Artist Sketch", "Pencil Drawing"),
    "Van Gogh": ("Impressionism", "Monet"),
    "Warm Love": ("Warm Smear",),
    "Warm Smear": ("Warm Love",),
}

SYNONYMS: dict[str, tuple[str, ...]] = {
    "Architectures": ("Buildings",),
    "Cats": ("Kittens",),
    "Dogs": ("Puppies",),
    "Fishes": ("Fish",),
    "Flame": ("Fire",),
    "Flowers": ("Blossoms",),
    "Frogs": ("Toads",),
    "Horses": ("Ponies",),
    "Human": ("Person",),
    "Rabbits": ("Bunnies",),
    "Sea": ("Ocean",),
    "Statues": ("Sculptures",),
    "Waterfalls": ("Cascades",),
    "Monet": ("Claude Monet",),
    "Picasso": ("Pablo Picasso",),
    "Ukiyoe": ("Japanese woodblock print",),
    "Van Gogh": ("Vincent van Gogh",),
    "Watercolor": ("Aquarelle",),
}


def sentence(object_name: str, style_name: str) -> str:
    """`A {object} image in {style with spaces} style.`, the sentence of the published answer sets: "A" before vowels
    too, and "Seed Images" for the photographs.
    """
    return f"A {object_name} image in {style_name} style."


def caption(object_name: str, style_name: str) -> str:
    """What the data set on the Hub says of an image: "A" or "An", no full stop, "photo" for the photographs."""
    word = "photo" if style_name == PHOTO else style_name
    return f"{article(object_name).capitalize()} {object_name} image in {word} style"


_CAPTION = re.compile(r"an? (?P<object>.+?) image in (?P<style>.+) style\.?", re.IGNORECASE)


def parse(text: str) -> tuple[str, str]:
    """Object and style of a caption or sentence, as named here.

    Raises:
        InputError: it has another form, or names an object or a style that the data set does not have.
    """
    found = _CAPTION.fullmatch(text.strip())
    if found is None:
        raise InputError(f"expected a caption like 'A Dogs image in Van Gogh style', got {text!r}")
    objects = {n.lower(): n for n in OBJECT_NAMES}
    styles = {n.lower(): n for n in (*THEME_NAMES, *LEFT_OUT)} | {"photo": PHOTO}
    words = [found[k].replace("_", " ").strip().lower() for k in ("object", "style")]
    for what, word, known in (("object", words[0], objects), ("style", words[1], styles)):
        if word not in known:
            raise InputError(f"{word!r} in the caption {text!r} is no {what} of UnlearnCanvas")
    return objects[words[0]], styles[words[1]]


def _concept(name: str, kind: str) -> Concept:
    more = SYNONYMS.get(name, ()), NEIGHBOURS.get(name, ())
    return Concept(name, "", *more, kind="object" if kind == "object" else "style")


OBJECTS: tuple[Concept, ...] = tuple(_concept(n, "object") for n in OBJECT_NAMES)
THEMES: tuple[Concept, ...] = tuple(_concept(n, "style") for n in THEME_NAMES)
