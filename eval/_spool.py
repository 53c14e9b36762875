"""Pictures that are looked at again, kept out of memory: thousands of them weigh gigabytes."""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from PIL import Image

from ..prompts import InputError


class Fetched(Sequence[Image.Image]):
    """Pictures that are fetched one by one when they are asked for."""

    @abstractmethod
    def fetch(self, k: int) -> Image.Image:
        """One of them."""

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Image.Image, ...]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | tuple[Image.Image, ...]:
        if isinstance(index, slice):
            return tuple(self[k] for k in range(*index.indices(len(self))))
        return self.fetch(index)


class Spool(Fetched):
    """Pictures in the order they were added, in one file without a name in the place for temporary files (`TMPDIR`).
    The file is gone with the spool, or with a killed process.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="erasers-", buffering=0)  # noqa: SIM115
        self._rows: list[tuple[int, str, tuple[int, int], int]] = []
        self._end = 0

    def add(self, images: Sequence[Image.Image]) -> None:
        """Put pictures at the end.

        Raises:
            InputError: there is no room.
        """
        for image in images:
            pixels = image.tobytes()
            done = 0
            try:
                while done < len(pixels):
                    done += os.pwrite(self._file.fileno(), pixels[done:], self._end + done)
            except OSError as error:
                raise InputError(
                    f"cannot keep pictures in {tempfile.gettempdir()} ({error.strerror or error}): set TMPDIR to a "
                    "place with room, or ask with --only for scores that the judges alone give"
                ) from error
            self._rows.append((self._end, image.mode, image.size, len(pixels)))
            self._end += len(pixels)

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, k: int) -> Image.Image:
        start, mode, shape, count = self._rows[k]
        return Image.frombytes(mode, shape, os.pread(self._file.fileno(), count, start))


@dataclass(frozen=True)
class Unkept(Sequence[Image.Image]):
    """In the place of pictures that were judged as they were drawn, and let go.

    Attributes:
        n: how many there were.
    """

    n: int

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Image.Image, ...]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | tuple[Image.Image, ...]:
        if isinstance(index, int) and not -self.n <= index < self.n:
            raise IndexError(index)
        raise InputError(
            "these pictures were judged and not kept: an evaluator that looks at them must not say `pictures = False`"
        )


@dataclass(frozen=True)
class Gathered(Fetched):
    """Pictures out of several places, fetched when they are asked for.

    Attributes:
        places: of each, a sequence and the place in it.
    """

    places: tuple[tuple[Sequence[Image.Image], int], ...]

    def __len__(self) -> int:
        return len(self.places)

    def fetch(self, k: int) -> Image.Image:
        images, place = self.places[k]
        return images[place]
