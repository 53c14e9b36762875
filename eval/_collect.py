"""Galleries drawn into their folder: thousands of images, each drawn once, whatever interrupts the work.

The prompts are cut into batches once and for all, and a batch is always drawn whole, so that its composition, and with
it every byte, depends neither on interruptions nor on the number of processes. A batch counts as drawn when all its
images lie in the folder under other names and its mark is there; then the images get their names. The lists of prompts
and settings lie in the folder from the start (`plan.json`), and become the manifest at the end.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from ..erase import Eraser, check_target, warn_alone
from ..pipelines import Backbone
from ..prompts import InputError, Prompt
from ._gallery import (
    MANIFEST,
    PLAN,
    Gallery,
    Sampling,
    file_name,
    fitting,
    noises,
    pixels_digest,
    read_image,
    record,
    sampling,
)

LOCK = ".lock"
SUFFIXES = (".png", ".jpg")


def collect(
    folder: str | os.PathLike[str],
    backbone: Backbone,
    *,
    prompts: Sequence[Prompt],
    erasers: Sequence[Eraser] = (),
    how: Sampling | None = None,
    names: Sequence[str] | None = None,
) -> Gallery:
    """Draw every prompt into a folder; a gallery begun there is finished, a finished one is left as it is. Processes
    that `torchrun` or `accelerate launch` started share the work.

    Args:
        folder: made where it is missing; else a gallery of the very same prompts, settings, model and erasers.
        backbone: the pipeline.
        prompts: one image each.
        erasers: attached together.
        how: the sampling; by default what suits the pipeline.
        names: a file name for each image, ending in .png or .jpg (JPEG at Pillow's own quality, 75).

    Raises:
        InputError: no prompts, bad names, a folder that holds anything else, another process at work in it, a damaged
            image, or an eraser made for another base.
    """
    if not prompts:
        raise InputError("expected at least one prompt to draw, got none")
    how, root = fitting(how or sampling(backbone), erasers), Path(folder)
    files = list(names) if names is not None else [file_name(k, p) for k, p in enumerate(prompts)]
    _check_names(files, len(prompts))
    rows = [{"file": f, **asdict(p)} for f, p in zip(files, prompts, strict=True)]
    plan = {**record(backbone, erasers, how), "images": rows}
    rank, count = _processes()
    with ExitStack() as stack:
        if rank == 0:
            _claim(root, plan)
            stack.enter_context(_alone(root))
            _tidy(root, files, how.batch)
        _wait(count)
        missing = [b for b in range(0, len(files), how.batch) if not _have(root, files[b : b + how.batch])]
        _wait(count)  # until all have seen the same
        warn_alone(erasers)
        for eraser in erasers:
            stack.enter_context(eraser.attached(backbone))
        _draw(root, backbone, prompts, files, how, missing[rank::count])
        _wait(count)
        if rank == 0 and not (root / MANIFEST).exists():
            _finish(root, plan, how.batch)
        elif rank == 0 and missing:
            _verify(root)
        _wait(count)
    return Gallery.open(root)


def _draw(
    root: Path, backbone: Backbone, prompts: Sequence[Prompt], files: list[str], how: Sampling, starts: list[int]
) -> None:
    """Draw the batches that begin there; files are written beside the drawing of the next batch."""
    noise = noises(backbone, prompts, how)
    total = sum(len(files[b : b + how.batch]) for b in starts)
    writing: Future[None] | None = None
    silent = _processes()[0] > 0
    with (
        ThreadPoolExecutor(1) as writer,
        tqdm(total=total, desc=root.name, unit="image", leave=False, disable=silent) as bar,
    ):
        for b in starts:
            begin = time.perf_counter()
            part = prompts[b : b + how.batch]
            images = backbone.draw(
                [p.text for p in part],
                noise[b : b + how.batch],
                steps=how.steps,
                guidance=how.guidance,
                sampler=how.sampler,
                batch=how.batch,
            )
            seconds = time.perf_counter() - begin
            if writing is not None:
                writing.result()
            writing = writer.submit(_commit, root, files[b : b + how.batch], images, b // how.batch, seconds)
            bar.update(len(part))
        if writing is not None:
            writing.result()


def _commit(root: Path, files: list[str], images: list[Image.Image], batch: int, seconds: float) -> None:
    """Write a batch: all its images under other names, its mark, then their names."""
    try:
        (root / _mark(batch)).unlink(missing_ok=True)  # of an earlier run, whose images were taken away since
        for name, image in zip(files, images, strict=True):
            if not (root / name).exists():  # a file taken away from a finished batch comes back alone
                image.save(root / f".{name}.part", format="PNG" if name.endswith(".png") else "JPEG")
        _write(root / _mark(batch), {"seconds": round(seconds, 3)})
        _name(root, files)
    except OSError as error:
        raise InputError(f"cannot write to {root} ({error.strerror or error}): make room, run it again") from error


def _name(root: Path, files: Sequence[str]) -> None:
    for name in files:
        if (part := root / f".{name}.part").exists():
            part.replace(root / name)


def _mark(batch: int) -> str:
    return f".batch-{batch:06d}.json"


def _have(root: Path, files: Sequence[str]) -> bool:
    return all((root / f).exists() for f in files)


def _tidy(root: Path, files: list[str], size: int) -> None:
    """Name what a killed process had drawn and not yet named; throw away what it had not finished."""
    for k, b in enumerate(range(0, len(files), size)):
        if (root / _mark(k)).exists():
            _name(root, files[b : b + size])
    for part in root.glob(".*.part"):
        part.unlink()


def _finish(root: Path, plan: dict[str, Any], size: int) -> None:
    """Read every image once, then write the manifest and take away what is no longer needed."""
    rows = [{**row, "sha256": pixels_digest(_drawn(root / row["file"]))} for row in plan["images"]]
    marks = [root / _mark(k) for k in range(-(-len(rows) // size))]
    seconds = sum(json.loads(m.read_text())["seconds"] for m in marks if m.exists())
    head = {k: v for k, v in plan.items() if k != "images"}
    order = ("file", "sha256")
    rows = [{k: r[k] for k in (*order, *(k for k in r if k not in order))} for r in rows]
    _write(root / MANIFEST, {**head, "seconds": round(seconds, 3), "images": rows})
    for path in (root / PLAN, *marks):
        path.unlink(missing_ok=True)


def _verify(root: Path) -> None:
    """Images that were drawn again must be those of the manifest."""
    for _ in Gallery.open(root).images:
        pass
    for mark in root.glob(".batch-*.json"):
        mark.unlink()


def _drawn(path: Path) -> Image.Image:
    try:
        return read_image(path)
    except InputError as error:
        raise InputError(f"{path} is damaged: delete it and run the same command, it alone is drawn again") from error


def clear(folder: str | os.PathLike[str]) -> None:
    """Take a gallery, finished or not, out of a folder; anything else in there stays.

    Raises:
        InputError: the folder holds no gallery, or is none.
    """
    root = Path(folder)
    if root.exists() and not root.is_dir():
        check_target(root, True, holds=MANIFEST)
    if not root.exists() or not any(root.iterdir()):
        return
    held = _recorded(root)
    with _alone(root):
        for row in held["images"]:
            (root / Path(row["file"]).name).unlink(missing_ok=True)
        for path in (*root.glob(".*.part"), *root.glob(".batch-*.json"), root / MANIFEST, root / PLAN):
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------- whose folder it is


def _claim(root: Path, plan: dict[str, Any]) -> None:
    """Make the folder ours, or make sure that it holds this very gallery."""
    begun = (LOCK, f".{PLAN}.part")  # all that a process killed at its very start leaves behind
    held = root.is_dir() and any(p.name not in begun for p in root.iterdir())
    for path in (root / n for n in begun) if root.is_dir() and not held else ():
        path.unlink(missing_ok=True)
    check_target(root, held, holds=PLAN if (root / PLAN).exists() else MANIFEST)
    if not held:
        root.mkdir(parents=True, exist_ok=True)
        _write(root / PLAN, plan)
        return
    there = _recorded(root)
    for what, old, new in _compared(there, plan):
        if old != new:
            raise InputError(
                f"{root} holds another gallery: its {what} is {_short(old)}, asked for {_short(new)}; choose another "
                "place, or draw it anew with --force"
            )


def _recorded(root: Path) -> dict[str, Any]:
    for name in (MANIFEST, PLAN):
        if (root / name).exists():
            try:
                value = json.loads((root / name).read_text(encoding="utf-8"))
                _ = [row["file"] for row in value["images"]]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"{root / name} is damaged ({error}): delete the folder and draw again") from error
            return value
    raise InputError(f"{root} holds no {MANIFEST}, so it is not ours to draw into: choose another place")


def _compared(there: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What must be the same: by name, there and now."""
    yield "model", (there.get("model"), there.get("fingerprint")), (plan["model"], plan["fingerprint"])
    yield "precision", there.get("precision"), plan["precision"]
    for k, v in plan["sampling"].items():
        yield k, there.get("sampling", {}).get(k), v

    def stack(record: dict[str, Any]) -> list[tuple[Any, ...]]:
        rows = record.get("erasers", [])
        return [
            ("+".join(c["name"] for c in e["concepts"]), e["method"], e["scale"], e.get("fingerprint")) for e in rows
        ]

    yield "eraser", stack(there), stack(plan)
    old, new = ([{k: v for k, v in r.items() if k != "sha256"} for r in x["images"]] for x in (there, plan))
    yield "number of images", len(old), len(new)
    for k, (a, b) in enumerate(zip(old, new, strict=False)):
        yield f"image {k + 1}", a, b


def _short(value: object) -> str:
    if isinstance(value, dict):  # a row of the plan
        return f"{value.get('file')} ({value.get('text')!r}, seed {value.get('seed')})"
    if isinstance(value, (list, tuple)):
        return " ".join(_short(v) for v in value) or "none"
    return str(value)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Inside, no other command draws into the folder."""
    lock = FileLock(root / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another process draws into {root}: wait for it, or choose another place") from None
    try:
        yield
    finally:
        lock.release()
        (root / LOCK).unlink(missing_ok=True)


def _check_names(files: list[str], n: int) -> None:
    if len(files) != n:
        raise InputError(f"expected {n} file names, got {len(files)}")
    if twice := sorted({f for f in files if files.count(f) > 1})[:1] if len(set(files)) < n else []:
        raise InputError(f"two images would be named {twice[0]}: give each prompt a seed of its own")
    for name in files:
        if Path(name).name != name or name.startswith(".") or not name.endswith(SUFFIXES):
            raise InputError(f"expected a plain file name ending in {' or '.join(SUFFIXES)}, got {name!r}")


def _write(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


# ---------------------------------------------------------------- processes


def _processes() -> tuple[int, int]:
    """Number of this process and how many there are."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    state = PartialState(cpu=not torch.cuda.is_available())
    return state.process_index, state.num_processes


def _wait(count: int) -> None:
    if count > 1:
        PartialState().wait_for_everyone()
