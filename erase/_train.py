"""The one loop. It owns what every trained method shares: processes, precision, progress, checkpoints, trackers,
validation images, divergence and the seeds of each step. It owns nothing of any method.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import GeneralTracker
from accelerate.utils import AutocastKwargs, broadcast
from safetensors import SafetensorError
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor
from torchvision.utils import make_grid
from tqdm import tqdm

from ..pipelines import Backbone, Drawing, step_generator
from ..prompts import InputError, unknown
from . import _files as files
from ._delta import Delta
from ._hyper import Hyper
from ._lora import Factors

Precision = Literal["auto", "no", "fp16", "bf16"]
Track = Literal["tensorboard", "wandb"]
Optimizer = Literal["adam", "adam8bit"]
CHECKPOINT = "checkpoint-{:06d}.safetensors"
MARK = ".training"
"""Marks a work folder as ours: nothing is ever deleted in another."""
KEPT = 2
REDUCE = 2**24
"""Gradients cross between processes in pieces of this many numbers."""


class Diverged(InputError):
    """A run whose loss left all bounds; its last good checkpoint is kept."""


@dataclass(frozen=True)
class Loop:
    """How a trained method runs. Apart from `mixed_precision` and `optimizer` nothing here changes what it learns.

    Attributes:
        work: folder for checkpoints, the log and validation images; None keeps nothing.
        resume: go on from the last checkpoint in `work`, if there is one.
        restart: throw away the checkpoints of an unfinished run in `work`.
        checkpoint_every: steps between checkpoints; 0 is never.
        validate_every: steps between validation images; 0 is never. Step 0, the unerased control, is drawn too.
        validate: what to draw then; by default each concept and two preserved ones.
        track: trackers to log to, "tensorboard" and "wandb"; their files go under `work`.
        mixed_precision: "no", "fp16" (GPU only) or "bf16"; "auto" is "fp16" where the base is float16 on a GPU, whose
            gradients vanish otherwise, and "no" elsewhere.
        accumulate: parts in which each batch is computed; less memory, the same result up to rounding.
        gradient_checkpointing: compute activations twice; less memory, more time.
        optimizer: "adam", or "adam8bit" by bitsandbytes: moments in 8 bits, of parameters from 4096 numbers on.
        divergence: stop when the loss exceeds this many times the median of its first steps, ten at most; 0
            never stops.

    Raises:
        InputError: a value out of range, trackers or validation images without a `work` folder.
    """

    work: Path | None = None
    resume: bool = False
    restart: bool = False
    checkpoint_every: int = 100
    validate_every: int = 0
    validate: tuple[str, ...] = ()
    track: tuple[Track, ...] = ()
    mixed_precision: Precision = "auto"
    accumulate: int = 1
    gradient_checkpointing: bool = False
    optimizer: Optimizer = "adam"
    divergence: float = 1000.0

    def __post_init__(self) -> None:
        if self.work is not None:
            object.__setattr__(self, "work", Path(self.work))
        for name, least in (("checkpoint_every", 0), ("validate_every", 0), ("accumulate", 1), ("divergence", 0)):
            if not getattr(self, name) >= least:
                got = getattr(self, name)
                raise InputError(f"{name.replace('_', '-')}: expected a number of at least {least}, got {got}")
        if self.mixed_precision not in get_args(Precision):
            raise unknown("--mixed-precision", self.mixed_precision, get_args(Precision))
        if self.optimizer not in get_args(Optimizer):
            raise unknown("--optimizer", self.optimizer, get_args(Optimizer))
        for tracker in self.track:
            if tracker not in get_args(Track):
                raise unknown("tracker", tracker, get_args(Track))
        if self.work is None and (self.track or self.validate_every or self.resume):
            raise InputError("trackers, validation images and resuming need a folder: give Loop a `work` folder")
        if self.resume and self.restart:
            raise InputError("--resume goes on with a run and --restart throws it away: leave one of them out")
        if self.validate and not self.validate_every:
            raise InputError("--validate says what to draw: say how often with --validate-every")

    def precision(self, backbone: Backbone) -> str:
        """The mixed precision that a run on this backbone uses: "no", "fp16" or "bf16"."""
        return self.mixed(backbone.dtype, backbone.device.type)

    def mixed(self, dtype: torch.dtype, device: str) -> str:
        """The mixed precision of a run with weights in that precision, on a device that need not be here.

        Raises:
            InputError: it was asked for, and this device cannot.
        """
        if self.mixed_precision == "fp16" and device.startswith("cpu"):
            raise InputError("--mixed-precision fp16 needs a GPU: use bf16 or no")
        if self.mixed_precision != "auto":
            return self.mixed_precision
        return "fp16" if dtype == torch.float16 and device.startswith("cuda") else "no"


@runtime_checkable
class Trainer(Protocol):
    """What a trained method hands to the loop.

    The loop calls `start`, then `setup` (a fresh run) or `restore` (a resumed one), then `step` for each k, then
    `payload`; `close` in the end, whatever happened. `showing` lets the pipeline draw as the payload would.
    Draw from `rng` for the whole batch and compute the parts that `Session.parts` gives: then the result depends on
    neither the number of processes nor on `accumulate`. `drawing` says how the payload draws, where it is a generator
    of few steps; None: as the base does.
    """

    steps: int
    drawing: Drawing | None

    def start(self, session: Session) -> None:
        """Build students and optimisers."""
        ...

    def setup(self, rng: torch.Generator) -> None:
        """A pre-pass, if the method has one; what it finds belongs into `state`."""
        ...

    def step(self, k: int, rng: torch.Generator) -> Mapping[str, float]:
        """Step k of the optimisers; figures for the log, `loss` among them, the same in every process."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take a state back."""
        ...

    def showing(self) -> AbstractContextManager[None]:
        """Inside, the pipeline draws with what has been learnt so far."""
        ...

    def payload(self) -> Factors | Delta | Hyper:
        """The result."""
        ...

    def close(self) -> None:
        """Leave the backbone as it was."""
        ...


class Session:
    """What the loop gives to a trainer: this process's parts of a batch, backward passes and updates."""

    def __init__(self, backbone: Backbone, loop: Loop) -> None:
        precision, kind = loop.precision(backbone), backbone.device.type
        if PartialState._shared_state and PartialState().num_processes == 1 and PartialState().device.type != kind:
            AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run was on another device
        elif AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
            AcceleratorState._reset_state()
        try:
            self.accelerator = Accelerator(
                cpu=kind == "cpu",
                mixed_precision=precision,
                # teacher and student are the same parameters with other values, which a cache of casts would mix up
                kwargs_handlers=[AutocastKwargs(cache_enabled=False)],
            )
        except (ValueError, ImportError) as error:
            raise InputError(f"--mixed-precision {precision} does not work here: {error}") from error
        if self.accelerator.device.type != kind:
            raise InputError(
                f"{backbone.name} is on {kind}, this process trains on {self.accelerator.device}: see --device"
            )
        self.main = self.accelerator.is_main_process
        self.work = loop.work
        self.accumulate = loop.accumulate
        self.optimizer = loop.optimizer
        self._half = precision == "fp16"
        if loop.optimizer == "adam8bit":
            _adam_8bit()  # refuse it before anything heavy is done

    @property
    def whole(self) -> bool:
        """Whether a step is one backward pass in one process, so that its gradients are complete as they arrive."""
        return self.accelerator.num_processes == 1 and self.accumulate == 1

    def share(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first process's tensors in every process."""
        if self.accelerator.num_processes == 1:
            return dict(tensors)
        device = self.accelerator.device
        return {n: broadcast(t.to(device)).to(t.device) for n, t in tensors.items()}

    def parts(self, n: int) -> list[slice]:
        """This process's share of a batch of n, in the parts to be computed one by one; none of them is empty.

        Raises:
            InputError: fewer rows than processes.
        """
        if n < self.accelerator.num_processes:
            count = self.accelerator.num_processes
            raise InputError(f"batch: expected at least one latent for each of the {count} processes, got {n}")
        pieces = self.accelerator.num_processes * self.accumulate
        cuts = [n * k // pieces for k in range(pieces + 1)]
        first = self.accelerator.process_index * self.accumulate
        mine = range(first, first + self.accumulate)
        return [slice(cuts[k], cuts[k + 1]) for k in mine if cuts[k] < cuts[k + 1]]

    def optimiser(self, optimiser: torch.optim.Optimizer) -> Any:  # noqa: ANN401
        """The optimiser, ready for mixed precision."""
        return self.accelerator.prepare_optimizer(optimiser)

    def adam(
        self,
        parameters: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> Any:  # noqa: ANN401
        """Adam as the loop asks for it, with moments in full or in 8 bits, ready for mixed precision."""
        kind = torch.optim.Adam if self.optimizer == "adam" else _adam_8bit()
        return self.optimiser(kind(parameters, lr=lr, betas=betas))

    def autocast(self) -> AbstractContextManager[None]:
        """The forward pass's precision."""
        return self.accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients. Call it outside `Backbone.using(None)`: checkpointed layers are computed again here."""
        self.accelerator.backward(loss)

    def gradients(self, loss: Tensor, of: list[Tensor]) -> list[Tensor]:
        """Gradients of a loss with respect to some tensors, in this process; the graph stays for `backward`. Scaled on
        the way as `backward` does, so that half precision does not lose them.
        """
        scaler = self.accelerator.scaler
        by = scaler.get_scale() if scaler is not None else 1.0
        return [g / by for g in torch.autograd.grad(by * loss, of, retain_graph=True)]

    def sum(self, value: float) -> float:
        """The sum over processes."""
        if self.accelerator.num_processes == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(total, "sum"))

    def update(self, optimiser: Any, clip: float = 0.0) -> float:  # noqa: ANN401
        """Sum the gradients over processes, clip their norm (0: no clipping), step, and clear them. Returns the norm.

        With several optimisers, finish the one's backward passes and its update before the other's begin: a gradient
        scaler changes between updates.

        Raises:
            Diverged: the norm is not finite (with fp16 the step is left out instead, as its scaler does).
        """
        params = [p for group in optimiser.param_groups for p in group["params"]]
        for p in params:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self.reduce([p.grad for p in params])
        if self._half:
            self.accelerator.unscale_gradients(optimiser)
        norm = float(torch.nn.utils.clip_grad_norm_(params, clip or math.inf))
        if not math.isfinite(norm) and not self._half:
            raise Diverged(f"the gradient is {norm}")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return norm

    def reduce(self, grads: list[Tensor]) -> None:
        """Replace tensors by their sums over processes, in place."""
        while grads and self.accelerator.num_processes > 1:
            part: list[Tensor] = []
            size = 0
            while grads and (not part or size + grads[0].numel() <= REDUCE):
                part.append(grads.pop(0))
                size += part[-1].numel()
            flat = self.accelerator.reduce(torch.cat([g.flatten() for g in part]), "sum")
            for g, piece in zip(part, flat.split([g.numel() for g in part]), strict=True):
                g.copy_(piece.view_as(g))


def main_process() -> bool:
    """Whether this process writes the files: the first of those that `torchrun` or `accelerate launch` started, or the
    only one.
    """
    return bool(PartialState(cpu=not torch.cuda.is_available()).is_main_process)


def train(
    trainer: Trainer, backbone: Backbone, *, loop: Loop, identity: Mapping[str, Any], seed: int
) -> Factors | Delta | Hyper:
    """Run a trainer to its end and return its payload.

    Args:
        trainer: fresh, from a method.
        backbone: which it trains on.
        loop: how to run.
        identity: what a checkpoint must have been made with to be resumed, as JSON values.
        seed: of every draw; step k draws from a generator seeded with (seed, k).

    Raises:
        InputError: a checkpoint of another run, a tracker that is not installed.
        Diverged: the loss left all bounds.
    """
    session = Session(backbone, loop)
    journal = _Journal(loop, identity, session)
    try:
        journal.open()
        with backbone.checkpointed() if loop.gradient_checkpointing else nullcontext():
            trainer.start(session)
            backbone.wake()  # an optimiser's state goes where the weights are
            found = journal.resume(trainer.steps)
            journal.track()
            if found is None:
                trainer.setup(step_generator(seed, -1 % 1_000_003))
            else:
                trainer.restore(found)
            _steps(trainer, backbone, loop=loop, journal=journal, seed=seed)
            session.accelerator.wait_for_everyone()  # nobody may still be reading a checkpoint that is deleted next
            return trainer.payload()
    finally:
        try:
            trainer.close()
        finally:
            journal.finish()


def _steps(trainer: Trainer, backbone: Backbone, *, loop: Loop, journal: _Journal, seed: int) -> None:
    bar = tqdm(
        range(journal.step, trainer.steps),
        desc=journal.label,
        initial=journal.step,
        total=trainer.steps,
        unit="step",
        leave=False,
        disable=None if journal.main else True,
    )
    if loop.validate_every and journal.step == 0:
        journal.validate(trainer, backbone, 0)
    for k in bar:
        try:
            logs = trainer.step(k, step_generator(seed, k))
            journal.check(logs["loss"])
        except Diverged as error:
            raise Diverged(f"{journal.label} diverged at step {k + 1}: {error}; {journal.advice()}") from error
        done = k + 1
        bar.set_postfix({n: f"{v:.3g}" for n, v in logs.items()})
        journal.log(done, logs)
        last = done == trainer.steps
        if loop.validate_every and (done % loop.validate_every == 0 or last):
            journal.validate(trainer, backbone, done)
        if loop.checkpoint_every and (done % loop.checkpoint_every == 0 or last):
            journal.checkpoint(done, trainer)


class _Journal:
    """Everything a run writes and reads: checkpoints, log, trackers, validation images."""

    def __init__(self, loop: Loop, identity: Mapping[str, Any], session: Session) -> None:
        self.loop, self.session, self.main = loop, session, session.main
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.label = str(identity["method"])
        self.step, self._spent, self._clock = 0, 0.0, time.perf_counter()
        self._first: list[float] = []
        self._trackers: list[GeneralTracker] = []

    def open(self) -> None:
        """Make the work folder.

        Raises:
            InputError: it cannot be made, or holds something else.
        """
        if self.loop.work is None or not self.main:
            return
        mark = self._work / MARK
        try:
            self._work.mkdir(parents=True, exist_ok=True)
            if not mark.exists() and any(self._work.iterdir()):
                raise InputError(f"{self._work} holds files of no training run: choose an empty or a new folder")
            mark.touch()
        except OSError as error:
            raise InputError(f"cannot write {self._work}: {error.strerror or error}; choose another place") from error

    def track(self) -> None:
        """Start the trackers.

        Raises:
            InputError: one is not installed.
        """
        if self.main:
            self._trackers = [_tracker(t, self.loop, self.identity) for t in self.loop.track]

    # ------------------------------------------------------------ checkpoints

    def resume(self, steps: int) -> dict[str, Tensor] | None:
        """The state of the newest whole checkpoint within a run of so many steps, or None for a fresh run.

        Raises:
            InputError: one is there and neither `resume` nor `restart` is set, or it is of another run.
        """
        if self.loop.work is None:
            return None
        there = checkpoints(self.loop.work)
        if not self.loop.resume:
            if there and not self.loop.restart:
                raise InputError(
                    f"{self.loop.work} holds checkpoints of an unfinished run: go on with --resume, or start over with "
                    "--restart"
                )
            self.session.accelerator.wait_for_everyone()
            if self.main:
                self._clear(there)
            return None
        for path in reversed(there):
            try:
                state, header = files.read_tensors(path)
                note = json.loads(header["checkpoint"])
            except (InputError, KeyError, json.JSONDecodeError):
                continue  # a damaged one: the one before it is whole
            self._check(note["identity"], path)
            if note["step"] > steps:
                continue
            self.step, self._spent, self._first = note["step"], note["seconds"], note["first"]
            if self.session.accelerator.scaler is not None and note["scaler"]:
                self.session.accelerator.scaler.load_state_dict(note["scaler"])
            if self.main:
                self._forget_after(self.step)
            return state
        if there:
            raise InputError(
                f"no checkpoint in {self.loop.work} is whole and within {steps} steps (there: "
                f"{', '.join(p.name for p in there)}): ask for more --steps, or start over with --restart"
            )
        if self.main:
            self._forget_after(0)
        return None

    def _check(self, made_with: Mapping[str, Any], path: Path) -> None:
        for key, want in self.identity.items():
            have = made_with.get(key)
            if have == want:
                continue
            if isinstance(want, dict) and isinstance(have, dict):
                differ = sorted(k for k in want.keys() | have.keys() if want.get(k) != have.get(k))
                key, have, want = differ[0], have.get(differ[0]), want.get(differ[0])
            raise InputError(
                f"{path} is of another run: its {key} is {have!r}, asked for {want!r}; use the same, or --restart"
            )

    def _forget_after(self, step: int) -> None:
        log = self._work / "log.jsonl"
        if not log.exists():
            return
        kept = []
        for row in log.read_text().splitlines():
            try:
                kept += [row] if json.loads(row)["step"] <= step else []
            except json.JSONDecodeError:
                continue  # the kill came while it was written
        partial = log.with_name(".log.part")
        partial.write_text("".join(f"{r}\n" for r in kept))
        partial.replace(log)

    def _clear(self, there: Sequence[Path]) -> None:
        for path in (
            *there,
            *self._work.glob("*.part"),
            *self._work.glob(".*.part"),
            *self._work.glob("validation/step-*.png"),
        ):
            path.unlink()
        (self._work / "log.jsonl").unlink(missing_ok=True)
        shutil.rmtree(self._work / "tensorboard", ignore_errors=True)

    def checkpoint(self, step: int, trainer: Trainer) -> None:
        """Write a checkpoint, atomically, and keep the one before it.

        Raises:
            InputError: it cannot be written.
        """
        if self.loop.work is None or not self.main:
            return
        scaler = self.session.accelerator.scaler
        note = {
            "identity": self.identity,
            "step": step,
            "seconds": self.seconds,
            "first": self._first,
            "scaler": scaler.state_dict() if scaler is not None else {},
        }
        path = self._work / CHECKPOINT.format(step)
        try:
            files.write_tensors(path, trainer.state(), {"checkpoint": json.dumps(note)})
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write {path}: {error}; make room and go on with --resume") from error
        for old in [p for p in checkpoints(self._work) if _step(p) <= step][:-KEPT]:
            old.unlink()

    @property
    def _work(self) -> Path:
        assert self.loop.work is not None
        return self.loop.work

    @property
    def seconds(self) -> float:
        """Time spent training, earlier parts of a resumed run included."""
        return self._spent + time.perf_counter() - self._clock

    # ------------------------------------------------------------ watching

    def check(self, loss: float) -> None:
        """Stop a run that has left all bounds.

        Raises:
            Diverged: the loss is not finite, or too far above where it started.
        """
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss}")
        bound = self.loop.divergence * max(statistics.median(self._first or [abs(loss)]), 1e-6)
        if self.loop.divergence and abs(loss) > bound:
            raise Diverged(f"the loss is {loss:.3g}, more than {self.loop.divergence:g} times where it started")
        if len(self._first) < 10:
            self._first.append(abs(loss))

    def advice(self) -> str:
        """What to do after a divergence."""
        there = checkpoints(self.loop.work) if self.loop.work is not None else []
        if not there:
            return "lower --lr"
        step = _step(there[-1])
        return (
            f"the last good checkpoint is step {step} in {self.loop.work}: keep that with --resume --steps {step}, or "
            "start over with --restart and a lower --lr"
        )

    def log(self, step: int, logs: Mapping[str, float]) -> None:
        """A line in the log and a point in every tracker.

        Raises:
            InputError: it cannot be written.
        """
        if not self.main:
            return
        try:
            self._log(step, logs)
        except OSError as error:
            raise InputError(f"cannot write in {self.loop.work}: {error}; make room and go on with --resume") from error

    def _log(self, step: int, logs: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(dict(logs), step=step)
        if self.loop.work is not None:
            row = {"step": step, **{n: float(f"{v:.6g}") for n, v in logs.items()}, "seconds": round(self.seconds, 2)}
            row["processes"] = self.session.accelerator.num_processes
            with (self._work / "log.jsonl").open("a") as f:
                f.write(json.dumps(row) + "\n")

    def validate(self, trainer: Trainer, backbone: Backbone, step: int) -> None:
        """Draw the validation prompts, in the first process, into one picture.

        Raises:
            InputError: it cannot be written.
        """
        self.session.accelerator.wait_for_everyone()
        if self.main:
            prompts = list(self.loop.validate)
            few = trainer.drawing if step else None
            how = {"steps": 20} if few is None else {"steps": few.steps, "guidance": few.guidance}
            with trainer.showing() if step else backbone.using(None):
                images = backbone.draw(prompts, [0] * len(prompts), batch=len(prompts), **how)
            sheet = make_grid([to_tensor(image) for image in images], nrow=len(images), pad_value=1.0)
            folder = self._work / "validation"
            try:
                folder.mkdir(exist_ok=True)
                to_pil_image(sheet).save(folder / f"step-{step:06d}.png")
            except OSError as error:
                raise InputError(f"cannot write in {folder}: {error}; make room and go on with --resume") from error
            for tracker in self._trackers:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(
                    {"validation": (255 * sheet).byte().permute(1, 2, 0).numpy()[None]}, step=step, **layout
                )
        self.session.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Close the trackers; a folder in which nothing was written goes."""
        for tracker in self._trackers:
            tracker.finish()
        if self.loop.work is None or not self.main or not self._work.is_dir():
            return
        if [p.name for p in self._work.iterdir()] == [MARK]:
            (self._work / MARK).unlink()
            self._work.rmdir()


def _adam_8bit() -> Callable[..., torch.optim.Optimizer]:
    """Adam of bitsandbytes, its moments in blocks of 8 bits.

    Raises:
        InputError: it is not installed.
    """
    try:
        from bitsandbytes.optim import Adam8bit
    except ImportError as error:
        raise InputError(
            "--optimizer adam8bit needs bitsandbytes, which is not installed: pip install 'erasers[bitsandbytes]'"
        ) from error
    return Adam8bit


def checkpoints(work: Path) -> list[Path]:
    """The checkpoints in a work folder, oldest first."""
    return sorted(work.glob("checkpoint-*.safetensors"))


def _step(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _tracker(name: Track, loop: Loop, identity: Mapping[str, Any]) -> GeneralTracker:
    """Accelerate's tracker of that name."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    cls = LOGGER_TYPE_TO_CLASS[name]
    try:
        where = {"logging_dir" if cls.requires_logging_directory else "dir": str(loop.work)}
        tracker = cls("erasers" if name == "wandb" else "tensorboard", **where)
        tracker.start() if hasattr(tracker, "start") else None
        tracker.store_init_configuration({"settings": json.dumps(identity, ensure_ascii=False)})
    except (ImportError, NameError) as error:
        raise InputError(f"--track {name}: {name} is not installed; pip install {name}") from error
    except _errors(name) as error:
        raise InputError(f"--track {name}: it does not start: {error}") from error
    return tracker


def _errors(name: Track) -> tuple[type[Exception], ...]:
    """What a tracker that does not start raises: a broken place or setting, or its own kind of error."""
    wandb = sys.modules.get("wandb") if name == "wandb" else None
    own = () if wandb is None else (wandb.errors.Error,)
    return (OSError, RuntimeError, ValueError, *own)


# ---------------------------------------------------------------- states of optimisers


def optimiser_state(optimiser: Any, names: Sequence[str], *, prefix: str = "optimiser") -> dict[str, Tensor]:  # noqa: ANN401
    """An optimiser's moments and counters as named tensors; `names` are its parameters', in order."""
    inner = getattr(optimiser, "optimizer", optimiser)
    params = [p for group in inner.param_groups for p in group["params"]]
    return {
        f"{prefix}/{key}/{n}": torch.as_tensor(value).detach().to("cpu", copy=True)
        for n, p in zip(names, params, strict=True)
        for key, value in inner.state[p].items()
    }


def restore_optimiser(
    optimiser: Any,  # noqa: ANN401
    names: Sequence[str],
    *,
    state: Mapping[str, Tensor],
    prefix: str = "optimiser",
) -> None:
    """Take back what `optimiser_state` gave."""
    inner = getattr(optimiser, "optimizer", optimiser)
    params = dict(zip(names, (p for group in inner.param_groups for p in group["params"]), strict=True))
    for key, value in state.items():
        head, _, rest = key.partition("/")
        if head == prefix:
            kind, _, name = rest.partition("/")
            p = params[name]
            if value.ndim == 0:
                # counters stay where Adam wants them: on the CPU unless it is fused or capturable; whole ones, of
                # optimisers in 8 bits, are plain numbers
                inner.state[p][kind] = value.clone() if value.is_floating_point() else int(value)
            else:
                inner.state[p][kind] = value.to(p.device, copy=True)
