"""Passes of a network whose weights are not there: bytes and operations, counted on torch's "meta" device, on which
tensors have a shape and no numbers. What a real pass allocates and frees, in its order, autograd's own memory included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from ._backbone import Condition

META = torch.device("meta")

ATTENTION_BACKWARD = 2.5
"""Operations of attention's backward pass for each of its forward pass: fused kernels work the weights out again."""

LOWERED = ("linear", "conv1d", "conv2d", "conv3d", "scaled_dot_product_attention")
"""What autocast computes in half precision, of torch.nn.functional."""

RAISED = ("layer_norm", "group_norm", "softmax")
"""What it computes in float32."""


class _Attention(torch.autograd.Function):
    """Attention that keeps queries, keys, values, its output and one number a query, and never the matrix of weights:
    as torch's fused kernels do on CPUs and GPUs. Its operations go to a ledger, those backward when that pass runs.
    """

    @staticmethod
    def forward(ctx: Any, ledger: Ledger, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ANN401
        ctx.ledger = ledger
        ledger.attention += attention_flops(q.shape, k.shape, v.shape)
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        q, k, v, _, _ = ctx.saved_tensors
        ctx.ledger.attention_backward += ATTENTION_BACKWARD * attention_flops(q.shape, k.shape, v.shape)
        return None, torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int]) -> int:
    """Of attention of queries [..., L, D] on keys [..., S, D] and values [..., S, E]: two matrix products, two
    operations for each multiplication.
    """
    rows = 1
    for n in q[:-1]:
        rows *= n
    return 2 * rows * k[-2] * (q[-1] + v[-1])


def _cast(value: Any, to: torch.dtype) -> Any:  # noqa: ANN401
    return tree_map_only(Tensor, lambda t: t.to(to) if t.is_floating_point() and t.is_meta else t, value)


@contextmanager
def _kernels(ledger: Ledger, half: torch.dtype | None) -> Iterator[None]:
    """Inside, attention is as fused kernels do it, and autocast to a half precision is imitated. By other functions in
    `torch.nn.functional`, because layers that are computed again in a backward pass leave torch's own function modes.
    """
    before = {n: getattr(F, n) for n in {*LOWERED, *RAISED}}

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        q, k, v = (t if t.is_meta else t.to(META) for t in (query, key, value))
        out: Tensor = _Attention.apply(ledger, q, k, v)
        return out

    def casting(name: str) -> Callable[..., Any]:
        own, to = attend if name == "scaled_dot_product_attention" else before[name], half if name in LOWERED else None

        def cast(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return own(*_cast(args, to or torch.float32), **_cast(kwargs, to or torch.float32))

        return cast

    try:
        F.scaled_dot_product_attention = attend
        for name in before if half is not None else ():
            setattr(F, name, casting(name))
        yield
    finally:
        for name, own in before.items():
            setattr(F, name, own)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among them, and in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


_SEEN: dict[Any, tuple[int, list[Any], Any]] = {}
"""Operations that were called before, with the shapes they were given: theirs, shapes of the results, and the results'
container."""
_ALIASING: set[Any] = set()
"""Operations whose results share memory with what they are given, or that change it."""


def _form(value: Any) -> Any:  # noqa: ANN401
    """What of an argument the shapes of the results depend on."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.device.type
    if isinstance(value, (list, tuple)):
        return tuple(_form(v) for v in value)
    return type(value), value


class Ledger(TorchDispatchMode):
    """Inside, what is allocated on the meta device is counted until it is freed, and so are operations.

    Args:
        half: the precision of autocast; None: none.

    Attributes:
        now: bytes that are there.
        peak: the most there were.
        flops: floating point operations of matrix products and convolutions.
        attention: of attention's forward passes.
        attention_backward: of its backward passes.
        events: bytes that came (above 0) and went, in order.
    """

    def __init__(self, half: torch.dtype | None = None) -> None:
        super().__init__()
        self.now = self.peak = self.flops = self.attention = 0
        self.attention_backward = 0.0
        self.events: list[int] = []
        self._known: dict[int, weakref.ref[Any]] = {}
        self._kernels = _kernels(self, half)

    def __enter__(self) -> Self:
        self._kernels.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._kernels.__exit__(kind, error, trace)

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Take tensors that were there before as known: they count for nothing."""
        for t in tensors:
            storage = t.untyped_storage()
            self._known[id(storage)] = weakref.ref(storage, self._forget(id(storage), 0))

    def _forget(self, key: int, size: int) -> Callable[[Any], None]:
        def gone(_ref: Any) -> None:  # noqa: ANN401
            if size:
                self.now -= size
                self.events.append(-size)
            self._known.pop(key, None)

        return gone

    def _see(self, t: Tensor) -> None:
        if not t.is_meta:
            return
        storage = t.untyped_storage()
        if id(storage) in self._known:
            return
        size = storage.nbytes()
        self._known[id(storage)] = weakref.ref(storage, self._forget(id(storage), size))
        self.now += size
        self.events.append(size)
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        given = dict(kwargs or {})
        found = list(_tensors((*args, *given.values())))
        if func is torch.ops.aten._local_scalar_dense.default and found[0].is_meta:
            return 1  # a number that decides nothing about memory
        known = [t.is_meta for t in found]
        if any(known) and not all(known):
            args, given = self._together(func, args, given)
        out = self._called(func, args, given)
        for t in _tensors((out,)):
            self._see(t)
        return out

    def _called(self, func: Any, args: Sequence[Any], given: dict[str, Any]) -> Any:  # noqa: ANN401
        """The operation itself; of one that was seen before with the same shapes, only its results are made."""
        key = None
        if func not in _ALIASING:
            try:
                key = (func, _form(tuple(args)), tuple((n, _form(v)) for n, v in given.items()))
                if (before := _SEEN.get(key)) is not None:
                    self.flops += before[0]
                    made = [
                        None if f is None else torch.empty_strided(*f[:2], dtype=f[2], device=META) for f in before[1]
                    ]
                    return before[2](made) if before[2] else made[0]
            except TypeError:  # an argument that has no hash
                key = None
        out = func(*args, **given)
        formula = flop_registry.get(func._overloadpacket)
        flops = formula(*args, **given, out_val=out) if formula is not None else 0
        self.flops += flops
        several = type(out) if isinstance(out, (list, tuple)) else None
        results = list(out) if several else [out]
        if key is not None and all(t is None or (isinstance(t, Tensor) and t.is_meta) for t in results):
            theirs = {t.untyped_storage()._cdata for t in _tensors((*args, *given.values()))}
            if func._schema.is_mutable or any(t.untyped_storage()._cdata in theirs for t in _tensors(results)):
                _ALIASING.add(func)
            else:
                forms = [None if t is None else (tuple(t.shape), t.stride(), t.dtype) for t in results]
                _SEEN[key] = (flops, forms, several)
        return out

    @staticmethod
    def _together(func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:  # noqa: ANN401
        """Numbers that are really there (masks, places, times) beside tensors without: a mask of places becomes those
        places, and everything goes to the meta device.
        """
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default):
            places: list[Any] = []
            for i in args[1]:
                if isinstance(i, Tensor) and not i.is_meta and i.dtype == torch.bool:
                    places += i.nonzero().unbind(1)
                else:
                    places.append(i)
            args = (args[0], places, *args[2:])
        whole = tree_map_only(Tensor, lambda t: t if t.is_meta else t.to(META), (tuple(args), dict(given)))
        return whole


def to_meta(cond: Condition) -> Condition:
    """A condition whose states have no content; masks, places and times stay what they are."""

    def away(value: Any) -> Any:  # noqa: ANN401
        return tree_map_only(Tensor, lambda t: t.to(META) if t.is_floating_point() and t.ndim > 1 else t, value)

    return Condition(away(dict(cond.kwargs)), cond.count, away(dict(cond.shared)))
