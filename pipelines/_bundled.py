"""The pipelines that come with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CANVAS = Path(__file__).parent / "canvas"


@dataclass(frozen=True)
class Bundled:
    """Where a bundled pipeline lies and what it is."""

    folder: Path
    description: str


BUNDLED: dict[str, Bundled] = {
    "canvas-sd": Bundled(CANVAS / "sd", "Stable Diffusion 1.x in small: 12 objects x 10 styles, 64 x 64 pixels"),
    "canvas-flow": Bundled(CANVAS / "flow", "Stable Diffusion 3.5 in small: the same images, drawn by rectified flow"),
}
