"""The student of a trained method, and its teacher: the same network with the student's weights off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..pipelines import Backbone, Group, check_trainable, check_unfused, low_rank, overlay, plug, unplug
from ..prompts import InputError
from . import _files as files
from ._delta import Change, Delta
from ._lora import Factors

LABEL = "erasers-student"


def check_dense(backbone: Backbone, *, dense: bool) -> None:
    """Refuse to train the weights themselves in half precision.

    Raises:
        InputError: they are.
    """
    if dense and backbone.dtype != torch.float32:
        raise InputError(
            f"dense training needs float32 weights, got {backbone.dtype}: load with --dtype float32 (and train "
            "with --mixed-precision bf16 if memory is short), or leave --dense out"
        )


class Student:
    """Trainable weights over a frozen network: low-rank factors, or (rank 0) the weights themselves.

    Building one freezes the network; `close` takes the student out and gives every parameter its `requires_grad` back.
    Several live on one network under labels of their own; close the last one first.

    Args:
        backbone: the network.
        group: which part of it learns.
        rank: of the factors; 0 trains the weights themselves, convolutions, norms and biases included.
        generator: of the first values: A uniform as PEFT draws it, B zero, so that the student starts as the teacher.
        only: of the group's Linears, those that get factors; all by default.
        label: its name among the network's adapters and covers.

    Raises:
        InputError: nothing to train in that group, dense training in half precision, or a LoRA fused into the network.
    """

    def __init__(
        self,
        backbone: Backbone,
        group: Group,
        *,
        rank: int,
        generator: torch.Generator,
        only: Sequence[str] | None = None,
        label: str = LABEL,
    ) -> None:
        self.backbone, self.label, self._dense, self._only = backbone, label, rank == 0, only
        self._flags = [(p, p.requires_grad) for p in backbone.parameters("all").values()]
        check_unfused(backbone.denoiser, "cannot train")
        check_trainable(backbone.denoiser, f"cannot train {backbone.name}", dense=self._dense)
        check_dense(backbone, dense=self._dense)
        targets: Mapping[str, object] = backbone.parameters(group) if self._dense else backbone.modules(group)
        if not targets:
            raise InputError(f"{backbone.name} has nothing to train in the group {group!r}")
        with ExitStack() as on_failure:
            on_failure.callback(self._restore_flags)
            self._put_in(group, rank, generator)
            on_failure.pop_all()

    def _put_in(self, group: Group, rank: int, generator: torch.Generator) -> None:
        for p, _ in self._flags:
            p.requires_grad_(False)
        backbone = self.backbone
        if self._dense:
            self.parameters: dict[str, nn.Parameter] = backbone.parameters(group)
            with backbone.using(None):  # another delta may be attached
                values = {n: p.data.clone() for n, p in self.parameters.items()}
            backbone.cover(values, self.label)
        else:
            layers = backbone.modules(group)
            factors = {n: _first(layers[n], rank, generator) for n in (layers if self._only is None else self._only)}
            self._before = plug(backbone.pipe, files.peft_keys(factors), self.label)
            self._pairs = low_rank(backbone.pipe, self.label)
            self.parameters = {
                f"{n}.{s}": p for n, pair in self._pairs.items() for s, p in zip("AB", pair, strict=True)
            }
        for p in self.parameters.values():
            if not self._dense:
                p.data = p.data.float()
            p.requires_grad_(True)

    def _restore_flags(self) -> None:
        for p, flag in self._flags:
            p.requires_grad_(flag)

    def on(self) -> AbstractContextManager[None]:
        """Inside, the student acts, and no other adapter."""
        return self.backbone.using(self.label)

    def teacher(self) -> AbstractContextManager[None]:
        """Inside, the untouched base acts. Never call the student's backward in here."""
        return self.backbone.using(None)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, none of its weights takes part in gradients."""
        flags = [(p, p.requires_grad) for p in self.parameters.values()]
        for p, _ in flags:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p, flag in flags:
                p.requires_grad_(flag)

    @torch.no_grad()
    def begin(self, factors: Factors) -> None:
        """Start from an update that was learnt already.

        Raises:
            InputError: it changes something that does not learn here, or is of a larger rank.
        """
        held = {n.removesuffix(".weight"): p for n, p in self.parameters.items()} if self._dense else self._pairs
        for name, (a, _) in factors.items():
            fits = name in held and (self._dense or len(a) <= len(self._pairs[name][0]))
            if not fits:
                raise InputError(
                    f"start: {name} (rank {len(a)}) does not learn here: choose a larger --train or --rank, or another "
                    "start"
                )
        with self.on():
            for name, (a, b) in factors.items():
                if self._dense:
                    p = self.parameters[f"{name}.weight"]
                    p.add_((b.float().flatten(1) @ a.float().flatten(1)).view_as(p).to(p.device))
                else:
                    mine, r = self._pairs[name], len(a)
                    mine[0][:r], mine[1][:, :r] = a.to(mine[0]), b.to(mine[1])

    def state(self) -> dict[str, Tensor]:
        """The student's weights."""
        with self.on():
            return {f"student/{n}": p.detach().to("cpu", copy=True) for n, p in self.parameters.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        with self.on(), torch.no_grad():
            for n, p in self.parameters.items():
                p.copy_(state[f"student/{n}"])

    def payload(self) -> Factors | Delta:
        """What was learnt."""
        if self._dense:
            over = overlay(self.backbone.denoiser)
            assert over is not None
            return Delta({n: Change.between(over.base[n], v) for n, v in over.covers[self.label].items()})
        return {n: (a.detach().cpu().clone(), b.detach().cpu().clone()) for n, (a, b) in self._pairs.items()}

    def close(self) -> None:
        """Take the student out; the network is as it was."""
        if self._dense:
            for p in self.parameters.values():
                p.grad = None
            self.backbone.uncover(self.label)
        else:
            unplug(self.backbone.pipe, self.label, self._before)
        self._restore_flags()


def _first(linear: nn.Linear, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rank = min(rank, linear.in_features, linear.out_features)
    bound = 1 / math.sqrt(linear.in_features)
    a = (2 * torch.rand(rank, linear.in_features, generator=generator) - 1) * bound
    return a, torch.zeros(linear.out_features, rank)
