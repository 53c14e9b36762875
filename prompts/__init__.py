"""Concepts, prompts and the words of the Canvas world. Standard library only."""

from . import canvas, unlearncanvas
from ._errors import InputError, causes, first_line, out_of_memory, unknown
from ._files import usual_mode
from .concept import Concept, Kind
from .prompt import SEEDS, Prompt
from .sets import SETS, canvas_grid, canvas_plan, load, paraphrase, save
from .templates import BOTH, CONTEXTS, EVERYDAY, fill
from .world import CANVAS, UNLEARN_CANVAS, WORLDS, World, world

__all__ = [
    "BOTH",
    "CANVAS",
    "CONTEXTS",
    "EVERYDAY",
    "SEEDS",
    "SETS",
    "UNLEARN_CANVAS",
    "WORLDS",
    "Concept",
    "InputError",
    "Kind",
    "Prompt",
    "World",
    "canvas",
    "canvas_grid",
    "canvas_plan",
    "causes",
    "fill",
    "first_line",
    "load",
    "out_of_memory",
    "paraphrase",
    "save",
    "unknown",
    "unlearncanvas",
    "usual_mode",
    "world",
]
