"""Drawing the Canvas world: 12 silhouettes x 10 ways of rendering, by Pillow and numpy alone.

An image is drawn at four times its size and shrunk, so edges are anti-aliased. Everything that varies (place, size,
turn, stretch, shade) comes from one seed; everything that makes a style a style (palette, grid, hatching, dots) is
fixed. Textures repeat every 8 pixels, the size of one latent, so that a small autoencoder can learn them.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIZE = 64
OVERSAMPLE = 4
BIG = SIZE * OVERSAMPLE

Array = NDArray[np.floating[Any]]
Shape = list[tuple[int, NDArray[np.float64]]]  # (1 add | 0 cut, polygon [n, 2] in the unit square's [-1, 1])


# ---------------------------------------------------------------- silhouettes


def _ellipse(cx: float, cy: float, rx: float, ry: float | None = None, turn: float = 0.0) -> NDArray[np.float64]:
    a = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x, y = rx * np.cos(a), (rx if ry is None else ry) * np.sin(a)
    c, s = np.cos(turn), np.sin(turn)
    return np.stack([cx + c * x - s * y, cy + s * x + c * y], 1)


def _box(x0: float, y0: float, x1: float, y1: float) -> NDArray[np.float64]:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def _poly(*points: tuple[float, float]) -> NDArray[np.float64]:
    return np.array(points, float)


def _star() -> Shape:
    a = np.pi / 5 * np.arange(10) - np.pi / 2
    r = np.where(np.arange(10) % 2 == 0, 1.08, 0.44)
    return [(1, np.stack([r * np.cos(a), 0.06 + r * np.sin(a)], 1))]


def _flower() -> Shape:
    petals: Shape = []
    for k in range(6):
        a = np.pi / 3 * k
        petals.append((1, _ellipse(0.55 * np.cos(a), -0.32 + 0.55 * np.sin(a), 0.34, 0.24, a)))
    stem = [(1, _box(-0.07, 0.2, 0.07, 1.1)), (1, _ellipse(0.28, 0.75, 0.26, 0.11, -0.5))]
    return [*petals, *stem, (1, _ellipse(0, -0.32, 0.35)), (0, _ellipse(0, -0.32, 0.19))]


SILHOUETTES: dict[str, Shape] = {
    "moon": [(1, _ellipse(-0.05, 0, 0.98)), (0, _ellipse(0.42, -0.1, 0.82))],
    "star": _star(),
    "circle": [(1, _ellipse(0, 0, 0.9))],
    "ring": [(1, _ellipse(0, 0, 0.95)), (0, _ellipse(0, 0, 0.52))],
    "house": [
        (1, _box(-0.7, -0.1, 0.7, 0.95)),
        (1, _poly((-0.95, -0.1), (0, -1.0), (0.95, -0.1))),
        (1, _box(0.4, -0.95, 0.62, -0.3)),
        (0, _box(-0.18, 0.4, 0.18, 0.95)),
        (0, _box(-0.55, 0.1, -0.3, 0.35)),
        (0, _box(0.3, 0.1, 0.55, 0.35)),
    ],
    "barn": [
        (1, _poly((-1.0, 0.9), (-1.0, -0.1), (-0.72, -0.55), (0, -0.85), (0.72, -0.55), (1.0, -0.1), (1.0, 0.9))),
        (0, _box(-0.45, 0.1, 0.45, 0.9)),
        (1, _poly((-0.45, 0.1), (-0.28, 0.1), (0.45, 0.9), (0.28, 0.9))),
        (1, _poly((0.45, 0.1), (0.28, 0.1), (-0.45, 0.9), (-0.28, 0.9))),
    ],
    "tree": [
        (1, _box(-0.16, 0.2, 0.16, 1.05)),
        (1, _ellipse(0, -0.45, 0.58)),
        (1, _ellipse(-0.45, -0.02, 0.45)),
        (1, _ellipse(0.45, -0.02, 0.45)),
    ],
    "flower": _flower(),
    "fish": [
        (1, _ellipse(-0.2, 0, 0.78, 0.48)),
        (1, _poly((0.4, 0), (1.05, -0.5), (0.85, 0), (1.05, 0.5))),
        (1, _poly((-0.35, -0.4), (0.0, -0.78), (0.2, -0.35))),
        (0, _ellipse(-0.6, -0.1, 0.11)),
    ],
    "boat": [
        (1, _poly((-1.0, 0.4), (1.0, 0.4), (0.65, 0.9), (-0.65, 0.9))),
        (1, _box(-0.06, -1.0, 0.06, 0.45)),
        (1, _poly((0.14, -0.95), (0.14, 0.25), (0.85, 0.25))),
        (1, _poly((-0.14, -0.6), (-0.14, 0.25), (-0.7, 0.25))),
    ],
    "cup": [
        (1, _ellipse(0.62, 0.02, 0.42, 0.46)),
        (0, _ellipse(0.62, 0.02, 0.22, 0.26)),
        (1, _poly((-0.85, -0.7), (0.55, -0.7), (0.42, 0.75), (-0.72, 0.75))),
    ],
    "cat": [
        (1, _ellipse(0, 0.2, 0.85, 0.72)),
        (1, _poly((-0.82, 0.15), (-0.78, -0.95), (-0.15, -0.4))),
        (1, _poly((0.82, 0.15), (0.78, -0.95), (0.15, -0.4))),
        (0, _ellipse(-0.33, 0.05, 0.15, 0.17)),
        (0, _ellipse(0.33, 0.05, 0.15, 0.17)),
        (0, _poly((-0.16, 0.38), (0.16, 0.38), (0, 0.58))),
    ],
}


def silhouette(name: str, rng: np.random.Generator) -> Array:
    """The object as a mask [BIG, BIG] in 0..1, with place, size and turn drawn from `rng`."""
    turn = rng.uniform(-0.2, 0.2)
    size = BIG * rng.uniform(0.33, 0.40)
    centre = BIG * (0.5 + rng.uniform(-0.07, 0.07, 2))
    stretch = 1 + rng.uniform(-0.06, 0.06, 2)
    c, s = np.cos(turn), np.sin(turn)
    image = Image.new("L", (BIG, BIG), 0)
    pen = ImageDraw.Draw(image)
    for value, points in SILHOUETTES[name]:
        p = (points * stretch) @ np.array([[c, s], [-s, c]]) * size + centre
        pen.polygon([tuple(q) for q in p.tolist()], fill=255 * value)
    return np.asarray(image, np.float32) / 255


# ---------------------------------------------------------------- ways of rendering


def _rgb(h: float, s: float, v: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(h % 1.0, s, v), np.float32)


def _blur(mask: Array, radius: float) -> Array:
    image = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, np.float32) / 255


def _edge(mask: Array, width: float) -> Array:
    """A line of about `width` big pixels along the border of the mask."""
    return np.clip(1.6 - 3.2 * np.abs(_blur(mask, width) - 0.5) / 0.5, 0, 1)


def _mix(a: Array, b: Array, m: Array) -> Array:
    return a * (1 - m[..., None]) + b * m[..., None]


@cache
def _axes() -> tuple[Array, Array]:
    y, x = np.mgrid[0:BIG, 0:BIG].astype(np.float32)
    return x, y


@cache
def _grain() -> Array:
    """Rough noise in 0..1 that repeats every 32 big pixels."""
    small = np.random.default_rng(5).random((8, 8))
    image = Image.fromarray((np.tile(small, (3, 3)) * 255).astype(np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    tile = np.asarray(image, np.float32)[32:64, 32:64] / 255
    return np.tile(tile, (BIG // 32, BIG // 32))


def _cells(mask: Array) -> Array:
    """1 over every tile of 16 big pixels that lies mostly in the mask."""
    n = BIG // 16
    inside = mask.reshape(n, 16, n, 16).mean((1, 3)) > 0.45
    return inside.astype(np.float32).repeat(16, 0).repeat(16, 1)


def _plain(colour: Array) -> Array:
    return np.broadcast_to(colour, (BIG, BIG, 3))


def _flat(mask: Array, shade: float) -> Array:
    return _mix(_plain(_rgb(0.13, 0.22, 0.99)), _rgb(0.01 + 0.05 * shade, 0.85, 0.88), mask)


def _pencil(mask: Array, shade: float) -> Array:
    x, y = _axes()
    hatch = np.clip(0.3 + 1.1 * np.sin((x + y) * (2 * np.pi / 32)), 0, 1) * 0.7
    dark = np.maximum(hatch * mask, 0.8 * _edge(mask, 3))
    return _mix(_plain(_rgb(0.13, 0.02, 0.99)), _rgb(0.6, 0.08, 0.25 + 0.15 * shade), dark)


def _ink(mask: Array, shade: float) -> Array:
    _, y = _axes()
    bleed = 0.45 * _blur(mask, 12)
    wash = mask * (0.62 + 0.38 * np.clip((y / BIG - 0.2) / 0.6, 0, 1))
    return _mix(_plain(_rgb(0.11, 0.22, 0.93)), _rgb(0.08, 0.3, 0.04 + 0.1 * shade), np.maximum(bleed, wash))


def _neon(mask: Array, shade: float) -> Array:
    line = _edge(mask, 4.0)
    glow = np.clip(1.5 * _blur(line, 12), 0, 1)
    hue = 0.86 + 0.05 * shade
    image = _mix(_plain(_rgb(0.72, 0.6, 0.09)), _rgb(hue, 0.95, 0.95), 0.75 * glow)
    return _mix(image, _rgb(hue, 0.25, 1.0), line)


def _mosaic(mask: Array, shade: float) -> Array:
    x, y = _axes()
    checker = ((x // 16 + y // 16) % 2).astype(np.float32)
    image = _mix(_plain(_rgb(0.12, 0.30, 0.93)), _rgb(0.50 + 0.05 * shade, 0.85, 0.62), _cells(mask))
    image = image * (1 - 0.14 * checker[..., None])
    grout = ((x % 16 < 4) | (y % 16 < 4)).astype(np.float32)
    return _mix(image, _rgb(0.08, 0.25, 0.33), 0.9 * grout)


def _watercolor(mask: Array, shade: float) -> Array:
    soft = _blur(mask, 5)
    x, y = _axes()
    pool = 0.5 + 0.5 * np.sin(x / 41 + 2) * np.cos(y / 33)
    pigment = np.clip(soft * (0.42 + 0.3 * pool) + 0.45 * _edge(mask, 5) * soft, 0, 1)
    hue = 0.60 + 0.06 * shade
    stain = _mix(_plain(_rgb(0.12, 0.05, 0.99)), _rgb(hue - 0.12, 0.55, 0.92), 0.45 * _blur(mask, 22))
    return _mix(stain, _rgb(hue, 0.8, 0.78), pigment)


def _blueprint(mask: Array, shade: float) -> Array:
    x, y = _axes()
    paper = _plain(_rgb(0.60 + 0.02 * shade, 0.82, 0.60))
    grid = ((x % 32 < 3) | (y % 32 < 3)).astype(np.float32)
    return _mix(_mix(paper, _rgb(0.58, 0.35, 0.9), 0.35 * grid), _rgb(0.58, 0.04, 1.0), _edge(mask, 4.0))


def _stripes(mask: Array, shade: float) -> Array:
    _, y = _axes()
    band = np.clip(0.5 + 3 * np.sin(y * (2 * np.pi / 32)), 0, 1)
    fill = _mix(_plain(_rgb(0.76 + 0.05 * shade, 0.75, 0.7)), _rgb(0.13, 0.65, 1.0), band)
    return _mix(_plain(_rgb(0.40, 0.10, 0.96)), fill, mask)


def _pointillism(mask: Array, shade: float) -> Array:
    x, y = _axes()
    cover = np.clip(7.2 - np.hypot(x % 16 - 7.5, y % 16 - 7.5), 0, 1)
    colour = _mix(_plain(_rgb(0.15, 0.45, 0.97)), _rgb(0.36 + 0.05 * shade, 0.85, 0.55), _cells(mask))
    return _mix(_plain(_rgb(0.13, 0.03, 1.0)), colour, cover)


def _chalk(mask: Array, shade: float) -> Array:
    grain = np.clip(0.45 + 0.8 * _grain(), 0, 1)
    dust = np.clip(mask * 0.6 * grain + 0.75 * _edge(mask, 3.5), 0, 1)
    return _mix(_plain(_rgb(0.40, 0.38, 0.20)), _rgb(0.10 + 0.06 * shade, 0.25, 0.98), dust)


RENDERERS: dict[str, Callable[[Array, float], Array]] = {
    "flat": _flat,
    "pencil": _pencil,
    "ink": _ink,
    "neon": _neon,
    "mosaic": _mosaic,
    "watercolor": _watercolor,
    "blueprint": _blueprint,
    "stripes": _stripes,
    "pointillism": _pointillism,
    "chalk": _chalk,
}


def draw(object_name: str, style_name: str, seed: int) -> Image.Image:
    """One image of the Canvas world, SIZE x SIZE RGB; the same three arguments always give the same pixels.

    Raises:
        KeyError: an object or style the world does not have.
    """
    key = [seed, sorted(SILHOUETTES).index(object_name), sorted(RENDERERS).index(style_name)]
    rng = np.random.default_rng(key)
    mask = silhouette(object_name, rng)
    big = RENDERERS[style_name](mask, rng.random())
    image = Image.fromarray((np.clip(big, 0, 1) * 255).round().astype(np.uint8))
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)
