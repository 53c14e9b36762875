"""Peak memory of a stretch of code, under the name by which the scripts here know it."""

from erasers.eval import Peak, resident

__all__ = ["Peak", "resident"]
