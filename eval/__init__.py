"""Galleries, grids and scores. A file here without a leading underscore is an evaluator, and its name is its public
name.
"""

from ._compare import IMAGE_METRICS, compare
from ._evaluate import Control, Report, evaluate, mean
from ._evaluator import Case, Evaluator, choose, evaluators, find
from ._gallery import Gallery, Sampling, check_place, draw, sampling
from ._grid import grid, save_image
from ._judge import Judges, Verdict, judges
from ._score import NotApplicable, Score

__all__ = [
    "IMAGE_METRICS",
    "Case",
    "Control",
    "Evaluator",
    "Gallery",
    "Judges",
    "NotApplicable",
    "Report",
    "Sampling",
    "Score",
    "Verdict",
    "check_place",
    "choose",
    "compare",
    "draw",
    "evaluate",
    "evaluators",
    "find",
    "grid",
    "judges",
    "mean",
    "sampling",
    "save_image",
]
