"""What one pass of a denoiser costs, counted on a blueprint of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ._backbone import Backbone, Group
from ._blueprint import adapted
from ._ledger import META, Ledger, to_meta
from ._signals import write_by_prompt


@dataclass(frozen=True)
class Learns:
    """What a pass has gradients for.

    Attributes:
        group: part of the network; None: only the latents that go in.
        rank: of a LoRA on its Linears; 0: the weights themselves.
        written: the LoRA is written anew for each row, as by a hypernetwork.
        share: the share of the Linears (of their numbers) that have one.
        pooled: also on the Linear that reads the pooled vector.
        at_once: gradients are used up as they arrive.
    """

    group: Group | None
    rank: int = 0
    written: bool = False
    share: float = 1.0
    pooled: bool = False
    at_once: bool = False

    def layers(self, backbone: Backbone) -> dict[str, nn.Linear]:
        """The Linears with low-rank factors."""
        if self.group is None or not self.rank:
            return {}
        found = backbone.modules(self.group)
        if self.pooled and backbone.pooled:
            found = {**found, backbone.pooled: backbone.modules("all")[backbone.pooled]}
        total, size, out = sum(m.in_features * m.out_features for m in found.values()), 0, dict[str, nn.Linear]()
        for name, m in found.items():
            if size >= self.share * total:
                break
            out[name], size = m, size + m.in_features * m.out_features
        return out

    def shapes(self, backbone: Backbone) -> dict[str, tuple[int, ...]]:
        """Shape of everything that learns: parameters by name, or both factors of each Linear."""
        if self.group is None:
            return {}
        if not self.rank:
            return {n: tuple(p.shape) for n, p in backbone.parameters(self.group).items()}
        out: dict[str, tuple[int, ...]] = {}
        for n, m in self.layers(backbone).items():
            r = min(self.rank, m.in_features, m.out_features)
            out |= {f"{n}.lora_A.weight": (r, m.in_features), f"{n}.lora_B.weight": (m.out_features, r)}
        return out

    def count(self, backbone: Backbone) -> int:
        """How many numbers learn."""
        return sum(math.prod(s) for s in self.shapes(backbone).values())


LATENTS = Learns(None)
"""Gradients for what goes in, and for no weight."""


@dataclass(frozen=True)
class Pass:
    """What a pass costs, forward and, where something learns, backward.

    Attributes:
        flops: operations of both, attention's apart.
        attention: operations of attention, forward.
        attention_backward: of attention, backward.
        peak: most bytes at once beside weights, students and optimisers; gradients as they arrive included.
        held: bytes between the two: what the backward pass needs.
        steps: how many operations of torch have a result.
    """

    flops: int
    attention: int
    attention_backward: float
    peak: int
    held: int
    steps: int


MANY = 101
"""Rows of the pass that is counted. Of every other number of rows the same tensors come and go in the same order; those
whose size this prime divides grow with the rows, and the others (casts and gradients of weights) do not.
"""


@dataclass(frozen=True)
class _Trace:
    """A pass as it was counted: operations, as in `Pass`; how many events come before the backward pass; and all
    events, bytes that came (above 0) and went, in order.
    """

    flops: int
    attention: int
    attention_backward: float
    half: int
    events: tuple[int, ...]

    @classmethod
    def of(cls, ledger: Ledger, half: int = 0) -> _Trace:
        return cls(ledger.flops, ledger.attention, ledger.attention_backward, half, tuple(ledger.events))

    def at(self, rows: int) -> Pass:
        """The same pass with so many rows in place of `MANY`."""
        sizes = np.array(self.events, dtype=np.int64)
        sizes = np.where(sizes % MANY == 0, sizes // MANY * rows, sizes)
        there = sizes.cumsum()
        held = int(there[self.half - 1]) if self.half else 0
        flops, attention = (n * rows // MANY for n in (self.flops, self.attention))
        backward = self.attention_backward * rows / MANY
        return Pass(flops, attention, backward, int(there.max(initial=0)), held, int((sizes > 0).sum()))


class Scale:
    """Counts passes of a blueprint, each kind once.

    Args:
        backbone: from `blueprint`.
        checkpointing: activations are computed twice.
        half: the precision of autocast; None: none.
    """

    def __init__(self, backbone: Backbone, *, checkpointing: bool = False, half: torch.dtype | None = None) -> None:
        self.backbone, self.checkpointing, self.half = backbone, checkpointing, half
        self._traces: dict[tuple[Learns | None, bool], _Trace] = {}
        self._decoded: dict[int, int] = {}
        self._cond = to_meta(backbone.encode(["a"]))

    def weigh(self, rows: int, learns: Learns | None = None, *, again: bool = False) -> Pass:
        """A pass of so many rows.

        Args:
            rows: latents in it, both sides of guidance counted.
            learns: what it has gradients for; None: nothing.
            again: gradients of earlier passes are there already, and count elsewhere.
        """
        if (learns, again) not in self._traces:
            self._traces[learns, again] = self._trace(MANY, learns, again)
        return self._traces[learns, again].at(rows)

    def _trace(self, rows: int, learns: Learns | None, again: bool) -> _Trace:
        backbone = self.backbone
        x = torch.empty(rows, *backbone.latent_shape, device=META)
        t, cond = torch.full((rows,), 500.0), self._cond[[0] * rows]
        if learns is None:
            with torch.no_grad(), self._ledger() as ledger:
                backbone.denoise(x, t, cond).float()
            return _Trace.of(ledger)
        kept = backbone.checkpointed() if self.checkpointing else nullcontext()
        with kept, self._learning(learns, rows, again):
            x.requires_grad_(learns.group is None)
            with torch.enable_grad(), self._ledger() as ledger:
                error = backbone.denoise(x, t, cond).float()
                half = len(ledger.events)
                loss = error.square().mean()
                del error
                loss.backward()
        return _Trace.of(ledger, half)

    def _ledger(self) -> Ledger:
        ledger = Ledger(self.half)
        everything = [*self.backbone.denoiser.parameters(), *self.backbone.denoiser.buffers()]
        ledger.keep([t for t in everything if t.is_meta])
        return ledger

    def decode(self, rows: int = 1) -> int:
        """Most bytes at once while the autoencoder makes images of so many latents."""
        if rows not in self._decoded:
            self._decoded[rows] = self._decode(rows)
        return self._decoded[rows]

    def _decode(self, rows: int) -> int:
        stock: Any = self.backbone
        z = torch.empty(rows, *self.backbone.latent_shape, device=META)
        with torch.no_grad(), stock._vae() as vae, Ledger() as ledger:
            ledger.keep([t for t in (*vae.parameters(), *vae.buffers()) if t.is_meta])
            vae.decode(stock._unpack(z.to(vae.dtype)), return_dict=False)
        return ledger.peak

    @contextmanager
    def _learning(self, learns: Learns, rows: int, again: bool) -> Iterator[None]:
        backbone = self.backbone
        with ExitStack() as stack:
            layers = learns.layers(backbone)
            if learns.written:
                pairs = {
                    n: (
                        torch.empty(rows, m.in_features, learns.rank, device=META),
                        torch.empty(rows, learns.rank, m.out_features, device=META),
                    )
                    for n, m in layers.items()
                }
                learn = [t.requires_grad_() for pair in pairs.values() for t in pair]
                writer = write_by_prompt(backbone, list(layers), lambda u: pairs, read=backbone.reads, label="plan")
                stack.callback(writer.remove)
                stack.enter_context(writer.giving(pairs))
            elif layers:
                learn = list(stack.enter_context(adapted(backbone, layers, learns.rank)))
            else:
                learn = list(backbone.parameters(learns.group).values()) if learns.group else []
            for p in learn:
                p.requires_grad_(True)
                p.grad = torch.empty_like(p) if again else None
                if learns.at_once:
                    stack.callback(p.register_post_accumulate_grad_hook(_drop).remove)
            try:
                yield
            finally:
                for p in learn:
                    p.grad = None
                    p.requires_grad_(False)


def _drop(p: torch.Tensor) -> None:
    p.grad = None
