"""The pipelines that come with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CANVAS = Path(__file__).parent / "canvas"


@dataclass(frozen=True)
class Bundled:
    """Where a bundled pipeline lies and what it is.

    Attributes:
        folder: a plain diffusers folder; of a distilled generator its LoRA, scheduler and `canvas.json`.
        description: in one line.
        base: the bundled pipeline under that LoRA; "" where the folder is the whole pipeline.
    """

    folder: Path
    description: str
    base: str = ""

    @property
    def there(self) -> bool:
        """Whether its files are."""
        return (self.folder / "canvas.json").exists()


BUNDLED: dict[str, Bundled] = {
    "canvas-sd": Bundled(CANVAS / "sd", "Stable Diffusion 1.x in small: 12 objects x 10 styles, 64 x 64 pixels"),
    "canvas-flow": Bundled(CANVAS / "flow", "Stable Diffusion 3.5 in small: the same images, drawn by rectified flow"),
    "canvas-sd-onestep": Bundled(
        CANVAS / "sd-onestep", "canvas-sd distilled to one step, nothing forgotten: a LoRA of it", "canvas-sd"
    ),
}
