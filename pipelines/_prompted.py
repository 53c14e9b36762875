"""Low-rank updates written anew for each prompt and added to Linears by hooks.

This file needs torch and the standard library only: the text of it goes into the `pipeline.py` of every eraser of this
kind, for apps without this package.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Read = Literal["pooled", "last", "mean"]
"""Where a prompt's signal is read: the pooled vector; the last text state, which in a causal encoder has seen the whole
prompt, whatever its length; or the mean of the text states, without masked and zero ones."""

Rows = Literal["all", "first", "second", "none"]
"""Which rows of a call are the conditional side of guidance."""

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""Of each layer x_L [B, in, r] and x_R [B, r, out]: row b of its input x becomes W x + (x x_L[b]) x_R[b]."""

Write = Callable[[Tensor], Pairs]
"""From the signals of some prompts, float32 [B, D], to their factors."""

POOLED = ("pooled_projections", "pooled_embeds", "text_embeds")
TEXT = ("encoder_hidden_states_t5", "encoder_hidden_states", "cap_feats")
MASKS = ("encoder_hidden_states_mask", "encoder_attention_mask", "attention_mask")
KEY = "_erasers_writers"
KEPT = 2
"""Calls of one step that are told apart: some pipelines ask for the prompt twice, in one batch with the empty one and
alone (skip-layer guidance).
"""


def unwrapped(root: nn.Module) -> nn.Module:
    """The network itself where `torch.compile` has wrapped it."""
    return getattr(root, "_orig_mod", root)


def writers(root: nn.Module) -> dict[str, Writer]:
    """What writes into this network, by label."""
    return dict(vars(unwrapped(root)).get(KEY, {}))


def by_name(root: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a network's call by name, those within `added_cond_kwargs` too."""
    names = inspect.signature(type(unwrapped(root)).forward).parameters
    call = {**dict(zip([n for n in names if n != "self"], args, strict=False)), **kwargs}
    return {**call, **(call.get("added_cond_kwargs") or {})}


def source(call: Mapping[str, Any], read: Read) -> tuple[str, Any]:
    """Name and value of the argument that a signal is read from.

    Raises:
        KeyError: the call has none.
    """
    for name in POOLED if read == "pooled" else TEXT:
        if call.get(name) is not None:
            return name, call[name]
    raise KeyError(f"the denoiser is given nothing to read as {read!r}, only {sorted(call)}")


def weights(text: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Which of the text states [B, L, D] count in a mean, float [B, L]: neither masked nor zero."""
    keep = (text != 0).any(-1)
    for name in MASKS:
        mask = call.get(name)
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= text.shape[1]:
            keep = keep & (mask[:, : text.shape[1]] > 0)  # some masks go on over the image's tokens
            break
    return keep.float()


def signal(call: Mapping[str, Any], read: Read) -> Tensor:
    """The signal of each prompt of a call, float32 [B, D]."""
    value = source(call, read)[1]
    if isinstance(value, (list, tuple)):  # one [L, D] for each prompt
        return torch.stack([v[-1].float() if read == "last" else v.float().mean(0) for v in value])
    if read == "pooled":
        return value.float()
    if read == "last":
        return value[:, -1].float()
    w = weights(value, call)
    return (value.float() * w[..., None]).sum(1) / w.sum(1, keepdim=True).clamp(min=1)


def disguise(call: Mapping[str, Any], read: Read, other: Tensor, rows: Tensor) -> dict[str, Any]:
    """What of a call changes when some rows' signal becomes another one, [D], and nothing else does: the pooled vector,
    the last state, or all states moved alike.
    """
    name, value = source(call, read)
    if isinstance(value, (list, tuple)):
        moved = list(value)
        for k in rows.nonzero().flatten().tolist():
            moved[k] = value[k].clone()
            if read == "last":
                moved[k][-1] = other.to(value[k])
            else:
                moved[k] += (other - value[k].float().mean(0)).to(value[k])
        return {name: moved}
    new = value.clone()
    other, rows = other.to(value), rows.to(value.device)
    if read == "pooled":
        new[rows] = other
    elif read == "last":
        new[rows, -1] = other
    else:
        w = weights(value, call)
        shift = (other.float() - signal(call, read))[:, None] * w[..., None]
        new[rows] = (value.float() + shift).to(value.dtype)[rows]
    if name == "text_embeds":
        return {"added_cond_kwargs": {**call["added_cond_kwargs"], name: new}}
    return {name: new}


def conditional(root: nn.Module, parts: Sequence[Tensor], n: int, free_first: bool) -> Rows:
    """Which rows of a call are conditional, as the stock pipeline that makes it has arranged them.

    Guidance in one call doubles the rows of the pipeline's own `latents`; guidance in calls of their own hands over a
    tensor of its own whose name starts with "negative". Both are read off the calling frame, because a pipeline's
    attributes are stale outside its call, its truncation of guidance is in none of them, and the network may be
    another pipeline's too. Called by nobody like that, all rows are conditional.

    Args:
        root: the network.
        parts: the text tensors it is given.
        n: rows of the call.
        free_first: whether the unconditional rows come first.
    """
    frame = sys._getframe(1)
    while frame is not None:
        names = (*frame.f_code.co_varnames, *frame.f_code.co_cellvars)
        if "latents" in names and "self" in names:
            there = frame.f_locals
            mine = getattr(there.get("self"), "__dict__", {})
            parts_of_it = (mine.get("unet"), mine.get("transformer"))
            if any(isinstance(m, nn.Module) and unwrapped(m) is unwrapped(root) for m in parts_of_it):
                free = [v for k, v in there.items() if k.startswith("negative") and isinstance(v, Tensor)]
                if all(any(p is v for v in free) for p in parts):
                    return "none"
                latents = there.get("latents")
                if isinstance(latents, Tensor) and n == 2 * len(latents):
                    return "second" if free_first else "first"
                return "all"
        frame = frame.f_back  # type: ignore[assignment]
    return "all"


def mask(rows: Rows, n: int) -> Tensor:
    """The same as booleans, [n]."""
    out = torch.full((n,), rows in ("all", "first"))
    if rows in ("first", "second"):
        out[n // 2 :] = rows == "second"
    return out


@dataclass
class Written:
    """What was written for the text of a call, and what it was written for.

    Attributes:
        rows: the conditional ones.
        scale: strength, which is in the factors.
        signal: of each prompt.
        pairs: the factors; None where they are all zero.
        parts, counts: the tensors that the signal was read from, and how often each had been changed.
        text, count: the text tensor, and the same of it; None where it cannot be known again.
        made: what the factors make of that text, by layer.
        cast: the factors in each layer's own precision and on its device, where those are others, by layer.
    """

    rows: Rows
    scale: float
    signal: Tensor
    pairs: dict[str, tuple[Tensor, Tensor]] | None
    parts: list[Tensor] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    text: Tensor | None = None
    count: int = 0
    made: dict[str, Tensor] = field(default_factory=dict)
    cast: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def known(self, parts: list[Tensor], counts: list[int]) -> bool:
        """Whether these are the tensors it was written for, unchanged since. An inference tensor does not count its
        changes, so it is never the same for sure.
        """
        same = -1 not in counts and counts == self.counts and len(parts) == len(self.parts)
        return same and all(a is b for a, b in zip(self.parts, parts, strict=True))

    def reads(self, text: object) -> None:
        """Note the text of the call at hand, and forget what was made of another one."""
        if not isinstance(text, Tensor) or text.is_inference():
            self.text, self.count = None, 0
            self.made.clear()
        elif text is not self.text or text._version != self.count:
            self.text, self.count = text, text._version
            self.made.clear()


class Writer:
    """Updates of some Linears of one network that depend on the prompt.

    A hook on the network reads the prompts' signals, lets `write` make factors of them, once for each prompt, and hooks
    on the layers add them, row by row. Nothing else of the network changes; `remove` leaves nothing behind.

    Args:
        root: the network.
        layers: what is updated, by name.
        write: what makes the factors.
        read: where the signal is.
        free_first: where guidance shares a call, whether the unconditional rows come first.
        shared: whether guidance shares a call in this family at all.
        label: under which `writers` finds it.

    Attributes:
        on: whether it acts.
        scale: strength.
        told: which rows of the next calls are conditional, where that is known.
        calls: how often `write` was called.
    """

    def __init__(
        self,
        root: nn.Module,
        layers: Mapping[str, nn.Module],
        write: Write,
        *,
        read: Read,
        free_first: bool = True,
        shared: bool = True,
        label: str = "",
    ) -> None:
        self.root, self.read, self.label = root, read, label
        self.free_first, self.shared = free_first, shared
        self.on, self.scale, self.calls = True, 1.0, 0
        self.told: Rows | None = None
        self.pipe: Any = None
        self._write = write
        self._names = [n for n in inspect.signature(type(unwrapped(root)).forward).parameters if n != "self"]
        self._given = False
        self._pairs: dict[str, tuple[Tensor, Tensor]] | None = None
        self._now: Written | None = None
        self._memory: list[Written] = []
        vars(unwrapped(root)).setdefault(KEY, {})[label] = self
        self._handles = [root.register_forward_pre_hook(self._look, with_kwargs=True)]
        self._handles += [m.register_forward_hook(self._adder(n)) for n, m in layers.items()]

    def remove(self) -> None:
        """Take every hook out."""
        for handle in self._handles:
            handle.remove()
        found = vars(unwrapped(self.root)).get(KEY, {})
        if found.get(self.label) is self:
            del found[self.label]
            if not found:
                del vars(unwrapped(self.root))[KEY]

    @contextmanager
    def giving(self, pairs: Pairs) -> Iterator[None]:
        """Inside, these factors are added, whatever the prompt; gradients flow to them. A layer computed again in a
        backward pass needs them too.
        """
        self._forget()
        self._given, self._pairs = True, dict(pairs)
        try:
            yield
        finally:
            self._given = False
            self._forget()

    # ------------------------------------------------------------ hooks

    def _look(self, _root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._given:
            return
        if not self.on or self.scale == 0.0:
            self._forget()
            return
        call = {**dict(zip(self._names, args, strict=False)), **kwargs}
        call = {**call, **(call.get("added_cond_kwargs") or {})}
        if torch.compiler.is_compiling():  # neither frames nor memory there: made anew in every call
            u = signal(call, self.read)
            self._pairs = self._factors(u, self.told or self._guess(len(u)))
            return
        value = source(call, self.read)[1]
        parts = list(value) if isinstance(value, (list, tuple)) else [value]
        rows = self.told or conditional(self.root, parts, len(value), self.free_first)
        if rows == "none":  # the prompt's own calls come again: what was written for them is kept
            self._now, self._pairs = None, None
            return
        now = self._written(call, rows, parts)
        now.reads(call.get("encoder_hidden_states"))
        self._now, self._pairs = now, now.pairs

    def _written(self, call: Mapping[str, Any], rows: Rows, parts: list[Tensor]) -> Written:
        """What is written for a call: remembered, by the tensors it is given or else by their values, or new."""
        counts = [-1 if p.is_inference() else p._version for p in parts]
        there = [w for w in self._memory if w.rows == rows and w.scale == self.scale]
        now = next((w for w in there if w.known(parts, counts)), None)
        if now is None:
            u = signal(call, self.read)
            if u.requires_grad:  # who asks for gradients by the prompt gets a graph of its own in each call
                return Written(rows, self.scale, u, self._factors(u, rows))
            now = next((w for w in there if _same(w.signal, u)), None)
            now = now or Written(rows, self.scale, u.clone(), self._factors(u, rows))
            now.parts, now.counts = parts, counts
        others = [w for w in self._memory if w is not now]
        for w in others:
            w.made.clear()  # large, and of use only where one call is made again and again
        self._memory = [now, *others][:KEPT]
        return now

    def _forget(self) -> None:
        """Forget everything that was written."""
        self._now, self._pairs, self._memory = None, None, []

    def _guess(self, n: int) -> Rows:
        """Inside a compiled network: by the pipeline's own guidance, which is what it was last called with. Where that
        cannot tell, rows too many rather than too few.
        """
        guided = getattr(self.pipe, "do_classifier_free_guidance", None)
        if not guided or not self.shared or n % 2:
            return "all"
        return "second" if self.free_first else "first"

    def _factors(self, u: Tensor, rows: Rows) -> dict[str, tuple[Tensor, Tensor]] | None:
        if rows == "none":
            return None
        self.calls += 1
        keep = self.scale * mask(rows, len(u)).to(u)[:, None, None]
        pairs = {n: (left, right * keep) for n, (left, right) in self._write(u).items()}
        if torch.compiler.is_compiling() or any(r.requires_grad for _, r in pairs.values()):
            return pairs
        silent = not bool(torch.stack([right.abs().amax() for _, right in pairs.values()]).any())
        return None if silent else pairs

    def _like(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's factors in the precision and on the device of its input, brought there once."""
        assert self._pairs is not None
        left, right = self._pairs[name]
        now = None if torch.compiler.is_compiling() else self._now
        if now is None or left.requires_grad or right.requires_grad:
            return left.to(x), right.to(x)
        have = now.cast.get(name)
        if have is None or have[0].dtype != x.dtype or have[0].device != x.device:
            have = now.cast[name] = left.to(x), right.to(x)
        return have

    def _adder(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def add(_layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
            if self._pairs is None or not self.on:
                return None
            x: Tensor = args[0]
            now = None if torch.compiler.is_compiling() else self._now
            # in cross-attention the layer's input is the text itself, in every step the same
            made = now.made if now is not None and x is now.text else None
            if made is not None and name in made and made[name].dtype == out.dtype:
                return out + made[name]
            left, right = self._pairs[name]
            if len(x) != len(left):
                raise RuntimeError(f"{name} is given {len(x)} rows for {len(left)} prompts")
            if left.dtype != x.dtype or left.device != x.device:
                left, right = self._like(name, x)
            more = (x.flatten(1, -2) if x.ndim > 2 else x[:, None]) @ left @ right
            more = more.view(out.shape).to(out.dtype)
            if made is not None and not more.requires_grad and not more.is_inference():
                made[name] = more
            return out + more

        return add


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)


@contextmanager
def telling(root: nn.Module, rows: Rows) -> Iterator[None]:
    """Inside, calls of the network have their conditional rows there, whoever makes them; what was told further out
    stays.
    """
    mine = [w for w in writers(root).values() if w.told is None]
    for w in mine:
        w.told = rows
    try:
        yield
    finally:
        for w in mine:
            w.told = None


@contextmanager
def letting(root: nn.Module, label: str | None) -> Iterator[None]:
    """Inside, only the writer of that label acts; with None no writer does."""
    before = [(w, w.on) for w in writers(root).values()]
    for w, _ in before:
        w.on = w.label == label
    try:
        yield
    finally:
        for w, on in before:
            w.on = on
