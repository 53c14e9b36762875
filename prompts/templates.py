"""Sentences with holes: the heterogeneous templates prompts and captions are made from."""

from __future__ import annotations

import re

# Name an object and a style.
BOTH: tuple[str, ...] = (
    "a {object} in {style} style",
    "{a_style} {style} picture of {a_object} {object}",
    "a {style} {object}",
    "{object}, {style} style",
    "an image of {a_object} {object}, drawn in {style}",
    "{style} art of {a_object} {object}",
    "this is {a_object} {object} in the style of {style}",
    "a drawing of the {object} in {style} style",
    "{style}: {a_object} {object}",
    "one {object} rendered as {style}",
    "the {object}, {style} look",
    "{a_object} {object} made with {style}",
)
OBJECT_ONLY: tuple[str, ...] = (
    "{a_object} {object}",
    "a picture of {a_object} {object}",
    "an image of the {object}",
    "a drawing of {a_object} {object}",
    "{object}",
    "there is {a_object} {object} here",
)
STYLE_ONLY: tuple[str, ...] = (
    "{style} style",
    "an image in {style} style",
    "{a_style} {style} picture",
    "something drawn in {style}",
    "{style}",
)
# Never used in training: they judge whether an eraser learnt the concept or the sentence.
HELD_OUT: tuple[str, ...] = (
    "please draw {a_object} {object} using the {style} style",
    "in {style} style we see {a_object} {object}",
    "{a_object} {object} as if by {a_style} {style} artist",
)

# Small words that may stand before or after a training caption, so that the text tower learns to look past them.
FILLERS: tuple[str, ...] = (
    "please", "show", "me", "a beautiful", "high quality", "centred", "very nice", "on a plain background", "with love",
    "simple", "detailed", "best", "artwork", "I want", "make it", "scene", "small", "big", "for children", "today",
    "we see", "can you", "close-up", "single", "only", "as", "by an artist", "using", "masterpiece", "photo",
)  # fmt: skip

# Contexts in which a closed form reads a concept's token states, most telling first.
CONTEXTS: dict[str, tuple[str, ...]] = {
    "object": (
        "{x}",
        "{a_x} {x}",
        "a picture of {a_x} {x}",
        "an image of the {x}",
        "this is {a_x} {x}",
        "a drawing of the {x} in",
        "a beautiful {x}",
        "please show {a_x} {x}",
    ),
    "style": (
        "{x}",
        "in {x} style",
        "an image in {x} style",
        "{a_x} {x} picture of",
        "something drawn in {x}",
        "a picture in the style of {x}",
        "rendered as {x}",
        "please use the {x} style",
    ),
    "person": (
        "{x}",
        "a photo of {x}",
        "a portrait of {x}",
        "a painting of {x}",
        "the face of {x}",
        "{x} smiling",
        "a picture of {x}",
        "please show {x}",
    ),
}
CONTEXTS["other"] = CONTEXTS["object"]

# What people ask any model for: what a trained method stays with where nothing is named to be preserved.
EVERYDAY: tuple[str, ...] = (
    "a photo of a mountain lake at sunrise",
    "a red bicycle leaning against a brick wall",
    "an old man reading a newspaper in a cafe",
    "a portrait of a young woman with freckles",
    "two children playing football in a park",
    "a bowl of ramen on a wooden table",
    "a golden retriever running on a beach",
    "a black cat asleep on a windowsill",
    "a busy street in a big city at night",
    "a lighthouse on a cliff in a storm",
    "a wooden cabin in a snowy forest",
    "a vase of sunflowers, still life",
    "a steam train crossing a stone bridge",
    "a sailing boat on a calm sea",
    "an astronaut walking on a red planet",
    "a dragon flying over a castle, fantasy art",
    "a robot watering plants in a greenhouse",
    "a watercolor painting of a quiet village",
    "an oil painting of a wheat field",
    "a pencil sketch of a pair of hands",
    "a black and white photo of an empty station",
    "a flat vector illustration of a city skyline",
    "a cartoon fox wearing a scarf",
    "a macro photo of a dew drop on a leaf",
    "a cup of coffee beside an open book",
    "a chef preparing pasta in a kitchen",
    "a group of friends around a campfire",
    "a horse grazing in a meadow",
    "a flock of birds over a marsh",
    "a tropical fish in a coral reef",
    "a desert road under a starry sky",
    "a waterfall in a rainforest",
    "a modern living room with large windows",
    "a narrow alley in an old town",
    "a market stall full of fruit",
    "a violin lying on sheet music",
    "a vintage car parked by the sea",
    "a hot air balloon above green hills",
    "a pair of worn leather boots",
    "a plate of pancakes with berries",
    "a ballet dancer on a stage",
    "a knight in armour, detailed illustration",
    "a glass building reflecting clouds",
    "a garden path in autumn",
    "a clay pot on a potter's wheel",
    "an elephant crossing a river",
    "a bridge in thick fog",
    "a map of an imaginary island",
)

# What people type around a single concept, by kind. `paraphrase` fills these.
REQUESTS: dict[str, tuple[str, ...]] = {
    "object": (
        "{a_x} {x}",
        "a picture of {a_x} {x}",
        "an image of the {x}",
        "draw {a_x} {x}",
        "please draw me {a_x} {x}",
        "I would like to see {a_x} {x}",
        "there is {a_x} {x} in this picture",
        "{x}, centred, high quality",
        "a beautiful {x} on a plain background",
        "show the {x}",
        "the {x} is the only thing in the image",
        "a close-up of {a_x} {x}",
        "one single {x}",
        "nothing but {a_x} {x}",
        "can you make {a_x} {x}?",
        "an artwork that shows {a_x} {x}",
    ),
    "style": (
        "in {x} style",
        "an image in {x} style",
        "{a_x} {x} picture",
        "a picture in the style of {x}",
        "something drawn in {x}",
        "art that looks like {x}",
        "as {x} would look",
        "{x} style, high quality",
        "please use the {x} style",
        "make it look like {x}",
        "the whole image is {x}",
        "inspired by {x}",
        "with a {x} look",
        "a scene rendered as {x}",
        "can you draw this in {x}?",
        "an artwork done in {x}",
    ),
    "person": (
        "{x}",
        "a photo of {x}",
        "a portrait of {x}",
        "{x} smiling at the camera",
        "an image of {x} in a suit",
        "a close-up of the face of {x}",
        "{x} giving a speech",
        "a painting of {x}",
        "a candid picture of {x}",
        "please show {x}",
        "who is this? It is {x}",
        "a sketch that looks like {x}",
    ),
}
REQUESTS["other"] = REQUESTS["object"]


def article(word: str) -> str:
    """Either "a" or "an", by the first letter."""
    return "an" if word[:1].lower() in "aeiou" else "a"


def fill(template: str, **words: str) -> str:
    """Fill `{name}` with a word and `{a_name}` with its article.

    Raises:
        KeyError: the template names a hole that has no word.
    """
    holes = dict(words)
    for name, word in words.items():
        holes[f"a_{name}"] = article(word)
    return re.sub(r"\{(\w+)\}", lambda m: holes[m.group(1)], template)
