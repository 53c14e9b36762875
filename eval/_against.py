"""Image sets against a reference: which images, which reference, and an interval around the figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..pipelines.canvas.draw import draw as drawing
from ..pipelines.canvas.world import HELD_OUT_SEED
from ..prompts import InputError, Prompt, canvas
from ._distances import Distance, plain
from ._evaluator import GRID, NO_CONTROL, Case
from ._features import BATCH, Picked, extractor
from ._gallery import UNREADABLE
from ._score import NotApplicable, Score

DRAWINGS = 2
GROUPS = 500
FEWEST_DRAWS = 20
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

FEATURES_HELP = (
    "feature network: canvas-judges, canvas-clip, inception-clean[:FILE], inception-torchmetrics[:FILE], clip:ID or "
    "FOLDER, open_clip:ARCH:WEIGHTS; empty: what suits the world"
)
REFERENCE_HELP = (
    "what to compare with: a folder of real images, `canvas` (the world's own drawings), or `original` (other images "
    "of the unerased model); empty: `canvas` on Canvas"
)
DRAWS_HELP = "bootstrap draws behind the interval (count)"


@dataclass(frozen=True)
class Sides:
    """Two models' images and one reference, as feature vectors.

    Attributes:
        erased, original: [n, d] with and without the eraser: same prompts, same seeds.
        reference: [m, d] what both are compared with.
        clusters: what each row's prompt is about.
        reference_clusters: the same of the reference.
        details: network, reference and image counts in words, and all of it as the convention, for `Score.details`.
    """

    erased: Tensor
    original: Tensor
    reference: Tensor
    clusters: list[str]
    reference_clusters: list[str]
    details: dict[str, Any]


def sides(case: Case, features: str, reference: str) -> Sides | NotApplicable:
    """The images that should not have changed, of both models, and what they are compared with.

    Against `original` no image may be compared with itself redrawn: the prompts are split in two halves, one half drawn
    by the eraser is compared with the other half drawn by the unerased model, and the control is the unerased model's
    own first half. That control is the honest zero: what two halves of one model are apart.

    Raises:
        InputError: no such network or folder, an unreadable image, or too few images.
    """
    rows = retained(case)
    if isinstance(rows, NotApplicable):
        return rows
    reference = reference or world(case)
    if not reference:
        return NotApplicable(
            "no reference: name a folder of real images, or `original` for the distance from the unerased model"
        )
    look = extractor(features)
    details: dict[str, Any] = {"features": look.name, "preprocessing": look.convention}
    mine = rows
    if reference == "original":
        a, b = halves([case.gallery.prompts[k] for k in rows])
        mine, other = [rows[k] for k in a], [rows[k] for k in b]
        if len(other) < 2:  # the smaller half, where they differ
            raise InputError(f"expected at least 4 images without the concept to split in halves, got {len(rows)}")
        seen, names = look(Picked(case.control.images, other)), clusters(case, other)
        details["reference"] = "the unerased model on the other half of the prompts"
    elif reference == "canvas":
        pictures, cells = drawings(case, rows)
        seen, names = look(pictures), [o for o, _ in cells]
        details["reference"] = "drawings of the Canvas world"
    else:
        files = _files(Path(reference))
        seen = _looked(features, tuple(files), tuple((p.stat().st_mtime_ns, p.stat().st_size) for p in files))
        names = [str(p) for p in files]
        details["reference"] = reference
    if len(mine) < 2:
        raise InputError(f"expected at least 2 images without the concept to compare, got {len(mine)}")
    details["reference images"] = len(seen)
    details["convention"] = f"{look.name}, {look.convention}; against {details['reference']}"
    erased, original = (look(Picked(g.images, mine)) for g in (case.gallery, case.control))
    return Sides(erased, original, seen, clusters(case, mine), names, details)


def retained(case: Case) -> list[int] | NotApplicable:
    """The images that should not have changed: those whose prompt asks for no erased concept."""
    if not case.paired:
        return NotApplicable(NO_CONTROL)
    return case.others() or NotApplicable("no prompt leaves the concept out")


def world(case: Case) -> str:
    """Either "canvas", where all ordinary prompts are of the Canvas world, or ""."""
    cells = {(p.object, p.style) for p in case.gallery.prompts if p.role in GRID}
    return "canvas" if cells and all(w in canvas.CONCEPTS for cell in cells for w in cell) else ""


def suited(case: Case, features: str, here: str, elsewhere: str) -> str:
    """The network that was asked for, or the one that suits: `here` on Canvas."""
    return features or (here if world(case) == "canvas" else elsewhere)


def clusters(case: Case, rows: Sequence[int]) -> list[str]:
    """What each prompt is about: images of one concept (or, where none is named, of one sentence) fail together."""
    prompts = [case.gallery.prompts[k] for k in rows]
    return [p.concept or p.object or p.style or p.text for p in prompts]


def halves(prompts: Sequence[Prompt], seed: int = 0) -> tuple[list[int], list[int]]:
    """Two halves of some rows, seeded; the images of one sentence are shared out evenly."""
    draw = np.random.default_rng(seed)
    rank = {t: r for t, r in zip(dict.fromkeys(p.text for p in prompts), draw.permutation(len(prompts)), strict=False)}
    order = sorted(draw.permutation(len(prompts)).tolist(), key=lambda k: rank[prompts[k].text])
    return sorted(order[0::2]), sorted(order[1::2])


def drawings(case: Case, rows: Sequence[int]) -> tuple[list[Image.Image], list[tuple[str, str]]]:
    """The Canvas world's own drawings of what some prompts ask for, and the object and style of each; seeds that were
    used nowhere else.

    Raises:
        InputError: the prompts are of another world.
    """
    if world(case) != "canvas":
        raise InputError("reference `canvas`: these prompts are not of the Canvas world; name a folder of real images")
    cells = sorted({(case.gallery.prompts[k].object, case.gallery.prompts[k].style) for k in rows})
    return [_drawn(o, s, n) for o, s in cells for n in range(DRAWINGS)], [c for c in cells for _ in range(DRAWINGS)]


@lru_cache(maxsize=4096)
def _drawn(object_name: str, style: str, n: int) -> Image.Image:
    return drawing(object_name, style, HELD_OUT_SEED + 5000 + n)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"reference: expected a folder of images, `canvas` or `original`, got {str(folder)!r}")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
    if len(files) < 2:
        raise InputError(f"reference {folder}: expected at least two images ({', '.join(PICTURES)}), got {len(files)}")
    return files


@lru_cache(maxsize=4)
def _looked(features: str, files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> Tensor:
    """Features of a folder, read once while its files' times and sizes stay."""
    look = extractor(features)
    return torch.cat([look([_read(p) for p in files[k : k + BATCH]]) for k in range(0, len(files), BATCH)])


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as f:
            return f.convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"cannot read {path} ({error}): mend it or take it out of the reference") from error


def counted_by(score: Score, estimator: str) -> Score:
    """The score with its estimator in its details, and so in its convention."""
    told = {"estimator": estimator, "convention": f"{score.details['convention']}; {estimator}"}
    return replace(score, details={**score.details, **told})


def measured(
    both: Sides,
    distance: Distance,
    *,
    value: Callable[[Tensor], float] | None = None,
    unit: str = "",
    draws: int = 200,
    signed: bool = False,
) -> Score:
    """A distance of both models to the reference, with cluster-bootstrap intervals.

    Args:
        both: the images.
        distance: against the reference.
        value: another estimate of the figure itself; the bootstrap then only gives the width.
        unit: of the figure.
        draws: of the bootstrap.
        signed: whether the figure, and so its interval, may fall below 0.

    Raises:
        InputError: fewer than `FEWEST_DRAWS` draws.
    """
    if draws < FEWEST_DRAWS:
        raise InputError(f"draws: expected at least {FEWEST_DRAWS}, for an interval, got {draws}")
    groups, names = _groups(both.clusters)
    figure = value or (lambda x: plain(distance, x))
    sure, base = figure(both.erased), figure(both.original)
    count = [distance(x, groups) for x in (both.erased, both.original)]
    rng = np.random.default_rng(0)
    picks = [torch.from_numpy(np.bincount(rng.integers(names, size=names), minlength=names)) for _ in range(draws)]
    samples = np.array([[f(p.double()) for f in count] for p in picks if torch.count_nonzero(p[groups]) > 1])
    least = -math.inf if signed else 0.0
    own, bases = ((max(least, b[0]), b[1]) for b in (around(sure, samples[:, 0]), around(base, samples[:, 1])))
    change = around(sure - base, samples[:, 0] - samples[:, 1])
    n = len(both.erased)
    return Score(sure, n, *own, base, sure - base, *change, *bases, unit=unit, details=both.details)


def around(value: float, samples: np.ndarray) -> tuple[float, float]:
    """95 % interval: the spread of bootstrap draws, laid around the value. A set drawn with repetition is always
    further from its reference than the set itself, so the draws' own middle says nothing.
    """
    low, high = np.quantile(samples - samples.mean(), (0.025, 0.975))
    return value + float(low), value + float(high)


def _groups(labels: Sequence[Hashable]) -> tuple[Tensor, int]:
    """Each row's group and how many there are: its cluster; its own where all rows are of one cluster; clusters
    bundled where there are more than `GROUPS`.
    """
    names = {c: k for k, c in enumerate(dict.fromkeys(labels))}
    rows = [names[c] for c in labels] if len(names) > 1 else list(range(len(labels)))
    count = max(rows) + 1
    if count > GROUPS:
        bundle = np.random.default_rng(0).permutation(count) % GROUPS
        rows, count = [int(bundle[r]) for r in rows], GROUPS
    return torch.tensor(rows), count


def averaged(pair: Sequence[Sequence[float]], labels: Sequence[Hashable], unit: str, **details: Any) -> Score:  # noqa: ANN401
    """The mean of a figure that every image has, with the eraser and without; cluster bootstrap of 2,000 draws."""
    table = np.array(pair, float)
    means = resampled(table, labels, 2000, np.random.default_rng(0))
    value, base = table.mean(1).tolist()
    own, change, bases = (
        (float(np.quantile(v, 0.025)), float(np.quantile(v, 0.975))) for v in (means[0], means[0] - means[1], means[1])
    )
    return Score(value, table.shape[1], *own, base, value - base, *change, *bases, unit=unit, details=details)


def resampled(table: np.ndarray, labels: Sequence[Hashable], draws: int, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap means [k, draws] of a table [k, n], whole clusters drawn and the same for every line."""
    groups, count = _groups(labels)
    sums = np.stack([np.bincount(groups.numpy(), row, count) for row in table])
    sizes = np.bincount(groups.numpy(), minlength=count)
    picks = rng.integers(count, size=(draws, count))
    return sums[:, picks].sum(2) / sizes[picks].sum(1)  # type: ignore[no-any-return]
