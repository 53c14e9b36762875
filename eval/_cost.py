"""What a piece of work takes: time and memory."""

from __future__ import annotations

import gc
import json
import math
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

COST_FILE = "cost.json"


class Cost:
    """Within a `with` block: seconds, and the most memory over what was there at its start.

    Attributes:
        seconds: of the block.
        peak: MB; a GPU's where there is one (as torch counts it), else the process's resident memory, looked at every
            few milliseconds; NaN where the system does not tell.
        where: "cuda" or "cpu".
    """

    def __enter__(self) -> Self:
        self.where = "cuda" if torch.cuda.is_available() else "cpu"
        gc.collect()
        self.peak = 0.0
        self._stop = threading.Event()
        if self.where == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = float(torch.cuda.memory_allocated())
        else:
            self._before = resident()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self.where == "cpu":
            self._thread.start()
        self._start = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max((resident() - self._before) / 2**20, self.peak)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.where == "cuda":
            torch.cuda.synchronize()
            self.peak = (torch.cuda.max_memory_allocated() - self._before) / 2**20
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        if self.where == "cpu":
            self._thread.join()
            self.peak = max((resident() - self._before) / 2**20, self.peak)

    def to_json(self) -> dict[str, Any]:
        """As it is written beside an eraser."""
        peak = None if math.isnan(self.peak) else round(self.peak, 1)
        return {"seconds": round(self.seconds, 3), "peak MB": peak, "on": self.where}


def resident() -> float:
    """Resident memory of this process, bytes; NaN where the system does not tell it (other than Linux)."""
    pages = Path("/proc/self/statm")
    return float(int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")) if pages.exists() else math.nan


def cost_of(folder: Path) -> dict[str, Any]:
    """What making an eraser took, as `erasers erase` wrote it beside it; empty if it did not."""
    try:
        value = json.loads((folder / COST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
