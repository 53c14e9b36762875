"""One image to draw: a sentence, a seed, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass

SEEDS: tuple[int, ...] = (188, 288, 588, 688, 888)
"""UnlearnCanvas' five seeds (arXiv 2402.11846)."""


@dataclass(frozen=True)
class Prompt:
    """One image to draw.

    Attributes:
        text: what is asked for; may be empty.
        seed: of the starting noise; the same seed gives the same noise for every model and eraser.
        concept: what the prompt is about, in one word ("moon"); "" when it does not matter.
        object: the object an object judge should see, "" if none is asked for.
        style: likewise the style.
        role: why the prompt is in its set: "grid", "synonym", "held-out", "paraphrase" or your own word.
    """

    text: str
    seed: int = 0
    concept: str = ""
    object: str = ""
    style: str = ""
    role: str = ""
