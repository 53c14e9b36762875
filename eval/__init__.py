"""Galleries, grids and scores. A file here without a leading underscore is an evaluator, and its name is its public
name.
"""

from ._benchmark import Plan, benchmark, rows_of
from ._cells import Cells, import_rows
from ._charts import Point, frontier, heat_map
from ._evaluate import Control, Report, evaluate, mean
from ._evaluator import Case, Evaluator, evaluators, find
from ._gallery import Gallery, Sampling, check_place, draw, sampling
from ._grid import grid, save_image
from ._judge import Judges, Verdict, judges
from ._paired import Difference, paired, plan_of
from ._peak import Peak, resident
from ._report import erased_by_asked, object_by_style, report
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
    "Point",
    "Report",
    "Sampling",
    "Score",
    "Verdict",
    "benchmark",
    "best",
    "check_place",
    "draw",
    "erased_by_asked",
    "evaluate",
    "evaluators",
    "find",
    "frontier",
    "grid",
    "heat_map",
    "import_rows",
    "judges",
    "leaderboard",
    "mean",
    "object_by_style",
    "paired",
    "plan_of",
    "read_table",
    "report",
    "resident",
    "rows_of",
    "sampling",
    "save_image",
    "table",
    "write_all",
]
