"""What a stretch of code costs: its time, and the most memory it takes on top of what was there."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import torch


def resident() -> float:
    """Resident memory of this process now, MB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


class Peak:
    """Within a `with` block, the most memory over what was there at its start: on a GPU what torch has handed out,
    elsewhere the process's resident memory, sampled every millisecond.

    Attributes:
        extra: MB.
        seconds: length of the block.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None

    def __enter__(self) -> Self:
        gc.collect()
        self.extra, self.seconds = 0.0, 0.0
        self._stop = threading.Event()
        if self._device is not None:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = float(torch.cuda.memory_allocated(self._device))
        else:
            ctypes.CDLL(None).malloc_trim(0)  # freed pages of earlier work must not hide what is needed now
            self._start = resident()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        self._clock = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.extra = max(self.extra, resident() - self._start)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device is not None:
            torch.cuda.synchronize(self._device)
            self.seconds = time.perf_counter() - self._clock
            self.extra = (torch.cuda.max_memory_allocated(self._device) - self._start) / 2**20
            return
        self.seconds = time.perf_counter() - self._clock
        self.extra = max(self.extra, resident() - self._start)
        self._stop.set()
        self._thread.join()
