"""Images of the user's own to forget and to retain: folders named after what is in them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..pipelines import Backbone
from ..prompts import Concept, InputError, canvas

T = TypeVar("T")
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Picture:
    """An image file and the prompt it is an image of."""

    path: Path
    prompt: str


@dataclass(frozen=True)
class Filed:
    """An image of a data set laid out as `style/object/number.jpg`, its folders as `plain` gives them."""

    path: Path
    style: str
    object: str
    number: int


def plain(name: str) -> str:
    """A name as folders and people write it: "Van_Gogh" is "van gogh"."""
    return name.replace("_", " ").strip().lower()


def _names(path: Path, root: Path) -> list[str]:
    """The folders between root and file: of "Van_Gogh/Dogs/3.jpg" ["van gogh", "dogs"]."""
    return [plain(part) for part in path.relative_to(root).parts[:-1]]


def _files(root: Path, what: str) -> Iterator[Path]:
    if not root.is_dir():
        raise InputError(f"{what}: expected a folder of images, got {str(root)!r}")
    yield from sorted(p for p in root.rglob("*") if p.suffix.lower() in KINDS)


def filed(root: Path) -> list[Filed]:
    """The images of a folder laid out as UnlearnCanvas is, `./{style}/{object}/{1..20}.jpg`, by style, object, number.

    Raises:
        InputError: no folder, no image in it, or one that lies elsewhere or has no number for a name.
    """
    out = []
    for path in _files(root, "data set"):
        names = _names(path, root)
        if len(names) != 2 or not path.stem.isdigit():
            raise InputError(f"data set: expected images as style/object/1.jpg in {root}, got {path.relative_to(root)}")
        out.append(Filed(path, names[0], names[1], int(path.stem)))
    if not out:
        raise InputError(f"data set: no image in {root}, expected style/object/1.jpg")
    return sorted(out, key=lambda f: (f.style, f.object, f.number))


def of_concept(root: Path, concept: Concept, *, alone: bool) -> list[Path]:
    """The images of a concept: in folders of its name or a synonym's, on any level, so that "style/object/1.jpg" (the
    layout of UnlearnCanvas) works for both; in a folder without any such, all images, if `alone`.

    Raises:
        InputError: no folder, or no image of the concept in it.
    """
    files = list(_files(root, "forget-images"))
    named = [p for p in files if {plain(n) for n in concept.names} & set(_names(p, root))]
    if found := named or ([p for p in files if not _names(p, root)] if alone else []):
        return found
    raise InputError(
        f"forget-images: no image of {concept.name!r} in {root}: expected {', '.join(KINDS)} files in a folder of that "
        "name" + (", or directly in it" if alone else "")
    )


def retained(root: Path, gone: Sequence[Concept]) -> list[Picture]:
    """The images to stay with: all but those in folders named after what is being erased. The prompt of each is the
    text file beside it ("3.txt"), else for "style/object/3.jpg" the sentence of UnlearnCanvas, else its folder's name;
    directly in the root it is the empty prompt.

    Raises:
        InputError: no folder, no image to stay with, or a text file that is no text.
    """
    names = {plain(n) for c in gone for n in c.names}
    out = [Picture(p, _prompt(p, root)) for p in _files(root, "retain-images") if not names & set(_names(p, root))]
    if not out:
        raise InputError(
            f"retain-images: no image to stay with in {root}: expected {', '.join(KINDS)} files outside of folders of "
            + ", ".join(sorted(names))
        )
    return out


def _prompt(path: Path, root: Path) -> str:
    if (note := path.with_suffix(".txt")).exists():
        try:
            return note.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{note} is no readable text: expected the prompt of {path.name}") from error
    names = _names(path, root)
    return canvas.caption(names[-1], names[-2]) if len(names) > 1 else "".join(names)


def some(items: Sequence[T], count: int, seed: int) -> list[T]:
    """At most so many of them, drawn without order."""
    return list(items) if len(items) <= count else random.Random(seed).sample(list(items), count)


@torch.no_grad()
def read(paths: Sequence[Path], backbone: Backbone, *, batch: int) -> Tensor:
    """Latents of image files, [N, *latent_shape]: cropped to the middle and resized to what the pipeline draws.

    Raises:
        InputError: a file that is no image, or is damaged.
    """
    height, width = backbone.image_size
    parts = []
    for k in range(0, len(paths), batch):
        images = []
        for path in paths[k : k + batch]:
            try:
                with Image.open(path) as file:
                    image = ImageOps.exif_transpose(file).convert("RGB")
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise InputError(f"{path} is no readable image ({error}): replace it or take it away") from error
            images.append(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
        parts.append(backbone.latents(images))
    return torch.cat(parts)
