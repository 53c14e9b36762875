"""Remove a concept from a text-to-image pipeline and show what was forgotten and what was kept.

`erasers.Eraser` and `erasers.load` are here, loaded on first use; verbs live in their rooms:
`from erasers.erase import erase`, `from erasers.eval import evaluate, grid`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .erase import Eraser
    from .pipelines import load

__version__ = "0.1.0"
__all__ = ["Eraser", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name == "Eraser":
        from .erase import Eraser

        return Eraser
    if name == "load":
        from .pipelines import load

        return load
    raise AttributeError(f"module 'erasers' has no attribute {name!r}")
