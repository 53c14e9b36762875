"""Scores as data: a value, how many images it rests on, how sure it is, and what the unerased model got."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Score:
    """One measured figure.

    Attributes:
        value: the figure, in `unit`.
        n: images it rests on.
        low, high: 95 % interval of the value.
        control: the same figure of the unerased model on the same prompts and seeds; NaN (null in JSON) where its
            images were not given.
        change: value - control, with its paired 95 % interval `change_low`, `change_high`.
        control_low, control_high: 95 % interval of the control; NaN where there is none or it is not known.
        unit: "%", a factor such as "x1000", or "" for a plain number.
        details: whatever else helps to read it.
    """

    value: float
    n: int
    low: float
    high: float
    control: float
    change: float
    change_low: float
    change_high: float
    control_low: float = math.nan
    control_high: float = math.nan
    unit: str = "%"
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, rounded to 4 decimals."""

        def plain(v: object) -> object:
            return v if not isinstance(v, float) else None if math.isnan(v) else round(v, 4)

        return {k: plain(v) for k, v in asdict(self).items()}


@dataclass(frozen=True)
class NotApplicable:
    """There is nothing to measure here; never a 0.

    Attributes:
        reason: why, in one clause.
    """

    reason: str

    def to_json(self) -> dict[str, Any]:
        """The reason, beside a null value."""
        return {"value": None, "reason": self.reason}


def wilson(hits: float, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), as shares. Never degenerate at 0 or 1.

    Raises:
        ValueError: n is 0.
    """
    if n <= 0:
        raise ValueError("expected at least one image, got none")
    p, z2 = hits / n, Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def clustered(differences: Sequence[float], clusters: Sequence[Hashable], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean of paired differences: percentile bootstrap over whole clusters, seeded.

    Images of one cluster (a style, an object) fail together, so clusters are drawn, not images. Where all pairs agree
    the interval has no width: then n and the bounds of the value itself say how sure the figure is.
    """
    values = np.asarray(differences, float)
    names = {c: k for k, c in enumerate(dict.fromkeys(clusters))}
    member = np.array([names[c] for c in clusters])
    sums = np.bincount(member, values)
    sizes = np.bincount(member)
    picks = np.random.default_rng(0).integers(len(names), size=(draws, len(names)))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def bounds(hits: Sequence[bool], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """95 % interval of the share of hits, as shares: on each side the farther of Wilson's, which is never degenerate,
    and a bootstrap over whole clusters, which is wide where images of one cluster fail together.

    Raises:
        ValueError: no images.
    """
    apart = wilson(sum(hits), len(hits))
    together = clustered([float(h) for h in hits], clusters)
    return min(apart[0], together[0]), max(apart[1], together[1])


def share(
    hits: Sequence[bool],
    control: Sequence[bool] | None,
    clusters: Sequence[Hashable],
    **details: Any,  # noqa: ANN401
) -> Score:
    """The share of images that are hits, in percent, beside the unerased control's on the same prompts and seeds, if
    there is one.

    Raises:
        ValueError: no images, or the three lists differ in length.
    """
    paired = hits if control is None else control
    if not (len(hits) == len(paired) == len(clusters)):
        raise ValueError(f"expected paired lists, got {len(hits)}, {len(paired)} and {len(clusters)}")
    low, high = (100 * b for b in bounds(hits, clusters))
    if control is None:
        nan, value = math.nan, 100 * sum(hits) / len(hits)
        return Score(value, len(hits), low, high, nan, nan, nan, nan, details=details)
    value, base = 100 * sum(hits) / len(hits), 100 * sum(control) / len(control)
    change = clustered([100.0 * a - 100.0 * b for a, b in zip(hits, control, strict=True)], clusters)
    own_low, own_high = (100 * b for b in bounds(control, clusters))
    return Score(value, len(hits), low, high, base, value - base, *change, own_low, own_high, details=details)
