"""On what a run takes place: which device, how much memory, how fast."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

import torch

from ..pipelines import Offload, Quantize, chosen_device
from ..prompts import InputError
from ._speed import Speed

GB, MB = 2**30, 2**20


@dataclass(frozen=True)
class Machine:
    """On what a run takes place, and how the pipeline is loaded there.

    Attributes:
        device: "cpu", "cuda", ..., which need not be here; None and "auto": a GPU where there is one.
        dtype: precision of the weights; None: what `load` chooses.
        memory: bytes there are; None: the device's own.
        flops: floating point operations a second that its data sheet names; None: what it reaches is measured.
        embeddings: prompts are remembered (`load(..., embeddings=...)`), and no text encoder is loaded.
        quantize: weights are read into few bits, as `Loading` says.
        offload: only what computes is on the device, as `Loading` says.
        speed: what was measured there before, in place of `flops`.
    """

    device: str | None = None
    dtype: str | None = None
    memory: int | None = None
    flops: float | None = None
    embeddings: bool = False
    quantize: Quantize = "none"
    offload: Offload = "none"
    speed: Speed | None = None

    def __post_init__(self) -> None:
        if self.memory is not None and not self.memory > 0:
            raise InputError(f"memory: expected a number of bytes above 0, got {self.memory}")
        if self.flops is not None and not 0 < self.flops < math.inf:
            raise InputError(f"flops: expected operations a second, above 0, got {self.flops}")

    @property
    def place(self) -> str:
        """The device, chosen as `load` does; one that is named may be another computer's."""
        return chosen_device(self.device, here=False)

    @property
    def host(self) -> bool:
        """Whether the device's memory is the computer's own."""
        return self.place.startswith("cpu")

    def room(self) -> int | None:
        """Bytes there are; None where nobody says."""
        if self.memory is not None:
            return self.memory
        if not self.host:
            mine = self.place.startswith("cuda") and torch.cuda.is_available()
            return int(torch.cuda.mem_get_info(self.place)[1]) if mine else None
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in names else None


def parse_bytes(text: str) -> int:
    """A size such as "12GB", "800 MB" or "6" (GB): GB are 2^30 bytes, as graphics cards count.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GIB|G|MB|MIB|M)?\s*", text.upper())
    if not found or not float(found[1]) > 0:
        raise InputError(f"memory: expected a size such as 12GB or 800MB, got {text!r}")
    return int(float(found[1]) * (MB if (found[2] or "G").startswith("M") else GB))
