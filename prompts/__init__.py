"""Concepts, prompts and the words of the Canvas world. Standard library only."""

from . import canvas
from ._errors import InputError, unknown
from .concept import Concept, Kind
from .sets import SEEDS, SETS, Prompt, canvas_grid, canvas_plan, load, paraphrase, save
from .templates import BOTH, CONTEXTS, EVERYDAY, fill

__all__ = [
    "BOTH",
    "CONTEXTS",
    "EVERYDAY",
    "SEEDS",
    "SETS",
    "Concept",
    "InputError",
    "Kind",
    "Prompt",
    "canvas",
    "canvas_grid",
    "canvas_plan",
    "fill",
    "load",
    "paraphrase",
    "save",
    "unknown",
]
