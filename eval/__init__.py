"""Galleries, grids and scores. A file here without a leading underscore is an evaluator, and its name is its public
name.
"""

from ._evaluate import Control, Report, evaluate, mean
from ._evaluator import Case, Evaluator, evaluators, find
from ._gallery import Gallery, Sampling, check_place, draw, sampling
from ._grid import grid, save_image
from ._judge import Judges, Verdict, judges
from ._score import NotApplicable, Score

__all__ = [
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
