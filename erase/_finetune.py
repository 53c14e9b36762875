"""What methods that train one student with one optimiser share: ESD, concept ablation and the fine-tuning controls."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..pipelines import Backbone, Condition, Drawing, Learns
from ..prompts import BOTH, CONTEXTS, EVERYDAY, Concept, InputError, fill, unknown
from ._delta import Delta
from ._lora import Factors
from ._masked import MaskedStudent
from ._method import Task
from ._needs import Call, Needs, Sheet, Stage, one_student
from ._student import Student
from ._train import Session, optimiser_state, restore_optimiser

Part = Literal["prompt", "text-kv", "cross", "self", "not-cross", "all"]


def sentences(concept: Concept, *, contexts: int, synonyms: bool, name: str | None = None) -> list[str]:
    """The first so many sentences that name a concept (or, in its place, `name`; "" gives empty texts), one after
    another for each of its names.

    Raises:
        InputError: more contexts than there are sentences for its kind.
    """
    templates = CONTEXTS[concept.kind]
    if contexts > len(templates):
        raise InputError(f"contexts: expected at most {len(templates)} for kind {concept.kind!r}, got {contexts}")
    words = concept.names if synonyms else concept.names[:1]
    return [fill(t, x=w if name is None else name) if name != "" else "" for w in words for t in templates[:contexts]]


@dataclass(frozen=True)
class Finetune:
    """Settings of every such method. A method adds its own fields, its presets and `run`."""

    train: Part = field(
        default="cross",
        metadata={
            "help": "what learns: text-kv (keys and values that read the prompt), prompt (what first acts on it, the "
            "pooled vector's layer too), cross (all cross-attention), self, not-cross (everything else), all"
        },
    )
    dense: bool = field(default=False, metadata={"help": "train the weights themselves (kind delta) instead of a LoRA"})
    rank: int = field(default=4, metadata={"help": "rank of the LoRA (>= 1; dense has none)"})
    steps: int = field(default=200, metadata={"help": "optimiser steps (>= 1)"})
    batch: int = field(default=1, metadata={"help": "latents a step, over all processes (>= 1)"})
    lr: float = field(default=1e-5, metadata={"help": "learning rate of Adam (> 0)"})
    decay: bool = field(default=False, metadata={"help": "let the learning rate fall to zero in a straight line"})
    clip: float = field(default=0.0, metadata={"help": "ceiling of the gradient's norm (0: none)"})
    contexts: int = field(default=1, metadata={"help": "sentences in which each name is trained (1 = the bare name)"})
    synonyms: bool = field(default=True, metadata={"help": "train on the concept's known synonyms too"})

    def __post_init__(self) -> None:
        if self.train not in get_args(Part):
            raise unknown("train", self.train, get_args(Part))
        for name in ("rank", "steps", "batch", "contexts"):
            if not getattr(self, name) >= 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.lr <= 10:
            raise InputError(f"lr: expected a number above 0 and at most 10, got {self.lr}")
        if not 0 <= self.clip < float("inf"):
            raise InputError(f"clip: expected a number of at least 0, got {self.clip}")

    def sentences(self, concept: Concept, name: str | None = None) -> list[str]:
        """The sentences that name a concept (or, in its place, `name`; "" gives empty texts), one after another for
        each of its names.

        Raises:
            InputError: more contexts than there are sentences for its kind.
        """
        return sentences(concept, contexts=self.contexts, synonyms=self.synonyms, name=name)

    # ------------------------------------------------------------ for planning

    @property
    def learns(self) -> Learns:
        """The student."""
        return Learns(self.train, 0 if self.dense else self.rank)

    def passes(self, sheet: Sheet, rows: int) -> tuple[Call, ...]:
        """Passes of the denoiser for so many rows of a step: one of a teacher and one that learns, unless a method says
        otherwise.
        """
        return Call(rows), Call(rows, learns=self.learns)

    def before(self, sheet: Sheet) -> tuple[Stage, ...]:
        """What comes before the first step: nothing, unless a method says otherwise."""
        return ()

    def prompted(self, task: Task) -> int:
        """How many prompts are encoded: the concepts' sentences, those of their anchors, and the empty one."""
        return 1 + 2 * sum(len(self.sentences(c)) for c in task.concepts)

    def needs(self, sheet: Sheet) -> Needs:
        """What a run with these settings asks for."""
        rows, count = sheet.parts(self.batch)

        def step(held: dict[str, int]) -> Stage:
            calls = tuple(replace(c, times=c.times * count) for c in self.passes(sheet, rows))
            return Stage("step", calls, held, repeats=self.steps, again=not sheet.whole)

        before, prompts = self.before(sheet), self.prompted(sheet.task)
        return one_student(sheet, self.learns, steps=self.steps, step=step, before=before, prompts=prompts)


class Finetuner:
    """A `Trainer` of one student by one Adam. A method says what to encode, what to draw and what the loss is."""

    drawing: Drawing | None = None

    def __init__(self, settings: Finetune, backbone: Backbone, task: Task) -> None:
        self.settings, self.backbone, self.task, self.steps = settings, backbone, task, settings.steps
        self.null: Condition
        self._student: Student | MaskedStudent | None = None
        self.optimiser: Any

    # ------------------------------------------------------------ what a method adds

    @abstractmethod
    def encode(self) -> None:
        """Encode every prompt once."""

    @abstractmethod
    def draw(self, rng: torch.Generator) -> Mapping[str, Tensor]:
        """The draws of one step, each [batch, ...], on the CPU."""

    @abstractmethod
    def loss(self, draws: Mapping[str, Tensor]) -> Tensor:
        """The mean loss over some rows of the draws, with gradients to the student."""

    def setup(self, rng: torch.Generator) -> None:
        """A pre-pass; none here."""

    # ------------------------------------------------------------ what they share

    @property
    def student(self) -> Student | MaskedStudent:
        """The student, once `start` has built it."""
        assert self._student is not None
        return self._student

    def start(self, session: Session) -> None:
        s = self.settings
        self.session = session
        first = torch.Generator().manual_seed(self.task.seed)
        self._student = Student(self.backbone, s.train, rank=0 if s.dense else s.rank, generator=first)
        self.adam(s.lr)
        with torch.no_grad(), self.student.teacher():
            self.null = self.backbone.unconditional(1)
            self.encode()

    def adam(self, lr: float) -> None:
        """The optimiser of the student's parameters."""
        self.names = list(self.student.parameters)
        self.optimiser = self.session.adam(self.student.parameters.values(), lr=lr)

    def step(self, k: int, rng: torch.Generator) -> Mapping[str, float]:
        draws, total, n = self.draw(rng), 0.0, self.settings.batch
        if self.settings.decay:
            for group in self.optimiser.param_groups:
                group["lr"] = self.settings.lr * (1 - k / self.steps)
        for part in self.session.parts(n):
            rows = {name: value[part] for name, value in draws.items()}
            share = (part.stop - part.start) / n
            with self.session.autocast():
                loss = share * self.loss(rows)
            with self.student.on():
                self.session.backward(loss)
            total += loss.item()
        with self.student.on():
            norm = self.update(k)
        return {"loss": self.session.sum(total), "gradient": norm}

    def update(self, k: int) -> float:
        """The optimiser's part of step k: the norm of the gradient."""
        return self.session.update(self.optimiser, self.settings.clip)

    def state(self) -> dict[str, Tensor]:
        return self.student.state() | optimiser_state(self.optimiser, self.names)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.student.restore(state)
        restore_optimiser(self.optimiser, self.names, state=state)

    def showing(self) -> AbstractContextManager[None]:
        return self.student.on()

    def payload(self) -> Factors | Delta:
        return self.student.payload()

    def close(self) -> None:
        if self._student is not None:
            self._student.close()


def pick(n: int, among: int, rng: torch.Generator) -> Tensor:
    """N numbers from 0 to among - 1, int64 [n]."""
    return torch.randint(among, (n,), generator=rng)


def beside(
    concepts: Sequence[Concept], others: Sequence[Concept], *, synonyms: bool
) -> Iterator[tuple[str, Concept, str, Concept]]:
    """Sentences that name an object and a style at once: a template, one of the concepts, one of its names, and one of
    the others, of the other kind. Templates are taken in turn.
    """
    n = 0
    for concept in concepts:
        for name in concept.names if synonyms else concept.names[:1]:
            for other in others:
                if {concept.kind, other.kind} == {"object", "style"}:
                    yield BOTH[n % len(BOTH)], concept, name, other
                    n += 1


def together(concepts: Sequence[Concept], others: Sequence[Concept], *, synonyms: bool) -> dict[str, str]:
    """Each such sentence, with the one that names the other concept alone."""
    return {
        fill(template, **{concept.kind: name, other.kind: other.name}): fill(CONTEXTS[other.kind][1], x=other.name)
        for template, concept, name, other in beside(concepts, others, synonyms=synonyms)
    }


def relabelled(concepts: Sequence[Concept], others: Sequence[Concept], *, synonyms: bool) -> list[tuple[str, str]]:
    """Each such sentence, with the same naming the concept's anchor (none: with the one that names the other alone)."""
    out = []
    for template, concept, name, other in beside(concepts, others, synonyms=synonyms):
        old, new = ({concept.kind: word, other.kind: other.name} for word in (name, concept.anchor))
        alone = fill(CONTEXTS[other.kind][1], x=other.name)
        out.append((fill(template, **old), fill(template, **new) if concept.anchor else alone))
    return out


def unnamed(texts: Sequence[str], concepts: Sequence[Concept]) -> list[str]:
    """The texts that name none of the concepts."""
    names = "|".join(re.escape(n) for c in concepts for n in c.names)
    return [t for t in texts if not names or not re.search(rf"\b({names})\b", t, re.IGNORECASE)]


def everyday(backbone: Backbone, concepts: Sequence[Concept]) -> list[str]:
    """What to stay with where nothing is named: everyday prompts without the concepts' names; on a Canvas pipeline,
    which knows no such things, what the empty prompt gives.
    """
    return [""] if backbone.world else unnamed(EVERYDAY, concepts)


def flat(parts: Sequence[Sequence[str]]) -> list[str]:
    """All sentences, in order."""
    return [s for part in parts for s in part]
