"""Linears in few bits on a blueprint: what their weights take, and what a pass through one allocates on a GPU.

Which Linears are converted and how each is held are facts of diffusers, transformers, bitsandbytes and torchao. GGUF
needs nothing here: diffusers' own layers run on a blueprint as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from ._ledger import META
from ._loading import Quantize

BLOCK = 64
"""Weights that share a scale in NF4 (QLoRA, Dettmers et al. 2023, section 3), as bitsandbytes has it."""

WORDS: dict[str, str] = {
    "bnb4": "bitsandbytes, 4 bits",
    "bnb8": "bitsandbytes, 8 bits",
    "ao-int8": "torchao",
    "ao-float8": "torchao",
}


def stored(how: Quantize, rows: int, columns: int) -> int:
    """Bytes of a weight [rows, columns] in few bits, with all that belongs to it.

    - bnb4: half a byte each, a float32 for each block of 64, and the 16 float32 that the codes stand for.
    - bnb8: a byte each and a float32 for each row (LLM.int8(), Dettmers et al. 2022).
    - ao-int8: a byte each, and for each row a float32 and a byte, the scale and where 0 is.
    - ao-float8: a byte each and a float32 for each row.
    """
    n = rows * columns
    match how:
        case "bnb4":
            return math.ceil(n / 2) + 4 * math.ceil(n / BLOCK) + 4 * 16
        case "ao-int8":
            return n + 5 * rows
        case _:
            return n + 4 * rows


def unpacked(how: Quantize, weight: Tensor) -> int:
    """Most bytes at once while the values of such a weight are made whole for a forward pass: they come in the
    precision that the layer computes in; float8 goes by way of two float32; bnb8 multiplies whole numbers.
    """
    own = weight.nbytes
    if how == "ao-float8":
        return max(8 * weight.numel(), 4 * weight.numel() + own)
    return 0 if how == "bnb8" else own


class Few(nn.Parameter):
    """A weight without content that will be held in few bits. Its shape and precision are those of its values.

    Attributes:
        how: the kind.
        stored: bytes that it takes.
    """

    how: Quantize
    stored: int

    @classmethod
    def of(cls, weight: Tensor, how: Quantize) -> Few:
        """That weight in few bits."""
        few: Few = torch.Tensor._make_subclass(cls, weight.detach(), False)
        few.how, few.stored = how, stored(how, *weight.shape)
        return few


def held_bytes(root: nn.Module) -> int:
    """What a network's weights and buffers take, those in few bits as they are held."""
    return sum(tensor_bytes(t) for t in (*root.parameters(), *root.buffers()))


def tensor_bytes(t: Tensor) -> int:
    """What one of them takes."""
    return t.stored if isinstance(t, Few) else t.nbytes


def values_in(p: Tensor) -> int:
    """How many numbers a parameter stands for; GGUF's own shape is that of its bytes."""
    return math.prod(getattr(p, "quant_shape", p.shape))


class Shrunk(nn.Linear):
    """A Linear on a blueprint whose weight will be held in few bits."""

    weight: Few

    def __init__(self, own: nn.Linear, how: Quantize) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = own.in_features, own.out_features
        self.weight, self.bias = Few.of(own.weight, how), own.bias

    def forward(self, x: Tensor) -> Tensor:
        return PASSES[self.weight.how](x, self.weight, self.bias)


def _made(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(like.shape, dtype=dtype, device=META)


class _Four(torch.autograd.Function):
    """The weight is made whole for the product, and again for the backward pass; nothing waits in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.weight = weight
        return F.linear(x, _made(weight, weight.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return grads[0] @ _made(ctx.weight, ctx.weight.dtype).to(grads[0].dtype), None, None


class _Eight(torch.autograd.Function):
    """What goes in is rounded to 8 bits, whole numbers are multiplied into 32, and the weight is made whole for the
    backward pass, to which what went in waits too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.kept, ctx.weight = x if x.requires_grad or ctx.needs_input_grad[0] else None, weight
        half = x.to(torch.float16)
        _rounded = _made(half, torch.int8)
        # operations are counted by a product of tensors that take no room; float32 in place of int32
        empty = torch.empty(1, 1, dtype=torch.float32, device=META)
        rows = math.prod(x.shape[:-1])
        whole = torch.mm(empty.expand(rows, weight.shape[1]), empty.expand(weight.shape[1], weight.shape[0]))
        return whole.to(torch.float16).to(x.dtype).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return grads[0] @ _made(ctx.weight, grads[0].dtype), None, None


def _four(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = _Four.apply(x.to(weight.dtype), weight, bias)
    return out.to(x.dtype)


def _eight(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = _Eight.apply(x, weight, bias)
    return out


def _ao_int8(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weight in the precision of what goes in, which autograd keeps; the scales come after the product."""
    scale = torch.empty(weight.shape[0], dtype=x.dtype, device=META)
    out = (x.reshape(-1, x.shape[-1]) @ _made(weight, x.dtype).t()) * scale
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], weight.shape[0])


def _ao_float8(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weight made whole, by way of float32, which autograd keeps."""
    values = _made(weight, torch.float32) * torch.empty(weight.shape[0], 1, device=META)
    out = torch.matmul(x, values.to(weight.dtype).t())
    return out if bias is None else out + bias


PASSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "bnb4": _four,
    "bnb8": _eight,
    "ao-int8": _ao_int8,
    "ao-float8": _ao_float8,
}


def shrink(net: nn.Module, how: Quantize) -> None:
    """Put a network's Linears in few bits that loading would."""
    for path in list(_converted(net, how)):
        net.set_submodule(path, Shrunk(net.get_submodule(path), how))  # type: ignore[arg-type]


def _converted(net: nn.Module, how: Quantize) -> Iterator[str]:
    """Paths of those Linears: in diffusers all but what the network keeps in float32; in transformers not the last
    layer, tied weights and those that lead to words either.
    """
    theirs = isinstance(net, PreTrainedModel)
    kept: Any = getattr(net, "_keep_in_fp32_modules", None) or ()
    skip = HfQuantizer.get_modules_to_not_convert(net, None, kept) if theirs else list(kept)
    for path, m in net.named_modules():
        if theirs and how.startswith("bnb"):
            if type(m) is nn.Linear and not _left(path, skip):
                yield path
        elif isinstance(m, nn.Linear):
            weight = f"{path}.weight"
            if how.startswith("bnb"):
                left = any(path == k or f"{k}." in path or path.rpartition(".")[2] == k for k in skip)
            else:
                left = _left(weight, skip) if theirs else any(f"{k}." in weight or k == weight for k in skip)
            if not left:
                yield path


def _left(name: str, keys: Collection[str]) -> bool:
    """Whether transformers leaves a layer or weight of that name alone: a key is its beginning, or its end."""
    return any(re.match(rf"(?:{k})(?:(?<=\.)|(?=\.|$))", name) or name.endswith(k) for k in keys)
