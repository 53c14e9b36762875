"""Methods and erasers. A file here without a leading underscore is a method, and its name is its public name."""

from ._contract import CHECKS
from ._delta import Change, Delta
from ._erase import concept, default_preserve, erase, solve
from ._eraser import Attached, Eraser
from ._export import LAYOUTS
from ._files import CONFIG_FILE, check_target, write_folder, write_text
from ._finetune import Finetune, Finetuner, pick
from ._hyper import Hyper, written_norms
from ._inspect import coverage, describe
from ._lora import Factors, Lora
from ._method import Method, Option, Task, configure, find, methods, name_of, options, settings_of, suited
from ._overlap import overlap
from ._payload import Payload
from ._pictures import KINDS as PICTURE_KINDS
from ._pictures import Filed, filed
from ._recipe import Recipe
from ._saliency import Mask
from ._student import Student
from ._train import Diverged, Loop, Session, Trainer, checkpoints, main_process, train

__all__ = [
    "CHECKS",
    "CONFIG_FILE",
    "LAYOUTS",
    "PICTURE_KINDS",
    "Attached",
    "Change",
    "Delta",
    "Diverged",
    "Eraser",
    "Factors",
    "Filed",
    "Finetune",
    "Finetuner",
    "Hyper",
    "Loop",
    "Lora",
    "Mask",
    "Method",
    "Option",
    "Payload",
    "Recipe",
    "Session",
    "Student",
    "Task",
    "Trainer",
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
    "main_process",
    "methods",
    "name_of",
    "options",
    "overlap",
    "pick",
    "settings_of",
    "solve",
    "suited",
    "train",
    "write_folder",
    "write_text",
    "written_norms",
]
