"""What a user did wrong, told in one line: expected, got, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "CUDA error: out of memory" in text
        or "CUBLAS_STATUS_ALLOC_FAILED" in text
    )
