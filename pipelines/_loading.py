"""What a user says of how a model is read and where its parts live."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Literal, get_args

from ..prompts import InputError, unknown

Offload = Literal["none", "model", "sequential"]
Quantize = Literal["none", "bnb4", "bnb8", "ao-int8", "ao-float8"]


@dataclass(frozen=True)
class Loading:
    """How a model is read and where its parts live, beside precision and device. What each option costs and what it
    excludes: docs/loading.md.

    Attributes:
        variant: which files of weights, such as "fp16".
        revision: branch, tag or commit of a Hub id.
        config: of a single file: the pipeline folder or Hub id with its configuration, and with whatever parts the file
            does not hold.
        quantize: keep the Linears of the denoiser, and of text encoders larger than CLIP, in few bits: "bnb4" (NF4) and
            "bnb8" by bitsandbytes, on a GPU; "ao-int8" and "ao-float8" by torchao.
        offload: "model" keeps on the GPU only the part that computes; "sequential" only the layer that does, which is
            slow and cannot be trained.
        attention_slicing: compute attention in slices; UNets only.
        vae_slicing: decode images one by one.
        vae_tiling: decode large images in tiles.
        compile: the backend with which `torch.compile` speeds up drawing, such as "inductor"; "" leaves it.

    Raises:
        InputError: an unknown choice, or choices that exclude each other.
    """

    variant: str | None = None
    revision: str | None = None
    config: str | None = None
    quantize: Quantize = "none"
    offload: Offload = "none"
    attention_slicing: bool = False
    vae_slicing: bool = False
    vae_tiling: bool = False
    compile: str = ""

    def __post_init__(self) -> None:
        if self.quantize not in get_args(Quantize):
            raise unknown("--quantize", self.quantize, get_args(Quantize))
        if self.offload not in get_args(Offload):
            raise unknown("--offload", self.offload, get_args(Offload))
        if self.offload == "sequential" and self.quantize != "none":
            raise InputError("--offload sequential moves single layers, quantised ones cannot be: use --offload model")
        if self.compile and self.offload != "none":
            raise InputError("--compile and --offload take hold of the same calls: leave one of them out")

    def refuse(self, names: Collection[str], why: str) -> None:
        """Refuse some of variant, revision and config, which mean nothing here.

        Raises:
            InputError: one of them is set.
        """
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise InputError(f"--model-{field.name} {getattr(self, field.name)}: {why}; leave it out")
