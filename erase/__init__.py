"""Methods and erasers. A file here without a leading underscore is a method, and its name is its public name."""

from ._erase import concept, default_preserve, erase
from ._eraser import LAYOUTS, Attached, Eraser, Recipe
from ._files import CONFIG_FILE, check_target, write_folder
from ._inspect import describe
from ._method import Factors, Method, Option, Task, configure, find, methods, options

__all__ = [
    "CONFIG_FILE",
    "LAYOUTS",
    "Attached",
    "Eraser",
    "Factors",
    "Method",
    "Option",
    "Recipe",
    "Task",
    "check_target",
    "concept",
    "configure",
    "default_preserve",
    "describe",
    "erase",
    "find",
    "methods",
    "options",
    "write_folder",
]
