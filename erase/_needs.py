"""What a method needs of a machine: the protocol between methods and `plan`.

A method has one more verb for it, `needs(sheet) -> Needs`. Those derived from `Finetune` inherit it and say which
passes of the denoiser a step makes (`passes`), and what comes before (`before`); others write it out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from torch import Tensor

from ..pipelines import Backbone, Learns, check_trainable
from . import _files as files
from ._kohya import needs_kohya
from ._student import check_dense
from ._train import KEPT, Loop

if TYPE_CHECKING:
    from ._method import Task

NUMBER = 4
"""Bytes of a float32, which all that learns is in."""


@dataclass(frozen=True)
class Call:
    """Passes of the denoiser.

    Attributes:
        rows: latents in one, both sides of guidance counted.
        times: how often; may be a mean.
        learns: what gets gradients; None: nothing.
        under: other passes whose graphs wait meanwhile for their backward pass: rows, and what learns there.
    """

    rows: int
    times: float = 1.0
    learns: Learns | None = None
    under: tuple[tuple[int, Learns], ...] = ()


@dataclass(frozen=True)
class Stage:
    """A part of a run, by its name.

    Attributes:
        calls: passes of the denoiser in one repeat.
        held: bytes there all the while beside the weights, by what they are.
        host: likewise in the computer's own memory, whatever the device.
        device: likewise on a device that is not the computer, whose Adam takes all tensors at once.
        repeats: how often it comes.
        peak: bytes of work that is no pass of the denoiser, at once.
        flops: operations of such work, in one repeat.
        again: gradients of the calls before are kept, and in `held`.
        runs: which networks are on the device meanwhile with `--offload`: the denoiser, which computes or learns; the
            text encoders; or the one while the other is called.
    """

    name: str
    calls: tuple[Call, ...] = ()
    held: Mapping[str, int] = field(default_factory=dict)
    host: Mapping[str, int] = field(default_factory=dict)
    device: Mapping[str, int] = field(default_factory=dict)
    repeats: float = 1.0
    peak: int = 0
    flops: float = 0.0
    again: bool = False
    runs: Literal["denoiser", "texts", "both"] = "denoiser"


@dataclass(frozen=True)
class Needs:
    """Everything that a run asks for beside the loaded pipeline.

    Attributes:
        stages: its parts, in order.
        learns: how many numbers learn.
        prompts: how many are encoded.
        files: bytes of what the eraser's folder holds, by file.
        work: bytes of what lies in the work folder at most.
    """

    stages: tuple[Stage, ...]
    learns: int
    prompts: int
    files: Mapping[str, int]
    work: int = 0


@dataclass(frozen=True)
class Sheet:
    """What a method may ask when it says what it needs.

    Attributes:
        backbone: a blueprint: shapes of layers, parameters, latents and conditions, and no numbers.
        task: what is to be done.
        loop: how it would be run.
    """

    backbone: Backbone
    task: Task
    loop: Loop

    def parts(self, batch: int) -> tuple[int, float]:
        """Rows of the largest part of a batch, and how many such parts come to a batch."""
        rows = math.ceil(batch / min(batch, self.loop.accumulate))
        return rows, batch / rows

    @property
    def whole(self) -> bool:
        """Whether a step is one backward pass."""
        return self.loop.accumulate == 1

    def sides(self, guidance: float) -> int:
        """Rows for each latent under that guidance: two, but one where it is off or goes in as a number."""
        one = self.backbone.encode(["a"])
        return 1 if guidance == 1.0 or self.backbone.guided(one, guidance) is not one else 2

    def walk(self, rows: int, steps: int, guidance: float) -> Call:
        """Partial denoising of some latents to a random stop among so many steps."""
        return Call(rows * self.sides(guidance), times=(steps - 1) / 2)

    def images(self, n: int, batch: int, *, steps: int, guidance: float) -> Stage:
        """Drawing clean latents, in batches."""
        call = Call(batch * self.sides(guidance), times=steps * n / batch)
        return Stage("images", (call,), {"images": self.latents(n)})

    def encoded(self, prompts: int) -> int:
        """Bytes of the conditions of so many prompts."""
        return prompts * size(self.backbone.encode(["a"]).kwargs)

    def latents(self, n: int) -> int:
        """Bytes of so many latents in float32."""
        return NUMBER * n * math.prod(self.backbone.latent_shape)


@runtime_checkable
class Planned(Protocol):
    """A method that says what it needs."""

    def needs(self, sheet: Sheet) -> Needs:
        """What a run with these settings asks for."""
        ...


def size(value: object) -> int:
    """Bytes of the tensors in a nested value."""
    if isinstance(value, Mapping):
        return sum(size(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return sum(size(v) for v in value)
    return value.nbytes if isinstance(value, Tensor) else 0


def safetensors_size(shapes: Mapping[str, tuple[int, ...]], width: int = NUMBER, *, note: int = 0) -> int:
    """Bytes of a safetensors file of these tensors: eight, a JSON header padded to eight, and the numbers.

    Args:
        shapes: of each tensor.
        width: bytes of a number.
        note: bytes of the record in the header.
    """
    start, entries = 0, {}
    for name, shape in shapes.items():
        end = start + width * math.prod(shape)
        entries[name], start = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}, end
    header = len(json.dumps(entries, separators=(",", ":"))) + note
    return 8 + math.ceil(header / 8) * 8 + start


def lora_files(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Files of a LoRA with these factors: diffusers' own, and for UNets kohya's. Both hold every pair at the largest
    rank.
    """
    rank = max((s[0] for n, s in shapes.items() if n.endswith("lora_A.weight")), default=1)
    padded = {n: (rank, *s[1:]) if n.endswith("lora_A.weight") else (s[0], rank) for n, s in shapes.items()}
    names = [n.removesuffix(".lora_A.weight") for n in padded if n.endswith("lora_A.weight")]
    note = 1500 + sum(len(n) + 8 for n in names)
    out = {files.LORA_FILE: safetensors_size(padded, note=note)}
    if names and needs_kohya(names):
        alphas: dict[str, tuple[int, ...]] = {f"{n}.alpha": () for n in names}
        out[files.KOHYA_FILE] = safetensors_size({**padded, **alphas}, note=note)
    return out


def delta_files(shapes: Mapping[str, tuple[int, ...]], share: float = 1.0) -> dict[str, int]:
    """The file of a delta: the new values of a share of the weights, and one bit for each."""
    total = sum(math.prod(s) for s in shapes.values())
    bits = sum(math.ceil(math.prod(s) / 8) for s in shapes.values())
    small = sum(8 * len(s) + 4 + 4 * (len(n) + 80) + len(n) + 8 for n, s in shapes.items())
    return {files.DELTA_FILE: int(NUMBER * share * total) + bits + small + 1500}


def one_student(
    sheet: Sheet,
    learns: Learns,
    *,
    steps: int,
    step: Callable[[dict[str, int]], Stage],
    before: tuple[Stage, ...] = (),
    prompts: int = 1,
) -> Needs:
    """The needs of one student by one Adam, which keeps two moments of every number.

    Args:
        sheet: of the run.
        learns: the student.
        steps: of the optimiser.
        step: from what is held, the stage of one step.
        before: stages before the first step.
        prompts: how many are encoded.
    """
    check_trainable(sheet.backbone.denoiser, f"cannot train {sheet.backbone.name}", dense=not learns.rank)
    check_dense(sheet.backbone, dense=not learns.rank)
    shapes = learns.shapes(sheet.backbone)
    sizes = [math.prod(s) for s in shapes.values()]
    n = sum(sizes)
    always = {"prompts": sheet.encoded(prompts)} | {k: v for b in before for k, v in b.held.items() if k in KEEP}
    student, moments, gradients = NUMBER * n, adam_bytes(sheet.loop, sizes), NUMBER * n
    held = {**always, "student": student}
    # Adam makes its moments in its first step
    learning = {**held, **({"moments": moments} if steps > 1 else {})}
    learning |= {} if sheet.whole else {"gradients": gradients}
    update = {**held, "moments": moments, "gradients": gradients}
    stages = [*(_also(b, held) for b in before), step(learning)]
    stages += [Stage("update", (), update, device=roots(sheet.loop, student), repeats=steps)]
    if checkpoints := saves(sheet.loop, steps):
        copy = {"copy for the checkpoint": student + moments}
        stages.append(Stage("checkpoint", (), {**held, "moments": moments}, copy, repeats=checkpoints))
    stages.append(Stage("result", (), {**held, "moments": moments}, {"result": student}))
    named = lora_files(shapes) if learns.rank else delta_files(shapes)
    return Needs(tuple(stages), n, prompts, named, (KEPT + 1) * (student + moments) * bool(checkpoints))


ROOTS = "square roots in Adam"
KEEP = ("images", "pool")
"""Of what stages before the first step hold, what stays to the end."""


def _also(stage: Stage, held: Mapping[str, int]) -> Stage:
    return replace(stage, held={**held, **stage.held})


def adam_bytes(loop: Loop, sizes: Iterable[int]) -> int:
    """Bytes of the two moments that the optimiser keeps of every number that learns. In 8 bits: a byte each, and a
    float32 for each block of 256; of tensors below 4096 numbers in full (bitsandbytes).

    Args:
        loop: names the optimiser.
        sizes: numbers in each tensor that learns.
    """
    if loop.optimizer == "adam":
        return 2 * NUMBER * sum(sizes)
    return sum(2 * (n + NUMBER * math.ceil(n / 256)) if n >= 4096 else 2 * NUMBER * n for n in sizes)


def roots(loop: Loop, size: int) -> dict[str, int]:
    """What Adam makes of all tensors at once on a device that is not the computer; in 8 bits it takes one by one."""
    return {ROOTS: size} if loop.optimizer == "adam" else {}


def saves(loop: Loop, steps: int) -> int:
    """How many checkpoints a run writes."""
    every = loop.checkpoint_every if loop.work is not None else 0
    return math.ceil(steps / every) if every else 0
