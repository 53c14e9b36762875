"""What makes a command need less memory, said where there was not enough."""

from __future__ import annotations

from collections.abc import Sequence

DRAWING = ("draw", "grid", "evaluate", "benchmark")
REMEMBERED = ("erase", "draw", "grid", "evaluate")
"""The commands that take --embeddings."""
AGAIN = ("--batch", "--accumulate", "--dtype", "--device")
"""What another value may help of, though it was given."""


def spares(args: Sequence[str], default: str) -> str:
    """Flags that make a command need less memory where it runs, less what was given already.

    Args:
        args: the words of the command.
        default: the method of `erase` that names none.
    """
    said = {a.partition("=")[0] for a in args}
    free = [w for w in _flags(args, default) if (flag := _flag(w)) in AGAIN or flag not in said]
    if not free:
        return "no flag of this command takes less: run it where there is more memory"
    told = "; `erasers plan` with the same flags says what fits" if args[:1] == ["erase"] else ""
    return f"try {', '.join(free)}{told}"


def _flags(args: Sequence[str], default: str) -> list[str]:
    """What there is for this command, most effective first."""
    import torch

    verb = args[0] if args else ""
    gpu = torch.cuda.is_available() and not _value(args, "--device").startswith("cpu")
    kind = _value(args, "--dtype")
    half = kind in ("float16", "bfloat16") or (gpu and not kind)  # a GPU's default
    training, dense, masked = _training(args, default) if verb == "erase" else ([], False, False)
    loading: list[str] = []
    if verb in (*DRAWING, "erase", "remember", "export", "push") and not half and not dense:
        loading.append("--dtype bfloat16")
    if verb in REMEMBERED:
        loading.append("--embeddings FILE (what `erasers remember` writes)")
    if verb in ("remember", "export", "push", "score") and gpu:
        loading.append("--device cpu")
    if verb in (*DRAWING, "erase") and not dense and not masked:
        loading += _fewer(args, verb) if gpu else [] if _layers(args) else ["--quantize ao-int8"]
    spare = ["--vae-slicing", "--vae-tiling"] if verb in DRAWING else []
    eight = ["--optimizer adam8bit"] if training and not (dense and masked) else []
    lower = ["a lower --batch"] if verb in ("draw", "train-judge") else []
    return [*lower, *training, *loading, *spare, *eight]


def _fewer(args: Sequence[str], verb: str) -> list[str]:
    """On a GPU: weights that wait elsewhere, or in few bits. Layers do not wait in few bits, and nothing waits when
    compiled.
    """
    least = " (least: sequential)" if verb in DRAWING and not _value(args, "--quantize") else ""
    waits = [] if _value(args, "--compile") else [f"--offload model{least}"]
    return [*waits, *([] if _layers(args) else ["--quantize bnb4"])]


def _layers(args: Sequence[str]) -> bool:
    return _value(args, "--offload") == "sequential"


def _training(args: Sequence[str], default: str) -> tuple[list[str], bool, bool]:
    """Of `erase`: what makes training smaller, whether it writes the weights themselves (offloaded, quantised and half
    ones are refused then), and whether it ranks them for a mask (offloaded and quantised ones are refused then; what
    writes under a mask has an optimiser of its own).
    """
    from ..erase import find, options

    has = {o.name: o.default for o in options(find(_value(args, "--method") or default))}
    if "steps" not in has:  # a closed form
        return [], False, False
    paper = "paper" in _value(args, "--preset")
    dense = "dense" in has and "--no-dense" not in args and ("--dense" in args or has["dense"] is True or paper)
    parts = [*(["a lower --batch"] if "batch" in has else []), "a higher --accumulate", "--gradient-checkpointing"]
    return [*parts, *(["--no-dense"] if dense else [])], dense, has.get("dense") is True


def _value(args: Sequence[str], flag: str) -> str:
    """What a flag was given, "" where it was not."""
    for k, word in enumerate(args):
        if word == flag:
            return args[k + 1] if k + 1 < len(args) else ""
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""


def _flag(words: str) -> str:
    """The flag in some words about it."""
    return next(w for w in words.split() if w.startswith("--"))
