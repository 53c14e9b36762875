"""Judges trained anew on a user's copy of a data set, by UnlearnCanvas' split: images 1 to 18 of each style and object
train, 19 and 20 test.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel, ViTConfig

from ..erase import Filed, filed, write_folder
from ..pipelines import chosen_device, quiet, some, step_generator
from ..prompts import UNLEARN_CANVAS, InputError, World, first_line, unknown
from ._convert_judge import DOMAINS
from ._gallery import read_image
from ._judge import LENS_FILE, RECORD_FILE, Judges, Lens
from ._score import wilson

LAST_TRAINED = 18
TRAINING, TEST = "training images (1 to 18)", "test images (19 and 20)"


@dataclass(frozen=True)
class Lesson:
    """How a judge is trained.

    Attributes:
        start: a transformers image classifier (folder or Hub id) whose body is kept; "": a small ViT from scratch.
        epochs: passes over the training images.
        lr: learning rate of AdamW at its highest: it rises over the first tenth and falls to zero along a cosine.
        batch: images a step.
        seed: of order, flips and the new head.
        side: height and width the images are resized to; 0: the start's own, 224 from scratch.
    """

    start: str = ""
    epochs: int = 5
    lr: float = 1e-4
    batch: int = 32
    seed: int = 0
    side: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < 1:
            raise InputError(f"lr: expected a number between 0 and 1, got {self.lr}")
        if self.side < 0:
            raise InputError(f"side: expected pixels, got {self.side}")


def train_judge(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    kind: str,
    lesson: Lesson | None = None,
    world: World = UNLEARN_CANVAS,
    device: str | None = None,
) -> Path:
    """Train the judge of one kind on `data` (`./{style}/{object}/{1..20}.jpg`) and write it to the sub-folder of that
    kind, with its accuracy on the test images beside it.

    Raises:
        InputError: a folder laid out otherwise, a concept without training or test images, an unreadable image, a start
            that is no image classifier, a judge that is there already, or a device that is not.
    """
    if kind not in DOMAINS:
        raise unknown("kind of judge", kind, DOMAINS)
    lesson = lesson or Lesson()
    place = torch.device(chosen_device(device))
    train, test = split(Path(data), kind, world)
    labels = [n.replace(" ", "_") for n in world.names(kind)]
    torch.manual_seed(lesson.seed)
    model, lens = _student(lesson, labels)
    model.to(place)

    def fill(folder: Path) -> None:
        start = time.perf_counter()
        _fit(model, lens, lesson, train)
        accuracy = _accuracy(model, lens, test, lesson.batch)
        model.config.save_pretrained(folder)
        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        (folder / LENS_FILE).write_text(json.dumps(lens.to_json(), indent=1) + "\n", encoding="utf-8")
        told = {
            "kind": kind,
            "world": world.name,
            "accuracy on real images": accuracy,
            "training images": len(train),
            "lesson": asdict(lesson) | {"start": Path(lesson.start).name},
            "seconds": round(time.perf_counter() - start, 1),
        }
        (folder / RECORD_FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    return write_folder(Path(out) / kind, fill, holds="config.json")


def split(data: Path, kind: str, world: World) -> tuple[list[tuple[Filed, int]], list[tuple[Filed, int]]]:
    """Training and test images of a kind, each with its label's number. Styles and objects that the world does not have
    (UnlearnCanvas' ten others) are passed over.
    """
    numbers = {n.lower(): k for k, n in enumerate(world.names(kind))}
    rows = _of_world(data, world)
    train = [f for f in rows if f.number <= LAST_TRAINED]
    test = [f for f in rows if f.number > LAST_TRAINED]
    _check_whole(train, data, kind, world, TRAINING)
    _check_whole(test, data, kind, world, TEST)
    labelled = [[(f, numbers[getattr(f, kind)]) for f in part] for part in (train, test)]
    return labelled[0], labelled[1]


def held_out(data: Path, world: World) -> list[Filed]:
    """The test images, with every object and every style among them.

    Raises:
        InputError: a folder laid out otherwise, or a concept without test images.
    """
    rows = [f for f in _of_world(data, world) if f.number > LAST_TRAINED]
    for kind in DOMAINS:
        _check_whole(rows, data, kind, world, TEST)
    return rows


def _of_world(data: Path, world: World) -> list[Filed]:
    """The images of styles and objects that the world has."""
    names = {d: {n.lower() for n in world.names(d)} for d in DOMAINS}
    return [f for f in filed(data) if f.style in names["style"] and f.object in names["object"]]


def _check_whole(rows: Sequence[Filed], data: Path, kind: str, world: World, what: str) -> None:
    """Make sure that every concept of a kind is among some images."""
    there, names = {getattr(f, kind) for f in rows}, world.names(kind)
    if lacking := [n for n in names if n.lower() not in there]:
        raise InputError(
            f"{data} has no {what} of {some(lacking)} ({len(lacking)} of {len(names)} {kind}s lack them): "
            f"expected {world.name} as style/object/1.jpg to 20.jpg"
        )


def _student(lesson: Lesson, labels: list[str]) -> tuple[PreTrainedModel, Lens]:
    named = {"id2label": dict(enumerate(labels)), "label2id": {n: k for k, n in enumerate(labels)}}
    if not lesson.start:
        side = lesson.side or 224
        patch = 16 if side >= 128 and side % 16 == 0 else 8
        shape = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
        config = ViTConfig(image_size=side, patch_size=patch, **shape, **named)
        return AutoModelForImageClassification.from_config(config), Lens((side, side))
    try:
        with quiet():
            config = AutoConfig.from_pretrained(lesson.start, num_labels=len(labels), **named)
            model = AutoModelForImageClassification.from_pretrained(
                lesson.start, config=config, use_safetensors=True, ignore_mismatched_sizes=True, dtype=torch.float32
            )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot start from {lesson.start!r}: {first_line(error)}") from error
    lens = Lens.read(Path(lesson.start)) if Path(lesson.start).is_dir() else Lens()
    side = lesson.side or (lens.size or (0,))[0] or int(getattr(model.config, "image_size", 224))
    return model, Lens((side, side), lens.resample, lens.mean, lens.std)


def _batches(rows: Sequence[tuple[Filed, int]], size: int) -> Iterator[Sequence[tuple[Filed, int]]]:
    yield from (rows[k : k + size] for k in range(0, len(rows), size))


def _tensors(rows: Sequence[tuple[Filed, int]], lens: Lens, device: torch.device) -> tuple[Tensor, Tensor]:
    images = lens.see([read_image(f.path) for f, _ in rows], device)
    return images, torch.tensor([k for _, k in rows], device=device)


def _fit(model: PreTrainedModel, lens: Lens, lesson: Lesson, rows: list[tuple[Filed, int]]) -> None:
    """AdamW on cross entropy, images flipped at random; order and flips depend on seed and epoch alone."""
    steps = lesson.epochs * -(-len(rows) // lesson.batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lesson.lr, weight_decay=0.01)
    rise = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, lesson.lr, total_steps=steps, pct_start=min(0.1, 1 - 1 / steps), cycle_momentum=False
    )
    model.train()
    with tqdm(total=steps, desc="train-judge", unit="step", leave=False) as bar:
        for epoch in range(lesson.epochs):
            rng = step_generator(lesson.seed, epoch)
            order = torch.randperm(len(rows), generator=rng).tolist()
            for part in _batches([rows[k] for k in order], lesson.batch):
                x, y = _tensors(part, lens, model.device)
                flip = torch.rand(len(part), generator=rng) < 0.5
                x[flip] = x[flip].flip(-1)
                loss = F.cross_entropy(model(pixel_values=x).logits, y)
                if not loss.isfinite():
                    raise InputError(f"the judge's loss is {loss.item()} in epoch {epoch + 1}: lower --lr")
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                rise.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


@torch.no_grad()
def _accuracy(model: PreTrainedModel, lens: Lens, rows: list[tuple[Filed, int]], batch: int) -> dict[str, Any]:
    hits = 0
    for part in _batches(rows, batch):
        x, y = _tensors(part, lens, model.device)
        hits += int((model(pixel_values=x).logits.argmax(1) == y).sum())
    return told(hits, len(rows))


def told(hits: int, n: int) -> dict[str, Any]:
    """An accuracy as it is written down: percent, n, 95 % interval."""
    low, high = wilson(hits, n)
    return {"value": round(100 * hits / n, 2), "n": n, "low": round(100 * low, 2), "high": round(100 * high, 2)}


def measure(judges: Judges, data: str | os.PathLike[str], *, batch: int = 64) -> dict[str, dict[str, Any]]:
    """How often judges are right on the real images that they were not trained on (19 and 20): by kind. It is written
    beside each of them, and printed with every score from then on.

    Raises:
        InputError: a folder laid out otherwise, an object or a style without such images, or an unreadable one.
    """
    out = {}
    rows = held_out(Path(data), judges.world)
    names = {d: {n.lower(): n for n in judges.world.names(d)} for d in DOMAINS}
    seen: dict[str, list[str]] = {"object": [], "style": []}
    for k in range(0, len(rows), batch):
        verdict = judges.look([read_image(f.path) for f in rows[k : k + batch]], batch)
        seen["object"] += verdict.objects
        seen["style"] += verdict.styles
    for kind in DOMAINS:
        hits = sum(s == names[kind][getattr(f, kind)] for s, f in zip(seen[kind], rows, strict=True))
        out[kind] = told(hits, len(rows))
        path = judges.folders[kind] / RECORD_FILE
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        partial = path.with_name(f".{path.name}.part")
        partial.write_text(json.dumps({**record, "accuracy on real images": out[kind]}, indent=1) + "\n")
        partial.replace(path)
    return out
