"""Peak memory of a stretch of code."""

import ctypes
import gc
import threading
from pathlib import Path
from types import TracebackType
from typing import Self


def resident() -> float:
    """Resident memory of this process now, MB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


class Peak:
    """Within a `with` block, the most memory over what was there at its start, sampled every millisecond.

    Attributes:
        extra: MB.
    """

    def __enter__(self) -> Self:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # freed pages of earlier work must not hide what is needed now
        self._start, self.extra, self._stop = resident(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.extra = max(self.extra, resident() - self._start)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.extra = max(self.extra, resident() - self._start)
        self._stop.set()
        self._thread.join()
