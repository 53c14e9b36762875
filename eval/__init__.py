"""Galleries, grids and scores. A file here without a leading underscore is an evaluator, and its name is its public
name.
"""

from ._benchmark import Plan, benchmark, rows_of
from ._cells import Cells, import_rows
from ._evaluate import Control, Report, evaluate, mean
from ._evaluator import Case, Evaluator, evaluators, find
from ._gallery import Gallery, Sampling, check_place, draw, sampling
from ._grid import grid, save_image
from ._judge import Judges, Verdict, judges
from ._paired import Difference, paired, plan_of
from ._peak import Peak, resident
from ._score import NotApplicable, Score
from ._table import best, leaderboard, read_table, table, write_all

__all__ = [
    "Case",
    "Cells",
    "Control",
    "Difference",
    "Evaluator",
    "Gallery",
    "Judges",
    "NotApplicable",
    "Peak",
    "Plan",
    "Report",
    "Sampling",
    "Score",
    "Verdict",
    "benchmark",
    "best",
    "check_place",
    "draw",
    "evaluate",
    "evaluators",
    "find",
    "grid",
    "import_rows",
    "judges",
    "leaderboard",
    "mean",
    "paired",
    "plan_of",
    "read_table",
    "resident",
    "rows_of",
    "sampling",
    "save_image",
    "table",
    "write_all",
]
