"""The trainer of score distillation: a teacher, a fake score and a generator, three states of one network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pipelines import LATENTS, Backbone, Drawing, check_trainable, distilled, draw_in
from ..prompts import InputError
from ..prompts import load as prompt_set
from . import _files as files
from ._delta import Delta
from ._finetune import Finetune, everyday, flat, pick, relabelled, together, unnamed
from ._lora import Factors, Lora
from ._method import Task
from ._needs import NUMBER, Call, Needs, Sheet, Stage, adam_bytes, delta_files, lora_files, roots, saves
from ._scores import Asked, View, fake_score_loss, onward, predict, sid_loss, through
from ._student import Student, check_dense
from ._train import KEPT, Diverged, Session, optimiser_state, restore_optimiser

PATIENCE = 5
"""Steps in a row with a gradient that is not finite, before a run is given up."""
FAR = 30.0
"""Root mean square of drawn latents, which have about unit variance, at which a run is given up."""


@dataclass(frozen=True)
class Distil(Finetune):
    """Settings of score distillation, forgetting or not."""

    lr_fake: float = field(default=3e-6, metadata={"help": "learning rate of the fake score (> 0)"})
    momentum: float = field(
        default=0.0, metadata={"help": "both Adams' decay of the first moment (from 0 to below 1; as published 0)"}
    )
    alpha: float = field(default=1.0, metadata={"help": "the generator loss's alpha (a number)"})
    retain: float = field(default=1.0, metadata={"help": "weight of retain prompts in the generator's loss (>= 0)"})
    forget: float = field(
        default=1.0,
        metadata={"help": "weight of the concepts' prompts there; 0: plain distillation, they are retained as well"},
    )
    retain_fake: float = field(default=1.0, metadata={"help": "weight of retain prompts in the fake score's (>= 0)"})
    forget_fake: float = field(default=1.0, metadata={"help": "weight of the concepts' prompts there (>= 0)"})
    k1: float = field(default=1.0, metadata={"help": "guidance of the fake score while it learns (1: off)"})
    k2: float = field(default=1.0, metadata={"help": "guidance of the fake score in the generator's loss (k2 = k3)"})
    k4: float = field(default=1.0, metadata={"help": "guidance of the teacher there (1: off)"})
    drop: float = field(default=0.1, metadata={"help": "share of empty prompts while the fake score learns (0 to 1)"})
    t_init: int = field(default=625, metadata={"help": "time of the first step; flows start at pure noise (0 to 999)"})
    t_min: int = field(default=20, metadata={"help": "earliest time at which scores are compared (0 to 999)"})
    t_max: int = field(default=980, metadata={"help": "latest time at which they are (t-min to 999)"})
    draw_steps: int = field(
        default=1, metadata={"help": "steps in which the generator draws; 1 as published, more: any of them is trained"}
    )
    ema: float = field(default=0.0, metadata={"help": "decay of the generator's averaged weights (0: the last ones)"})
    start: str | None = field(
        default=None,
        metadata={
            "help": "what the generator starts from: a LoRA (file or folder) of one that draws in few steps, or base. "
            "Default: the one that comes with the model, else base",
            "folder": True,
        },
    )
    retain_prompts: str | None = field(
        default=None,
        metadata={
            "help": "retain prompts: a named set or CSV file. Default: sentences about what is preserved, else about "
            "everyday things",
            "folder": True,
        },
    )
    compose: bool = field(
        default=False, metadata={"help": "also prompts that name an object and a style (concepts beside preserved)"}
    )
    warmup: int = field(
        default=0,
        metadata={
            "help": "steps before the others in which the generator learns the teacher's own drawings from the same "
            "noise (regression; not in the paper; 0: none)"
        },
    )
    warmup_lr: float = field(default=1e-4, metadata={"help": "learning rate of the warm-up (> 0)"})
    images: int = field(default=256, metadata={"help": "drawings for the warm-up, in latent space (>= 1)"})
    sampler_steps: int = field(default=20, metadata={"help": "sampler steps with which they are drawn (>= 1)"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("images", "sampler_steps", "draw_steps"):
            if not getattr(self, name) >= 1:
                raise InputError(f"{name.replace('_', '-')}: expected at least 1, got {getattr(self, name)}")
        for name in ("lr_fake", "warmup_lr"):
            if not 0 < getattr(self, name) <= 10:
                got = getattr(self, name)
                raise InputError(f"{name.replace('_', '-')}: expected a number above 0 and at most 10, got {got}")
        for name in ("retain", "forget", "retain_fake", "forget_fake", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                got = getattr(self, name)
                raise InputError(f"{name.replace('_', '-')}: expected a number of at least 0, got {got}")
        for name in ("alpha", "k1", "k2", "k4"):
            if not abs(getattr(self, name)) < math.inf:
                raise InputError(f"{name}: expected a number, got {getattr(self, name)}")
        for name in ("momentum", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: expected a number from 0 to below 1, got {getattr(self, name)}")
        if not 0 <= self.drop <= 1:
            raise InputError(f"drop: expected a share from 0 to 1, got {self.drop}")
        if not 0 <= self.t_min <= self.t_max <= 999:
            raise InputError(f"t-min, t-max: expected 0 <= t-min <= t-max <= 999, got {self.t_min}, {self.t_max}")
        if not 0 <= self.t_init <= 999:
            raise InputError(f"t-init: expected 0 to 999, got {self.t_init}")
        if not (self.retain or self.forget):
            raise InputError("retain, forget: with both 0 nothing is learnt; leave one of them out")

    @property
    def to_preserve(self) -> str:
        """What would let preserved names have a part: nothing where they have one."""
        if self.compose or (not self.retain_prompts and (self.retain or self.retain_fake or self.warmup)):
            return ""
        return "leave out --retain-prompts" if self.retain_prompts else "add --retain 1"

    def passes(self, sheet: Sheet, rows: int) -> tuple[Call, ...]:
        """The generator's, then the fake score's; then teacher and fake score looked through, and the generator's own
        backward pass.
        """
        many = rows * (2 if self.forget and sheet.task.concepts else 1)
        fake, taught, asked = (many * sheet.sides(k) for k in (self.k1, self.k4, self.k2))
        drawn = (many, self.learns)
        once = sheet.whole and not self.dense
        steps = Call(many, times=(self.draw_steps - 1) / 2)
        return (
            *((steps,) if self.draw_steps > 1 else ()),
            *(() if once else (Call(many), steps) if self.draw_steps > 1 else (Call(many),)),
            Call(fake, learns=self.learns, under=(drawn,) if once else ()),
            Call(asked, learns=LATENTS, under=(drawn, (taught, LATENTS))),
            Call(taught, learns=LATENTS, under=(drawn,)),
            Call(many, learns=self.learns),
        )

    def before(self, sheet: Sheet) -> tuple[Stage, ...]:
        """Drawings for the warm-up."""
        if not self.warmup:
            return ()
        drawn = sheet.images(self.images, 4 * self.batch, steps=self.sampler_steps, guidance=self.k4)
        return (replace(drawn, held={"images": 2 * drawn.held["images"]}),)

    def needs(self, sheet: Sheet) -> Needs:
        """Two students, two Adams, and an average where one is kept."""
        check_trainable(sheet.backbone.denoiser, f"cannot train {sheet.backbone.name}", dense=self.dense)
        check_dense(sheet.backbone, dense=self.dense)
        rows, count = sheet.parts(self.batch)
        shapes, before, prompts = self.learns.shapes(sheet.backbone), self.before(sheet), self.prompted(sheet.task)
        n, steps = self.learns.count(sheet.backbone), self.warmup + self.steps
        held = {"prompts": sheet.encoded(prompts), "students": 2 * NUMBER * n}
        held |= {"average": NUMBER * n} if self.ema else {}
        held |= {k: v for b in before for k, v in b.held.items()}
        adam = adam_bytes(sheet.loop, [math.prod(s) for s in shapes.values()])
        moments, gradients = {"moments": 2 * adam}, {"gradients": NUMBER * n}
        part = adam if self.steps == 1 else 2 * adam  # the generator's come after its first pass
        learning = {**held, "moments": part, **({} if sheet.whole else gradients)}
        calls = tuple(replace(c, times=c.times * count) for c in self.passes(sheet, rows))
        stages = [replace(b, held={**held, **b.held}) for b in before]
        if self.warmup:
            warm = Call(rows, times=count, learns=self.learns)
            stages.append(Stage("warm-up", (warm,), learning, repeats=self.warmup, again=not sheet.whole))
        stages.append(Stage("step", calls, learning, repeats=self.steps, again=not sheet.whole))
        update = {**held, **moments, **gradients}
        stages.append(Stage("update", (), update, device=roots(sheet.loop, NUMBER * n), repeats=2 * steps))
        if kept := saves(sheet.loop, steps):
            copy = {"copy for the checkpoint": NUMBER * n * (7 if self.ema else 6)}
            stages.append(Stage("checkpoint", (), {**held, **moments}, copy, repeats=kept))
        stages.append(Stage("result", (), {**held, **moments}, {"result": NUMBER * n}))
        files = delta_files(shapes) if self.dense else lora_files(shapes)
        return Needs(tuple(stages), 2 * n, prompts, files, (KEPT + 1) * 6 * NUMBER * n * bool(kept))


class Distiller:
    """A `Trainer` of two students: the generator and the fake score."""

    def __init__(self, settings: Distil, backbone: Backbone, task: Task) -> None:
        if backbone.drawing is not None:
            raise InputError(
                f"{backbone.name} draws in a few steps and has no scores to teach: erase from the model it was "
                "distilled from; --start names the generator to begin with"
            )
        self.settings, self.backbone, self.task = settings, backbone, task
        self.steps = settings.warmup + settings.steps
        self.drawing: Drawing | None = backbone.few(settings.draw_steps, settings.t_init)
        self.forgets = bool(settings.forget and task.concepts)
        self._times, self._open, self._bad = self.drawing.times, ExitStack(), {"fake": 0, "generator": 0}
        self.pool: dict[str, Tensor] = {}

    # ------------------------------------------------------------ students and prompts

    def start(self, session: Session) -> None:
        s, backbone, self.session = self.settings, self.backbone, session
        first, begun = torch.Generator().manual_seed(self.task.seed), self._begun()
        rank = 0 if s.dense else max(s.rank, *(len(a) for a, _ in begun.values()), 1)
        self.fake = Student(backbone, s.train, rank=0 if s.dense else s.rank, generator=first, label="erasers-score")
        self._open.callback(self.fake.close)
        self.generator = Student(backbone, s.train, rank=rank, generator=first, label="erasers-generator")
        self._open.callback(self.generator.close)
        self.generator.begin(begun)
        self.average = (
            {n: p.detach().to(backbone.device, copy=True) for n, p in self._generator_weights().items()}
            if s.ema
            else {}
        )
        self.adams = {
            name: session.adam(student.parameters.values(), lr=lr, betas=(s.momentum, 0.999))
            for name, student, lr in (("fake", self.fake, s.lr_fake), ("generator", self.generator, s.lr))
        }
        with torch.no_grad(), backbone.using(None):
            self.null = backbone.unconditional(1)
            self.encode()

    def _begun(self) -> Factors:
        """The LoRA from which the generator starts.

        Raises:
            InputError: it is none, or not for this network.
        """
        given = self.settings.start
        place = distilled(self.backbone.name) if given is None else None if given == "base" else Path(given)
        if place is None:
            return {}
        factors = Lora.read(place / files.LORA_FILE if place.is_dir() else place)[0].factors
        held = self.backbone.values("all")
        for name, (a, b) in factors.items():
            there = held.get(f"{name}.weight")
            if there is None or tuple(there.shape) != (len(b), *a.shape[1:]):
                raise InputError(f"start: {place} is not for {self.backbone.name}: it changes {name}")
        return factors

    def encode(self) -> None:
        """Encode every prompt once: the retained ones; the concepts' and, of the same number, their anchors'."""
        s, backbone, task = self.settings, self.backbone, self.task
        gone = task.concepts if self.forgets else ()
        stay = task.preserve if self.forgets else (*task.preserve, *task.concepts)
        if s.retain_prompts:
            texts = unnamed([p.text for p in prompt_set(s.retain_prompts)], gone)
        else:
            texts = flat([s.sentences(c) for c in stay])
            if s.compose:
                texts += together([c for c in stay if c.kind == "object"], stay, synonyms=not gone)
        texts = list(dict.fromkeys(texts)) or everyday(backbone, gone)
        self.kept = backbone.encode(texts)
        pairs = [p for c in gone for p in zip(s.sentences(c), s.sentences(c, c.anchor), strict=True)]
        if s.compose:
            pairs += relabelled(gone, stay, synonyms=s.synonyms)
        if pairs:
            self.concept, self.anchor = (backbone.encode(list(side)) for side in zip(*pairs, strict=True))

    # ------------------------------------------------------------ the loop's verbs

    def setup(self, rng: torch.Generator) -> None:
        """The teacher's drawings for the warm-up."""
        s, backbone = self.settings, self.backbone
        if not s.warmup:
            return
        prompt = pick(s.images, len(self.kept), rng)
        noise = torch.randn(s.images, *backbone.latent_shape, generator=rng)
        parts = []
        with backbone.using(None), self.session.autocast():
            for rows in torch.arange(s.images).split(4 * s.batch):
                stop = torch.full((len(rows),), s.sampler_steps)
                how: dict[str, Any] = {"steps": s.sampler_steps, "guidance": s.k4, "null": self.null}
                parts.append(backbone.partial(self.kept[prompt[rows]], stop, noise[rows], **how)[0].float())
        self.pool = {"prompt": prompt, "noise": noise, "latent": torch.cat(parts)}

    def draw(self, rng: torch.Generator) -> dict[str, Tensor]:
        """The draws of one step, on the CPU; the second half of the rows forgets, if anything does."""
        s, shape = self.settings, self.backbone.latent_shape
        n = s.batch * (2 if self.forgets else 1)
        draws = {"kept": pick(s.batch, len(self.kept), rng)}
        draws |= {"concept": pick(s.batch, len(self.concept), rng)} if self.forgets else {}
        draws["z"] = torch.randn(n, *shape, generator=rng)
        for side in ("fake", "generator"):
            draws[f"{side} t"] = torch.randint(s.t_min, s.t_max + 1, (n,), generator=rng)
            draws[f"{side} eps"] = torch.randn(n, *shape, generator=rng)
        draws["dropped"] = torch.rand(n, generator=rng) < s.drop
        draws["stop"] = pick(1, s.draw_steps, rng)
        return draws

    def step(self, k: int, rng: torch.Generator) -> Mapping[str, float]:
        s = self.settings
        warm, generator = k < s.warmup, self.adams["generator"]
        if k == s.warmup:
            _inner(generator).state.clear()  # moments of another loss
        left = (1 - k / s.warmup) if warm else 1 - (k - s.warmup) / s.steps if s.decay else 1.0
        for group in self.adams["fake"].param_groups:
            group["lr"] = s.lr_fake * left
        for group in generator.param_groups:
            group["lr"] = (s.warmup_lr if warm else s.lr) * left
            group["betas"] = (0.9 if warm else s.momentum, 0.999)
        logs = self._regress(rng) if warm else self._distil(self.draw(rng))
        if s.ema:
            for n, p in self._generator_weights().items():
                self.average[n].lerp_(p.detach(), 1 - min(s.ema, (1 + k) / (10 + k)))
        return logs

    def _regress(self, rng: torch.Generator) -> dict[str, float]:
        """A step of the warm-up: mean square between the generator's drawings and the teacher's of the same noise."""
        n, total, device = self.settings.batch, 0.0, self.backbone.device
        row = pick(n, len(self.pool["prompt"]), rng)
        for part in self.session.parts(n):
            mine = row[part]
            truth = self.pool["latent"][mine.to(self.pool["latent"].device)].to(device)
            with self.session.autocast(), self.generator.on():
                x_g = self._drawn(self.kept[self.pool["prompt"][mine]], self.pool["noise"][mine], self._times)
            loss = (x_g - truth).square().mean() * (part.stop - part.start) / n
            with self.generator.on():
                self.session.backward(loss)
            total += loss.item()
        norm = self._update("generator", self.generator)
        return {"loss": self.session.sum(total), "gradient": norm}

    def _distil(self, draws: Mapping[str, Tensor]) -> dict[str, float]:
        """One step of the fake score, then one of the generator, on the same drawings where they need not be made anew:
        dense weights change under them, and with several parts memory comes first.
        """
        s, session = self.settings, self.session
        parts, times = session.parts(s.batch), self._times[: int(draws["stop"]) + 1]
        batches = [Batch.of(self, draws, part) for part in parts]
        once = len(batches) == 1 and not s.dense
        fake = made = size = 0.0
        x_g = torch.empty(0)
        for batch in batches:
            with torch.set_grad_enabled(once), session.autocast(), self.generator.on():
                x_g = self._drawn(batch.cond, batch.z, times)
            loss = self._fake_loss(batch, x_g.detach())
            with self.fake.on():
                session.backward(loss)
            fake += loss.item() / x_g[0].numel()
            size += float(x_g.detach().square().mean()) * len(batch.z) / len(draws["z"])
        logs = {"loss": session.sum(fake), "sample": math.sqrt(session.sum(size))}
        self._check(logs["sample"])
        logs["fake gradient"] = self._update("fake", self.fake)
        for batch in batches:
            if not once:
                with session.autocast(), self.generator.on():
                    x_g = self._drawn(batch.cond, batch.z, times)
            value, gradient = self._pull(batch, x_g.detach())
            with self.generator.on():
                session.backward((x_g * gradient).sum())
            made += value.item()
        logs["gradient"] = self._update("generator", self.generator)
        return {**logs, "generator": session.sum(made)}

    # ------------------------------------------------------------ the three networks

    def _drawn(self, cond: Any, z: Tensor, times: tuple[float, ...]) -> Tensor:  # noqa: ANN401
        """What the generator makes of unit noise, [B, ...], with gradients to its last step of these only."""
        backbone = self.backbone
        x, cond = z.to(backbone.device), backbone.guided(cond, 1.0)
        whole = [self._at(t, len(x)) for t in times]
        for k, t in enumerate(whole):
            last = k == len(whole) - 1
            with torch.set_grad_enabled(last and torch.is_grad_enabled()):
                x0 = backbone.x0(x, t, backbone.denoise(x, t, cond).float())
                x = x0 if last else onward(backbone, x, x0, t=t, to=whole[k + 1])
        return x

    def _at(self, t: float, n: int) -> Tensor:
        return torch.full((n,), t, device=self.backbone.device)

    def _fake_loss(self, batch: Batch, x_g: Tensor) -> Tensor:
        s, backbone = self.settings, self.backbone
        t, eps = batch.fake_t, batch.fake_eps
        x_t, target = backbone.noise(x_g, t, eps), backbone.target(x_g, eps, t)
        with self.session.autocast(), self.fake.on():
            out = predict(backbone, x_t, t, Asked(batch.learnt, self.null, s.k1))
        return (batch.weight(s.retain_fake, s.forget_fake) * fake_score_loss(out, target)).sum()

    def _pull(self, batch: Batch, x_g: Tensor) -> tuple[Tensor, Tensor]:
        """The generator's loss and its gradient for what it drew."""
        s, backbone, t = self.settings, self.backbone, batch.generator_t

        def view(cond: Any, guidance: float, acting: Callable[[], AbstractContextManager[None]]) -> View:  # noqa: ANN401
            def clean(x_t: Tensor) -> Tensor:
                with self.session.autocast():
                    return backbone.x0(x_t, t, predict(backbone, x_t, t, Asked(cond, self.null, guidance)))

            @contextmanager
            def state() -> Iterator[None]:
                with self.fake.frozen(), acting():
                    yield

            return View(clean, state)

        weight = batch.weight(s.retain, s.forget)
        return through(
            x_g,
            lambda x: backbone.noise(x, t, batch.generator_eps),
            phi=view(batch.taught, s.k4, self.fake.teacher),
            psi=view(batch.cond, s.k2, self.fake.on),
            loss=lambda x, phi, psi: (weight * sid_loss(x, phi, psi, s.alpha)).sum(),
        )

    # ------------------------------------------------------------ watching

    def _update(self, name: str, student: Student) -> float:
        """A step of one optimiser. Numbers in the gradient that are not finite count as 0, but not for long.

        Raises:
            Diverged: they came in too many steps in a row.
        """
        grads = [p.grad for p in student.parameters.values() if p.grad is not None]
        bad = float(not all(bool(g.isfinite().all()) for g in grads))
        if self.session.accelerator.mixed_precision != "fp16":  # whose scaler leaves such steps out
            for g in grads if bad else ():
                g.nan_to_num_(0.0, 0.0, 0.0)
            self._bad[name] = self._bad[name] + 1 if self.session.sum(bad) else 0
            if self._bad[name] > PATIENCE:
                raise Diverged(f"the {name}'s gradient was not finite {self._bad[name]} times in a row")
        with student.on():
            return self.session.update(self.adams[name], self.settings.clip)

    def _check(self, size: float) -> None:
        if not size <= FAR:
            raise Diverged(f"the drawings' root mean square is {size:.3g}, more than {FAR:g}")

    def _generator_weights(self) -> dict[str, Tensor]:
        with self.generator.on():
            return {n: p.data for n, p in self.generator.parameters.items()}

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the generator's weights are their average, if one is kept."""
        now = self._generator_weights() if self.average else {}
        held = {n: p.clone() for n, p in now.items()}
        for n, p in now.items():
            p.copy_(self.average[n])
        try:
            yield
        finally:
            for n, p in now.items():
                p.copy_(held[n])

    # ------------------------------------------------------------ state

    def state(self) -> dict[str, Tensor]:
        out = {f"pool/{n}": v for n, v in self.pool.items()}
        out |= {f"bad/{n}": torch.tensor(v) for n, v in self._bad.items()}
        out |= {f"average/{n}": v.detach().to("cpu", copy=True) for n, v in self.average.items()}
        for name, student in (("fake", self.fake), ("generator", self.generator)):
            out |= {f"{name}/{n}": v for n, v in student.state().items()}
            out |= optimiser_state(self.adams[name], list(student.parameters), prefix=f"adam-{name}")
        return out

    def restore(self, state: Mapping[str, Tensor]) -> None:
        def part(head: str) -> dict[str, Tensor]:
            return {n.removeprefix(f"{head}/"): v for n, v in state.items() if n.startswith(f"{head}/")}

        self.pool, self._bad = part("pool"), {n: int(v) for n, v in part("bad").items()}
        for n, v in part("average").items():
            self.average[n].copy_(v)
        for name, student in (("fake", self.fake), ("generator", self.generator)):
            student.restore(part(name))
            restore_optimiser(self.adams[name], list(student.parameters), state=state, prefix=f"adam-{name}")

    @contextmanager
    def showing(self) -> Iterator[None]:
        with self._averaged(), self.generator.on(), self._scheduler():
            yield

    @contextmanager
    def _scheduler(self) -> Iterator[None]:
        undo = draw_in(self.backbone.pipe, self.drawing) if self.drawing is not None else None
        try:
            yield
        finally:
            if undo is not None:
                undo()

    def payload(self) -> Factors | Delta:
        with self._averaged():
            return self.generator.payload()

    def close(self) -> None:
        self._open.close()


class ScoreKeeper(Distiller):
    """The same training, of which the fake score is kept: an ordinary model of many steps."""

    def __init__(self, settings: Distil, backbone: Backbone, task: Task) -> None:
        super().__init__(settings, backbone, task)
        self.drawing = None

    @contextmanager
    def showing(self) -> Iterator[None]:
        with self.fake.on():
            yield

    def payload(self) -> Factors | Delta:
        return self.fake.payload()


def _inner(optimiser: Any) -> torch.optim.Optimizer:  # noqa: ANN401
    return getattr(optimiser, "optimizer", optimiser)


@dataclass(frozen=True)
class Batch:
    """Some rows of a step's draws, on the device: retained prompts first, then as many of the concepts'.

    Attributes:
        cond: the prompts, as generator and fake score are asked in the generator's loss.
        learnt: the same with some of them empty, as the fake score learns them.
        taught: the same as the teacher is asked: the anchors in the concepts' place.
        z, fake_t, fake_eps, generator_t, generator_eps: noise and times, one row for each prompt.
        kept: how many are retained.
        batch: how many are in the whole batch of all processes.
    """

    cond: Any
    learnt: Any
    taught: Any
    z: Tensor
    fake_t: Tensor
    fake_eps: Tensor
    generator_t: Tensor
    generator_eps: Tensor
    kept: int
    batch: int

    @classmethod
    def of(cls, trainer: Distiller, draws: Mapping[str, Tensor], part: slice) -> Batch:
        """These rows of each half."""
        n, device = trainer.settings.batch, trainer.backbone.device
        rows = torch.arange(n)[part]
        index = torch.cat([rows, rows + n]) if trainer.forgets else rows
        cond = taught = trainer.kept[draws["kept"][rows]]
        if trainer.forgets:
            mine = draws["concept"][rows]
            cond, taught = cond + trainer.concept[mine], taught + trainer.anchor[mine]
        table = trainer.null + cond
        learnt = table[torch.where(draws["dropped"][index], 0, torch.arange(1, len(index) + 1))]
        z, fake_t, fake_eps, generator_t, generator_eps = (
            draws[k][index].to(device) for k in ("z", "fake t", "fake eps", "generator t", "generator eps")
        )
        return cls(cond, learnt, taught, z, fake_t, fake_eps, generator_t, generator_eps, len(rows), n)

    def weight(self, retain: float, forget: float) -> Tensor:
        """Each row's share of a loss, [B]: the mean over retained prompts times their weight, plus the concepts'."""
        more = len(self.z) - self.kept
        values = [retain / self.batch] * self.kept + [forget / self.batch] * more
        return torch.tensor(values, device=self.z.device)
