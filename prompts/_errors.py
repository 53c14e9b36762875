"""What a user did wrong, told in one line: expected, got, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

NO_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # the same on Windows
    "Cannot allocate memory",  # the system's own words, as of a file that is mapped
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""What libraries say when there is not enough memory."""


class InputError(ValueError):
    """Bad input. The message is one line and needs no traceback; the command line prints it and exits with code 2."""


def unknown(what: str, got: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among the known ones; suggests the nearest."""
    names = sorted(known)
    near = get_close_matches(got, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {what} {got!r}: {hint}known: {', '.join(names) or 'none'}")


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line of bearable length."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the computer's memory was not enough."""
    return any(
        isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" or any(s in str(e) for s in NO_MEMORY)
        for e in causes(error)
    )


def causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it, one after the other."""
    found: list[BaseException] = []
    last: BaseException | None = error
    while last is not None and last not in found:
        found.append(last)
        last = last.__cause__ or last.__context__
    return found
