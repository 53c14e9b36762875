"""On what a run takes place: which device, how much memory, how fast."""

from __future__ import annotations

import math
import os
import re
import time
from dataclasses import dataclass

import torch

from ..pipelines import Offload, Quantize, chosen_device
from ..prompts import InputError, first_line

GB, MB = 2**30, 2**20


@dataclass(frozen=True)
class Machine:
    """On what a run takes place, and how the pipeline is loaded there.

    Attributes:
        device: "cpu", "cuda", ..., which need not be here; None and "auto": a GPU where there is one.
        dtype: precision of the weights; None: what `load` chooses.
        memory: bytes there are; None: the device's own.
        flops: floating point operations a second of a large matrix product; None: measured by a short one.
        embeddings: prompts are remembered (`load(..., embeddings=...)`), and no text encoder is loaded.
        quantize: weights are read into few bits, as `Loading` says.
        offload: only what computes is on the device, as `Loading` says.
    """

    device: str | None = None
    dtype: str | None = None
    memory: int | None = None
    flops: float | None = None
    embeddings: bool = False
    quantize: Quantize = "none"
    offload: Offload = "none"

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


def measured_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, in a fraction of a second.

    Raises:
        InputError: the device is not there.
    """
    n = 1024 if device.startswith("cpu") else 4096
    try:
        a = torch.randn(n, n, device=device).to(dtype)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot measure {device!r}: {first_line(error)}; say how fast it is with --flops") from error
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        best = min(best, time.perf_counter() - start)
    return float(2 * n**3 / best)


def parse_bytes(text: str) -> int:
    """A size such as "12GB", "800 MB" or "6" (GB): GB are 2^30 bytes, as graphics cards count.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GIB|G|MB|MIB|M)?\s*", text.upper())
    if not found or not float(found[1]) > 0:
        raise InputError(f"memory: expected a size such as 12GB or 800MB, got {text!r}")
    return int(float(found[1]) * (MB if (found[2] or "G").startswith("M") else GB))
