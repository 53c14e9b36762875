"""What a piece of work takes: its time, and the most memory on top of what was there."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

COST_FILE = "cost.json"


class Cost:
    """Within a `with` block: seconds, and the most memory over what was there at its start.

    Args:
        device: whose memory; by default a GPU's where there is one.

    Attributes:
        seconds: of the block.
        peak: MB (2^20 bytes); a GPU's as torch counts it, else the process's resident memory, looked at every
            millisecond; NaN where the system does not tell.
        where: "cuda" or "cpu".
    """

    def __init__(self, device: torch.device | None = None) -> None:
        on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
        self.where = "cuda" if on_gpu else "cpu"
        self._device = device if on_gpu else None

    def __enter__(self) -> Self:
        gc.collect()
        self.peak = self.seconds = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self.where == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device) / 2**20
        else:
            if sys.platform == "linux":  # freed pages of earlier work must not hide what is needed now
                ctypes.CDLL(None).malloc_trim(0)
            self._before = resident()
            self._thread.start()
        self._start = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.peak = max(resident() - self._before, self.peak)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.where == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds = time.perf_counter() - self._start
        if self.where == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self._device) / 2**20 - self._before
            return
        self._stop.set()
        self._thread.join()
        self.peak = max(resident() - self._before, self.peak)

    def to_json(self) -> dict[str, Any]:
        """As it is written beside an eraser."""
        peak = None if math.isnan(self.peak) else round(self.peak, 1)
        return {"seconds": round(self.seconds, 3), "peak MB": peak, "on": self.where}


def resident() -> float:
    """Resident memory of this process, MB; NaN where the system does not tell it (other than Linux)."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if pages.exists() else math.nan


def cost_of(folder: Path) -> dict[str, Any]:
    """What making an eraser took, as `erasers erase` wrote it beside it; empty if it did not."""
    try:
        value = json.loads((folder / COST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
