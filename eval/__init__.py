"""Galleries, grids and scores. A file here without a leading underscore is an evaluator, and its name is its public
name.
"""

from ._answers import answers, combination, score_answers
from ._benchmark import Plan, benchmark, rows_of
from ._cells import Cells, import_rows
from ._charts import Point, frontier, heat_map
from ._collect import clear, collect
from ._compare import IMAGE_METRICS, compare
from ._convert_judge import convert_judge
from ._cost import COST_FILE, Cost, cost_of, resident
from ._evaluate import Control, Report, evaluate, mean, protocol_sampling
from ._evaluator import Case, Evaluator, choose, evaluators, find
from ._gallery import Gallery, Sampling, check_place, check_remembered, draw, loaded_as, sampling
from ._grid import grid, save_image
from ._judge import Judges, Verdict, judges
from ._paired import Difference, paired, plan_of
from ._report import erased_by_asked, object_by_style, report
from ._score import NotApplicable, Score
from ._sequence import Steps, in_sequence
from ._table import CONTROLS, best, leaderboard, read_table, table, write_all
from ._train_judge import Lesson, measure, train_judge
from ._unpack import captioned, lacking, unpack

__all__ = [
    "CONTROLS",
    "COST_FILE",
    "IMAGE_METRICS",
    "Case",
    "Cells",
    "Control",
    "Cost",
    "Difference",
    "Evaluator",
    "Gallery",
    "Judges",
    "Lesson",
    "NotApplicable",
    "Plan",
    "Point",
    "Report",
    "Sampling",
    "Score",
    "Steps",
    "Verdict",
    "answers",
    "benchmark",
    "best",
    "captioned",
    "check_place",
    "check_remembered",
    "choose",
    "clear",
    "collect",
    "combination",
    "compare",
    "convert_judge",
    "cost_of",
    "draw",
    "erased_by_asked",
    "evaluate",
    "evaluators",
    "find",
    "frontier",
    "grid",
    "heat_map",
    "import_rows",
    "in_sequence",
    "judges",
    "lacking",
    "leaderboard",
    "loaded_as",
    "mean",
    "measure",
    "object_by_style",
    "paired",
    "plan_of",
    "protocol_sampling",
    "read_table",
    "report",
    "resident",
    "rows_of",
    "sampling",
    "save_image",
    "score_answers",
    "table",
    "train_judge",
    "unpack",
    "write_all",
]
