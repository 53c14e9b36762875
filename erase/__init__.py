"""Methods and erasers. A file here without a leading underscore is a method, and its name is its public name."""

from ._below import check_below, made_on_top, warn_alone
from ._contract import CHECKS
from ._delta import Change, Delta
from ._erase import concept, default_preserve, erase, solve
from ._eraser import Attached, Eraser
from ._export import LAYOUTS
from ._files import CONFIG_FILE, check_target, write_folder, write_text
from ._finetune import Finetune, Finetuner, pick
from ._fit import Fit, fit
from ._hyper import Hyper, written_norms
from ._inspect import coverage, describe
from ._lora import Factors, Lora
from ._machine import Machine, parse_bytes
from ._method import (
    Method,
    Option,
    Task,
    configure,
    find,
    methods,
    name_of,
    options,
    settings_of,
    suited,
    to_preserve,
)
from ._needs import Call, Needs, Planned, Sheet, Stage
from ._overlap import overlap
from ._payload import Payload, tensors
from ._pictures import KINDS as PICTURE_KINDS
from ._pictures import Filed, filed
from ._plan import Ask, Estimate, Planner, asked, plan
from ._recipe import Recipe
from ._remember import remember
from ._saliency import Mask
from ._speed import Speed
from ._student import Student
from ._train import Diverged, Loop, Session, Trainer, checkpoints, main_process, train

__all__ = [
    "CHECKS",
    "CONFIG_FILE",
    "LAYOUTS",
    "PICTURE_KINDS",
    "Ask",
    "Attached",
    "Call",
    "Change",
    "Delta",
    "Diverged",
    "Eraser",
    "Estimate",
    "Factors",
    "Filed",
    "Finetune",
    "Finetuner",
    "Fit",
    "Hyper",
    "Loop",
    "Lora",
    "Machine",
    "Mask",
    "Method",
    "Needs",
    "Option",
    "Payload",
    "Planned",
    "Planner",
    "Recipe",
    "Session",
    "Sheet",
    "Speed",
    "Stage",
    "Student",
    "Task",
    "Trainer",
    "asked",
    "check_below",
    "check_target",
    "checkpoints",
    "concept",
    "configure",
    "coverage",
    "default_preserve",
    "describe",
    "erase",
    "filed",
    "find",
    "fit",
    "made_on_top",
    "main_process",
    "methods",
    "name_of",
    "options",
    "overlap",
    "parse_bytes",
    "pick",
    "plan",
    "remember",
    "settings_of",
    "solve",
    "suited",
    "tensors",
    "to_preserve",
    "train",
    "warn_alone",
    "write_folder",
    "write_text",
    "written_norms",
]
