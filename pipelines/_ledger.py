"""Passes of a network whose weights are not there: bytes and operations, counted on torch's "meta" device, on which
tensors have a shape and no numbers. What a real pass allocates and frees, in its order, autograd's own memory included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from ._backbone import Condition

META = torch.device("meta")

LOWERED = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, F.scaled_dot_product_attention),
    *(torch.matmul, torch.mm, torch.bmm, torch.baddbmm, torch.addmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm),
}
"""What autocast computes in half precision."""

RAISED = {
    *(F.layer_norm, F.group_norm, F.softmax, F.mse_loss, torch.layer_norm, torch.group_norm, torch.softmax),
    *(Tensor.softmax, Tensor.pow, torch.pow, torch.rsqrt, Tensor.rsqrt, torch.exp, Tensor.exp),
}
"""What it computes in float32."""


class _Attention(torch.autograd.Function):
    """Attention that keeps queries, keys, values, its output and one number a query, and never the matrix of weights:
    as torch's fused kernels do on CPUs and GPUs.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ANN401
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int]) -> int:
    """Of attention of queries [..., L, D] on keys [..., S, D] and values [..., S, E]: two matrix products, two
    operations for each multiplication.
    """
    rows = 1
    for n in q[:-1]:
        rows *= n
    return 2 * rows * k[-2] * (q[-1] + v[-1])


class _Functions(TorchFunctionMode):
    """Attention as fused kernels do it, and autocast to a half precision."""

    def __init__(self, ledger: Ledger, half: torch.dtype | None) -> None:
        super().__init__()
        self.ledger, self.half = ledger, half

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        given = dict(kwargs or {})
        if self.half is not None and (func in LOWERED or func in RAISED):
            to = self.half if func in LOWERED else torch.float32
            args, given = tree_map_only(
                Tensor, lambda t: t.to(to) if t.is_floating_point() and t.is_meta else t, (tuple(args), given)
            )
        if func is F.scaled_dot_product_attention:
            q, k, v = (a if a.is_meta else a.to(META) for a in (*args, *(given[n] for n in _QKV[len(args) :]))[:3])
            self.ledger.attended(q, k, v)
            return _Attention.apply(q, k, v)
        return func(*args, **given)


_QKV = ("query", "key", "value")


class Ledger(TorchDispatchMode):
    """Inside, what is allocated on the meta device is counted until it is freed, and so are operations.

    Args:
        half: the precision of autocast; None: none.

    Attributes:
        now: bytes that are there.
        peak: the most there were.
        flops: floating point operations of matrix products, convolutions and attention.
    """

    def __init__(self, half: torch.dtype | None = None) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        self._functions = _Functions(self, half)

    def __enter__(self) -> Self:
        self._functions.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._functions.__exit__(kind, error, trace)

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Take tensors that were there before as known: they count for nothing."""
        for t in tensors:
            storage = t.untyped_storage()
            self._known[id(storage)] = weakref.ref(storage, self._forget(id(storage), 0))

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Operations of attention; of its backward pass, two and a half times as many."""
        forward = attention_flops(q.shape, k.shape, v.shape)
        self.flops += forward
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            self.flops += forward * 5 // 2

    def _forget(self, key: int, size: int) -> Callable[[Any], None]:
        def gone(_ref: Any) -> None:  # noqa: ANN401
            self.now -= size
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
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        given = dict(kwargs or {})
        found: list[Tensor] = []
        tree_map_only(Tensor, found.append, (args, given))
        if func is torch.ops.aten._local_scalar_dense.default and found[0].is_meta:
            return 1  # a number that decides nothing about memory
        if any(t.is_meta for t in found) and not all(t.is_meta for t in found):
            args, given = self._together(func, args, given)
        out = func(*args, **given)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **given, out_val=out)
        tree_map_only(Tensor, self._see, out)
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
