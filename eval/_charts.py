"""Heat maps and the forget-retain frontier as SVG text: no library draws them and nothing is loaded to show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..prompts import InputError

XMLNS = ' xmlns="http://www.w3.org/2000/svg"'
NOTHING = "#d8d8d8"
SHADES = ("#c0392b", "#2471a3")
"""Lost, gained."""
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f")
LEGEND = 320
"""Width of a heat map's legend in pixels."""
INK, QUIET, LINE = "#222", "#777", "#ccc"

Values = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Point:
    """One entry in the forget-retain plane, in percent.

    Attributes:
        label: what it is.
        x, y: forgetting and retaining.
        x_range, y_range: their intervals, where there are any.
        hollow: drawn as an outline: a control.
        each: (x, y, name) of what the point is a mean of.
    """

    label: str
    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    hollow: bool = False
    each: tuple[tuple[float, float, str], ...] = ()


def shade(value: float | None, span: float = 100.0) -> str:
    """White at 0, full red at -span, full blue at +span; grey where there is no value."""
    if value is None or math.isnan(value):
        return NOTHING
    full = SHADES[0] if value < 0 else SHADES[1]
    part = min(1.0, abs(value) / span) ** 0.7  # small changes are what is looked for
    rgb = (round(255 + (int(full[k : k + 2], 16) - 255) * part) for k in (1, 3, 5))
    return "#" + "".join(f"{v:02x}" for v in rgb)


def heat_map(
    values: Values, rows: Sequence[str], columns: Sequence[str], *, title: str = "", cell: int = 15, loose: bool = False
) -> str:
    """Changes in percent points as coloured cells, each with its words on hovering; cells without change stay white.

    Args:
        values: one list a row; None where there is nothing to show.
        rows: labels of the lines.
        columns: labels of what is in a line.
        title: above it.
        cell: side of a cell in pixels.
        loose: a file of its own, which needs to say that it is SVG, and what its colours mean.

    Raises:
        InputError: the values do not fit the labels.
    """
    if len(values) != len(rows) or any(len(line) != len(columns) for line in values):
        raise InputError(f"expected {len(rows)} x {len(columns)} values, got {[len(line) for line in values]}")
    left, top = (
        7.4 * max(map(len, rows), default=0) + 8,
        5.4 * max(map(len, columns), default=0) + (30 if title else 12),
    )
    width, height = left + cell * len(columns) + 14, top + cell * len(rows) + (26 if loose else 6)
    width = max(width, left + LEGEND) if loose else width
    out = [_open(width, height, loose, title or "heat map")]
    if title:
        out.append(f'<text x="2" y="12" class="t">{escape(title)}</text>')
    out += [
        f'<text transform="translate({left + (c + 0.7) * cell:.0f},{top - 3:.0f}) rotate(-60)">{escape(name)}</text>'
        for c, name in enumerate(columns)
    ]
    out += [
        f'<text x="{left - 3:.0f}" y="{top + (r + 0.75) * cell:.0f}" text-anchor="end">{escape(name)}</text>'
        for r, name in enumerate(rows)
    ]
    out.append(
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{cell * len(columns)}" height="{cell * len(rows)}" class="b"/>'
    )
    for r, line in enumerate(values):
        for c, value in enumerate(line):
            if value == 0:
                continue
            words = "nothing measured" if value is None else f"{value:+.1f}"
            out.append(
                f'<rect x="{left + c * cell:.0f}" y="{top + r * cell:.0f}" width="{cell}" height="{cell}" '
                f'fill="{shade(value)}"><title>{escape(rows[r])}, {escape(columns[c])}: {words}</title></rect>'
            )
    if loose:
        out += _legend(left, top + cell * len(rows) + 8)
    return "".join(out) + "</svg>"


def _legend(x: float, y: float) -> list[str]:
    """What the colours of a heat map mean, in one line."""
    out = []
    for k, value in enumerate((-100, -20, 0, 20, 100)):
        place = x + 46 * k
        out.append(f'<path d="M{place:.0f} {y:.0f}h11v11h-11z" fill="{shade(value)}" stroke="{LINE}"/>')
        words = f"{value:+d}" if value else "0"
        out.append(f'<text x="{place + 14:.0f}" y="{y + 10:.0f}">{words}</text>')
    return [*out, f'<text x="{x + 236:.0f}" y="{y + 10:.0f}">percent points</text>']


def frontier(points: Sequence[Point], *, x: str, y: str, title: str = "", loose: bool = False) -> str:
    """Forgetting against retaining: up and right is better; what no other entry beats in both is joined by a line.

    Args:
        points: the entries.
        x: name of the axis of forgetting.
        y: name of the axis of retaining.
        title: above it.
        loose: a file of its own.

    Raises:
        InputError: no points.
    """
    if not points:
        raise InputError("expected at least one point to draw, got none")
    size, left, top = 330, 46, 26
    bottom = min(p.y_range[0] if p.y_range else p.y for p in points)
    floor = max(0.0, 10 * math.floor((bottom - 2) / 10))

    def px(v: float) -> float:
        return left + v / 100 * size

    def py(v: float) -> float:
        return top + (100 - max(v, floor)) / (100 - floor) * size

    height = max(top + size + 44, top + 20 * len(points) + 30)
    out = [_open(left + size + 250, height, loose, title or "forget-retain frontier")]
    if title:
        out.append(f'<text x="2" y="13" class="t">{escape(title)}</text>')
    for v in (0.0, 20.0, 40.0, 60.0, 80.0, 100.0):
        out.append(f'<path d="M{px(v):.1f} {top}v{size}" class="g"/>')
        out.append(f'<text x="{px(v):.1f}" y="{top + size + 14}" text-anchor="middle">{v:g}</text>')
    for k in range(6):
        v = floor + k * (100 - floor) / 5
        out.append(f'<path d="M{left} {py(v):.1f}h{size}" class="g"/>')
        out.append(f'<text x="{left - 5}" y="{py(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
    out.append(f'<text x="{left + size / 2}" y="{top + size + 32}" text-anchor="middle">{escape(x)}</text>')
    middle = top + size / 2
    out.append(f'<text transform="translate(12,{middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    best = sorted(front(points), key=lambda p: p.x)
    if len(best) > 1:
        path = "L".join(f"{px(p.x):.1f} {py(p.y):.1f}" for p in best)
        out.append(f'<path d="M{path}" fill="none" stroke="{QUIET}" stroke-dasharray="4 3"/>')
    for k, p in enumerate(points):
        colour = COLOURS[k % len(COLOURS)]
        out += [
            f'<circle cx="{px(a):.1f}" cy="{py(b):.1f}" r="2" fill="{colour}" opacity=".35"><title>{escape(p.label)}, '
            f"{escape(name)}: {a:.1f}, {b:.1f}</title></circle>"
            for a, b, name in p.each
        ]
        if p.x_range:
            out.append(f'<path d="M{px(p.x_range[0]):.1f} {py(p.y):.1f}H{px(p.x_range[1]):.1f}" stroke="{colour}"/>')
        if p.y_range:
            out.append(f'<path d="M{px(p.x):.1f} {py(p.y_range[0]):.1f}V{py(p.y_range[1]):.1f}" stroke="{colour}"/>')
        fill = f'fill="white" stroke="{colour}" stroke-width="2"' if p.hollow else f'fill="{colour}"'
        words = f"{p.label}: {x} {p.x:.1f}, {y} {p.y:.1f}"
        out.append(
            f'<circle cx="{px(p.x):.1f}" cy="{py(p.y):.1f}" r="5" {fill}><title>{escape(words)}</title></circle>'
        )
        key = top + 20 * k + 10
        out.append(f'<circle cx="{left + size + 18}" cy="{key}" r="5" {fill}/>')
        out.append(f'<text x="{left + size + 30}" y="{key + 4}">{escape(p.label)} ({p.x:.1f}, {p.y:.1f})</text>')
    return "".join(out) + "</svg>"


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in one direction without losing in the other; controls are left out."""
    real = [p for p in points if not p.hollow]
    return [p for p in real if not any(q.x >= p.x and q.y >= p.y and (q.x > p.x or q.y > p.y) for q in real)]


def grid_of(
    found: Mapping[tuple[str, str], float], rows: Sequence[str], columns: Sequence[str]
) -> list[list[float | None]]:
    """Values by (row, column) as `heat_map` takes them."""
    return [[found.get((r, c)) for c in columns] for r in rows]


def _open(width: float, height: float, loose: bool, name: str) -> str:
    style = (
        f"text{{font:11px sans-serif;fill:{INK}}}.t{{font-size:12px;font-weight:bold}}"
        f".g{{stroke:{LINE};stroke-width:.5}}.b{{fill:white;stroke:{LINE}}}"
    )
    return (
        f'<svg{XMLNS if loose else ""} width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(name)}">'
        + (f"<style>{style}</style>" if loose else "")
    )
