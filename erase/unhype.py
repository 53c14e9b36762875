"""UnHype: a hypernetwork that writes the eraser for each prompt (arXiv 2602.03410).

The published trainer clears no gradient between the two backward passes of a step, so that its hypernetwork learns from
the erasing loss itself besides the imitated descent that the paper describes: `objective` tells the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from ..pipelines import Backbone
from ..prompts import InputError, unknown
from . import _published
from ._finetune import Part
from ._hypernet import Architecture
from ._method import Task
from ._needs import Needs, Sheet
from ._unhype import Training, planned

Objective = Literal["trajectory", "direct", "both"]
Signal = Literal["auto", "pooled", "last", "mean"]
Walk = Literal["base", "student"]


@dataclass(frozen=True)
class UnHype:
    """A hypernetwork that writes a LoRA for each prompt: strong for erased concepts, next to nothing for others."""

    train: Part = field(
        default="text-kv", metadata={"help": "what is written for: text-kv, cross, self, not-cross, all"}
    )
    pooled: bool = field(
        default=False,
        metadata={"help": "write for the Linear that reads the pooled text vector too, where there is one"},
    )
    architecture: Architecture = field(
        default="per-layer", metadata={"help": "per-layer, as published, or compact: one trunk, linear heads"}
    )
    rank: int = field(default=1, metadata={"help": "rank of the LoRA that is written (>= 1)"})
    hidden: int = field(default=100, metadata={"help": "width of the hidden layers (>= 1)"})
    code: int = field(default=16, metadata={"help": "numbers that the compact trunk makes of a prompt (>= 1)"})
    detect: bool = field(
        default=True, metadata={"help": "compact: start each number of the code as a detector of an erased concept"}
    )
    hold: float = field(
        default=1.0,
        metadata={"help": "with detect: weight of holding every number to its concept, beside retaining (>= 0)"},
    )
    trunk_lr: float = field(
        default=0.03, metadata={"help": "with detect: the trunk's learning rates as a share of the others' (> 0)"}
    )
    signal: Signal = field(
        default="auto", metadata={"help": "what of the prompt is read: pooled, last (text state), mean, or auto"}
    )
    standardise: bool = field(
        default=False, metadata={"help": "shift and scale the signal by its statistics over the training prompts"}
    )
    times: int = field(default=300, metadata={"help": "S, steps of virtual time (>= 1)"})
    waves: int = field(
        default=16, metadata={"help": "frequencies of virtual time that are read (>= 0); few or none for trajectory"}
    )
    objective: Objective = field(
        default="both",
        metadata={"help": "trajectory (imitate descent), direct (the erasing loss), both (published)"},
    )
    steps: int = field(default=4000, metadata={"help": "training steps (>= 1)"})
    batch: int = field(default=1, metadata={"help": "latents a step, over all processes (>= 1)"})
    lr: float = field(default=1e-3, metadata={"help": "learning rate of the removal's Adam (> 0)"})
    retain_lr: float = field(default=0.0, metadata={"help": "learning rate of the retain loss's Adam (0: the same)"})
    decay: bool = field(default=False, metadata={"help": "let both learning rates fall to zero in a straight line"})
    clip: float = field(default=0.0, metadata={"help": "ceiling of each gradient's norm (0: none)"})
    gamma: float = field(
        default=2.0, metadata={"help": "strength away from the concept: e_m - gamma (e_p - e_m) (>= 0; 0: the mapping)"}
    )
    eta: float = field(default=1e-4, metadata={"help": "learning rate of the imitated descent (> 0)"})
    remove: float = field(default=10.0, metadata={"help": "weight of the imitated descent (>= 0)"})
    retain: float = field(default=0.1, metadata={"help": "weight of writing nothing for other prompts (>= 0)"})
    retained: int = field(default=300, metadata={"help": "other prompts a step (>= 1), drawn from 8 times as many"})
    retain_times: int = field(default=1, metadata={"help": "steps of the retain loss for one of the removal's (>= 0)"})
    ends: float = field(
        default=0.0, metadata={"help": "share of steps taken at the end of virtual time, where erasers act (0 to 1)"}
    )
    contexts: int = field(default=4, metadata={"help": "sentences in which each name is trained (1 = the bare name)"})
    synonyms: bool = field(default=True, metadata={"help": "train on the concept's known synonyms too"})
    compose: int = field(
        default=0, metadata={"help": "sentences for each preserved concept that it is named beside (object, style)"}
    )
    walk: Walk = field(default="base", metadata={"help": "who draws the latents: base, or the student itself"})
    guidance: float = field(default=3.0, metadata={"help": "guidance of the partial denoising (1: off)"})
    sampler_steps: int = field(default=50, metadata={"help": "length of the partial denoising's trajectory (>= 1)"})
    pool: int = field(default=0, metadata={"help": "latents drawn once and used again; 0, as published: new each step"})
    refresh: int = field(default=0, metadata={"help": "steps after which half of the pool is drawn again (0: never)"})
    relative: float = field(
        default=0.0,
        metadata={"help": "weigh each latent by |e_p - e_m|^2 to minus this power (0 to 1; published: 0)"},
    )

    paper: ClassVar[str] = "arXiv 2602.03410"
    gives: ClassVar[str] = "hyper"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **_published.UNHYPE,
        "sd": {
            "pooled": True,
            "architecture": "compact",
            "rank": 4,
            "standardise": True,
            "objective": "direct",
            "steps": 1000,
            "batch": 4,
            "lr": 3e-4,
            "gamma": 1.0,
            "retain": 1.0,
            "ends": 1.0,
        },
        "canvas": {
            "pooled": True,  # canvas-flow has one
            "architecture": "compact",
            "rank": 4,
            "standardise": True,
            "objective": "direct",
            "steps": 200,
            "batch": 16,
            "lr": 1e-3,
            "decay": True,
            "gamma": 1.0,
            "eta": 0.2,  # eta and remove count only with another objective
            "remove": 1e6,
            "retain": 3.0,
            "ends": 1.0,
            "contexts": 6,
            "compose": 4,
            "walk": "student",
            "sampler_steps": 10,
            "pool": 256,
            "refresh": 40,
            "relative": 0.5,
        },
    }

    def __post_init__(self) -> None:
        kinds = {"train": Part, "architecture": Architecture, "signal": Signal, "objective": Objective, "walk": Walk}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise unknown(name, getattr(self, name), get_args(kind))
        least = dict.fromkeys(
            ("rank", "hidden", "code", "times", "steps", "batch", "retained", "contexts", "sampler_steps"), 1
        )
        free = ("retain_lr", "clip", "gamma", "remove", "retain", "hold", "retain_times", "compose", "pool", "refresh")
        least |= dict.fromkeys((*free, "waves"), 0)
        for name, low in least.items():
            if not low <= getattr(self, name) < float("inf"):
                got = getattr(self, name)
                raise InputError(f"{name.replace('_', '-')}: expected a number of at least {low}, got {got}")
        for name in ("lr", "eta", "trunk_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                got = getattr(self, name)
                raise InputError(f"{name.replace('_', '-')}: expected a number above 0, got {got}")
        for name in ("ends", "relative"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: expected a number from 0 to 1, got {getattr(self, name)}")
        if self.objective == "trajectory" and self.ends:
            raise InputError("ends: at the end of virtual time no step is left to imitate; use it with direct or both")

    @property
    def to_preserve(self) -> str:
        """What would let preserved names have a part: nothing where they have one."""
        if self.compose or (self.retain and self.retain_times):
            return ""
        return "add --retain-times 1" if self.retain else "add --retain 1"

    def run(self, backbone: Backbone, task: Task) -> Training:
        """What trains the hypernetwork."""
        return Training(self, backbone, task)

    def needs(self, sheet: Sheet) -> Needs:
        """Passes and memory of the hypernetwork's training."""
        return planned(self, sheet)
