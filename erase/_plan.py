"""What an erasing run would take, before anything heavy is loaded: memory, time, bytes; and what would make it fit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..pipelines import Backbone, Few, Loading, Scale, as_offloaded, blueprint, check_offload, unpacked, values_in
from ..prompts import Concept, InputError
from ._erase import check_loop, chosen, prepared
from ._machine import MB, Machine
from ._method import Method, Task, name_of, settings_of
from ._needs import Needs, Planned, Sheet, Stage
from ._present import Present, loaded
from ._speed import Speed, measured
from ._train import Loop

MARGIN = 0.1
"""A setting fits if its estimate and this share of it do."""
CONTEXT = 500 * MB
"""What CUDA itself takes of a GPU: an assumption."""
RUNTIME = 900 * MB
"""What the process and its libraries take of a computer's memory before a model is loaded. Measured likewise."""
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Part:
    """A stage of a run as it was worked out.

    Attributes:
        name: of the stage.
        memory: bytes by what they are, "activations" among them, at the stage's highest point; the weights not.
        seconds: of the whole stage, all its repeats.
        weights: bytes of weights on the device meanwhile: all, or with `--offload` those of what computes.
    """

    name: str
    memory: Mapping[str, int]
    seconds: float
    weights: int

    @property
    def peak(self) -> int:
        """Bytes at its highest point, the weights not counted."""
        return sum(self.memory.values())

    @property
    def whole(self) -> int:
        """Bytes at its highest point, weights and gaps counted."""
        return self.weights + int(self.peak * (1 + GAPS))


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        method: its name.
        settings: its settings.
        model: what it would be run on.
        family: of the model.
        device: where.
        dtype: precision of the weights.
        quantize: what weights were read into few bits by, and
        offload: how those that do not compute wait elsewhere; "none" both where nothing was said.
        weights: bytes of the loaded components, by name, wherever they are.
        parts: the run's stages, in order.
        base: bytes that the process and its libraries, or CUDA, take anyway.
        workspace: bytes that kernels take for a moment.
        learns: how many numbers learn.
        parameters: how many the denoiser has.
        files: bytes of what is written into the eraser's folder, by file.
        work: bytes in the work folder at most, while it runs.
        speed: what the times follow from.
        draws: bytes at the highest point of drawing one image afterwards, the weights not counted.
        drawing: the same, everything counted.
    """

    method: str
    settings: Mapping[str, Any]
    model: str
    family: str
    device: str
    dtype: str
    quantize: str
    offload: str
    weights: Mapping[str, int]
    parts: tuple[Part, ...]
    base: int
    workspace: int
    learns: int
    parameters: int
    files: Mapping[str, int]
    work: int
    speed: Speed
    draws: int
    drawing: int

    @property
    def extra(self) -> int:
        """Bytes at the run's highest point beside the weights that are there then."""
        return self.highest.whole - self.highest.weights + self.workspace

    @property
    def memory(self) -> int:
        """Bytes at its highest point, everything counted."""
        return self.base + self.highest.whole + self.workspace

    @property
    def highest(self) -> Part:
        """The stage that needs most."""
        return max(self.parts, key=lambda p: p.whole)

    @property
    def waiting(self) -> int:
        """Bytes of the computer's own memory in which weights wait for their turn; 0 without `--offload`."""
        return 0 if self.offload == "none" else sum(self.weights.values())

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(p.seconds for p in self.parts)

    @property
    def written(self) -> int:
        """Bytes of the eraser's weights."""
        return sum(self.files.values())

    def fits(self, memory: int) -> bool:
        """Whether so many bytes are enough, with a margin of a tenth."""
        return self.memory * (1 + MARGIN) <= memory

    def to_json(self) -> dict[str, Any]:
        """As plain values, the sums among them."""
        sums = {"memory": self.memory, "extra": self.extra, "waiting": self.waiting}
        sums |= {"seconds": self.seconds, "written": self.written}  # type: ignore[dict-item]
        return {**sums, "highest": self.highest.name, **asdict(self)}


@dataclass(frozen=True)
class Ask:
    """A run that is thought of: all that an estimate follows from."""

    tool: Method
    task: Task
    loop: Loop = field(default_factory=Loop)
    machine: Machine = field(default_factory=Machine)


class Planner:
    """Estimates runs on one model, and remembers what it has counted.

    Args:
        model: a bundled name, a diffusers folder (its weights may be missing) or a Hub id; only configs are read.
        call: more arguments of every stock call, such as `height` and `width`.
        how: revision, variant and config, as `load` takes them. Quantisation and offloading are the machine's, and what
            else is in it is not counted.

    Raises:
        InputError: see `blueprint`.
    """

    def __init__(
        self, model: str | os.PathLike[str], *, call: Mapping[str, Any] | None = None, how: Loading | None = None
    ) -> None:
        self.model, self.call, self.how = os.fspath(model), call, how or Loading()
        self._blueprints: dict[tuple[str, str | None, str], Backbone] = {}
        self._scales: dict[tuple[Any, ...], Scale] = {}
        self._speeds: dict[tuple[str, torch.dtype], Speed] = {}

    def blueprint(self, machine: Machine) -> Backbone:
        """The model on that machine, without weights.

        Raises:
            InputError: see `blueprint`.
        """
        how = replace(self.how, quantize=machine.quantize, offload=machine.offload)
        check_offload(machine.place, how)
        key = (machine.place, machine.dtype, machine.quantize)
        if key not in self._blueprints:
            self._blueprints[key] = blueprint(
                self.model, dtype=machine.dtype, device=machine.place, call=self.call, how=how
            )
        return self._blueprints[key]

    def estimate(self, ask: Ask) -> Estimate:
        """What that run would take.

        Raises:
            InputError: a method that does not say, or that refuses the model or these settings.
        """
        tool, loop, machine = ask.tool, ask.loop, ask.machine
        if not isinstance(tool, Planned):
            raise InputError(f"{name_of(tool)} does not say what it needs: give it `needs`, see docs/memory.md")
        backbone = self.blueprint(machine)
        with as_offloaded(backbone.denoiser, machine.offload):
            needs = tool.needs(Sheet(backbone, ask.task, loop))
        half = HALVES.get(loop.mixed(backbone.dtype, machine.place))
        scale = self._scale(backbone, loop.gradient_checkpointing, half)
        speed = self._speed(machine, half or backbone.dtype)
        weights = loaded(backbone, embeddings=machine.embeddings)
        there = Present.of(backbone, weights, machine.offload)
        encoding = _encoding(backbone, needs, speed, there)
        parts = [] if machine.embeddings else [encoding]
        if machine.offload == "model" and trained(tool) and backbone.component != "unet" and there.texts:
            # asked when the denoiser is there already, the stock call encodes an empty prompt
            parts.append(Part("sizes and times", dict(needs.stages[0].held), 0.0, there.both))
        parts += [_part(s, scale, speed, machine=machine, there=there) for s in needs.stages]
        if loop.validate_every:
            parts.append(self._validation(ask, needs, scale=scale, speed=speed, there=there))
        largest = max(values_in(p) for p in backbone.denoiser.parameters()) * backbone.dtype.itemsize
        drawn, decoded = scale.weigh(2).peak, scale.decode()
        base = RUNTIME if machine.host else CONTEXT
        # convolutions and matrix products on CPUs bring weights and what they read into an order of their own
        workspace = WORKSPACE[0] + WORKSPACE[1] * largest if machine.host else 0
        drawing = max(there.texts, there.denoiser + drawn, there.decoder + decoded)
        return Estimate(
            method=name_of(tool),
            settings=settings_of(tool),
            model=backbone.name,
            family=backbone.family,
            device=machine.place,
            dtype=str(backbone.dtype).removeprefix("torch."),
            quantize=machine.quantize,
            offload=machine.offload,
            weights=weights,
            parts=tuple(parts),
            base=base,
            workspace=workspace,
            learns=needs.learns,
            parameters=sum(values_in(p) for p in backbone.denoiser.parameters()),
            files=dict(needs.files),
            work=needs.work if loop.work is not None else 0,
            speed=speed,
            draws=max(drawn, decoded),
            drawing=base + drawing + workspace,
        )

    def _scale(self, backbone: Backbone, checkpointing: bool, half: torch.dtype | None) -> Scale:
        key = (id(backbone), checkpointing, half)
        if key not in self._scales:
            self._scales[key] = Scale(backbone, checkpointing=checkpointing, half=half)
        return self._scales[key]

    def _speed(self, machine: Machine, dtype: torch.dtype) -> Speed:
        if machine.speed is not None:
            return machine.speed
        if machine.flops is not None:
            return Speed.rated(machine.flops)
        key = (machine.place, dtype)
        if key not in self._speeds:
            self._speeds[key] = measured(machine.place, dtype)
        return self._speeds[key]

    def _validation(self, ask: Ask, needs: Needs, *, scale: Scale, speed: Speed, there: Present) -> Part:
        """Drawing the validation images of a run."""
        n = len(ask.loop.validate) or len(ask.task.concepts) + min(2, len(ask.task.preserve))
        steps = int(getattr(ask.tool, "steps", 1))
        sheets = steps // ask.loop.validate_every + 2
        last = max(needs.stages, key=lambda s: s.repeats)
        drawn = scale.weigh(2 * n)
        memory = {**last.held, **(last.host if ask.machine.host else {})}
        turns = ((there.both, 0), (there.denoiser, drawn.peak), (there.decoder, scale.decode(n)))
        weights, memory["activations"] = max(turns, key=sum)
        return Part(
            "validation", memory, 20 * sheets * speed.seconds(drawn.flops, drawn.steps, drawn.attention), weights
        )


WORKSPACE = (30 * MB, 5)
"""What kernels take for a moment on a CPU: bytes, and times the largest weight. Fitted, see docs/memory.md."""
GAPS = 0.05
"""What the allocator cannot use again, as a share of what the run holds at its highest point. Fitted likewise."""


def networks(backbone: Backbone) -> list[tuple[str, nn.Module]]:
    """The networks of a pipeline by their names."""
    return [(n, m) for n, m in backbone.pipe.components.items() if isinstance(m, nn.Module)]


def _part(stage: Stage, scale: Scale, speed: Speed, *, machine: Machine, there: Present) -> Part:
    """A stage's highest point and time."""
    highest, seconds = stage.peak, speed.seconds(stage.flops)
    for call in stage.calls:
        one = scale.weigh(call.rows, call.learns, again=stage.again and call.learns is not None)
        under = sum(scale.weigh(rows, learns).held for rows, learns in call.under)
        highest = max(highest, one.peak + under)
        seconds += call.times * speed.seconds(one.flops, one.steps, one.attention, one.attention_backward)
    memory = {**stage.held, **(stage.host if machine.host else stage.device)}
    if highest:
        memory["activations"] = highest
    weights = {"denoiser": there.denoiser, "texts": there.texts, "both": there.both}[stage.runs]
    return Part(stage.name, memory, stage.repeats * seconds, weights)


def _encoding(backbone: Backbone, needs: Needs, speed: Speed, there: Present) -> Part:
    """Encoding the prompts: two operations for each weight and token, the states of the layers, and the largest weight
    in few bits made whole.
    """
    longest = max((s[1] for s in _states(backbone)), default=77)  # of several encoders' states, one beside another
    flops, largest, whole = 0.0, 0, 0
    for name, net in networks(backbone):
        if name.startswith("text_encoder"):
            tokens = min(longest, getattr(net.config, "max_position_embeddings", longest))
            words = {id(m) for m in net.modules() if isinstance(m, nn.Embedding)}
            tables = sum(p.numel() for m in net.modules() if id(m) in words for p in m.parameters())
            flops += 2.0 * (sum(p.numel() for p in net.parameters()) - tables) * tokens * needs.prompts
            wide = max((m.out_features for m in net.modules() if isinstance(m, nn.Linear)), default=0)
            largest = max(largest, tokens * wide * next(net.parameters()).element_size())
            whole = max([whole, *(unpacked(p.how, p) for p in net.parameters() if isinstance(p, Few))])
    memory = {"activations": 3 * min(needs.prompts, 64) * largest + whole}
    return Part("prompts", memory, speed.seconds(flops), there.texts)


def _states(backbone: Backbone) -> list[tuple[int, ...]]:
    found = backbone.encode(["a"]).kwargs.values()
    return [tuple(v.shape) for v in found if isinstance(v, torch.Tensor) and v.ndim == 3]


def plan(
    concepts: str | Concept | Sequence[str | Concept],
    model: str | os.PathLike[str],
    *,
    method: str | tuple[str, Mapping[str, Any]] | Method = "uce",
    preserve: Sequence[str] | None = None,
    loop: Loop | None = None,
    machine: Machine | None = None,
) -> Estimate:
    """What `erase` of these concepts would take, from the model's configs alone.

    Args:
        concepts: as `erase` takes them.
        model: a bundled name, a diffusers folder (its weights may be missing) or a Hub id.
        method: as `erase` takes it.
        preserve: as `erase` takes it.
        loop: how a trained method would run.
        machine: on what, and how the pipeline would be loaded.

    Raises:
        InputError: what `erase` would refuse, or a method that does not say what it needs.
    """
    planner, where = Planner(model), machine or Machine()
    return planner.estimate(asked(planner, concepts, method=method, preserve=preserve, loop=loop, machine=where))


def asked(
    planner: Planner,
    concepts: str | Concept | Sequence[str | Concept],
    *,
    method: str | tuple[str, Mapping[str, Any]] | Method,
    preserve: Sequence[str] | None,
    loop: Loop | None,
    machine: Machine,
) -> Ask:
    """The run that `erase` would make of the same arguments.

    Raises:
        InputError: what `erase` would refuse of them.
    """
    backbone = planner.blueprint(machine)
    task, tool = Task(*prepared(concepts, backbone, preserve)), chosen(method, backbone)
    if loop is not None and not trained(tool):
        check_loop(tool, loop)
    return Ask(tool, task, loop or Loop(checkpoint_every=0), machine)


def trained(tool: Method) -> bool:
    """Whether a method is trained step by step, which its settings count; else it is a closed form."""
    return hasattr(tool, "steps")
