"""Galleries, grids and scores. A file here without a leading underscore is an evaluator, and its name is its public
name.
"""

from ._answers import answers, combination, score_answers
from ._collect import clear, collect
from ._compare import IMAGE_METRICS, compare
from ._convert_judge import convert_judge
from ._cost import COST_FILE, Cost, cost_of
from ._evaluate import Control, Report, evaluate, mean, protocol_sampling
from ._evaluator import Case, Evaluator, choose, evaluators, find
from ._gallery import Gallery, Sampling, check_place, draw, sampling
from ._grid import grid, save_image
from ._judge import Judges, Verdict, judges
from ._score import NotApplicable, Score
from ._sequence import Steps, in_sequence
from ._train_judge import Lesson, measure, train_judge
from ._unpack import captioned, unpack

__all__ = [
    "COST_FILE",
    "IMAGE_METRICS",
    "Case",
    "Control",
    "Cost",
    "Evaluator",
    "Gallery",
    "Judges",
    "Lesson",
    "NotApplicable",
    "Report",
    "Sampling",
    "Score",
    "Steps",
    "Verdict",
    "answers",
    "captioned",
    "check_place",
    "choose",
    "clear",
    "collect",
    "combination",
    "compare",
    "convert_judge",
    "cost_of",
    "draw",
    "evaluate",
    "evaluators",
    "find",
    "grid",
    "in_sequence",
    "judges",
    "mean",
    "measure",
    "protocol_sampling",
    "sampling",
    "save_image",
    "score_answers",
    "train_judge",
    "unpack",
]
