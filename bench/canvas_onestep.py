"""Make `canvas-sd-onestep`: distil `canvas-sd` into one step by SFD's own code, nothing forgotten, and score it.

    python bench/canvas_onestep.py --work onestep-work

trains (the same command goes on where it was killed), writes a LoRA in float16, its scheduler and `canvas.json` into
`--out`, and prints the judges' accuracy and the time per image of the base and of the generator, on the same 600
prompts and seeds. While it trains, WORK/judged.jsonl gets a row every `--judge-every` steps and WORK/pictures a grid:
the judges' accuracy on one drawing of each of the 120 cells, and the kernel distance of their features from the base's
drawings with other seeds (`apart`); the base's own are the first row.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageClassification

from erasers.erase import Loop, Session, Task, configure, settings_of, solve
from erasers.erase._distil import Distiller
from erasers.erase._files import LORA_FILE, peft_keys, write_folder, write_scheduler, write_tensors
from erasers.erase.sfd import SFD
from erasers.eval import Judges, Sampling, draw, judges, sampling
from erasers.pipelines import Backbone, canvas_folder, load
from erasers.prompts import Prompt, canvas, canvas_grid

HERE = Path(__file__).parent.parent / "pipelines/canvas/sd-onestep"
MOST = 1_900_000
"""Bytes that the LoRA's file may have."""
SETTINGS: dict[str, Any] = {
    "start": "base",
    "forget": 0.0,
    "rank": 12,
    "contexts": 6,
    "batch": 16,
    "warmup": 300,
    "warmup_lr": 3e-3,
    "images": 2000,
    "sampler_steps": 12,
    "steps": 800,
    "lr": 2e-4,
    "lr_fake": 6e-4,
    "decay": False,
    "ema": 0.99,
}


@torch.no_grad()
def features(images: Sequence[Image.Image]) -> Tensor:
    """What both judges make of images before they decide, [N, D]."""
    x = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 127.5 - 1
    nets = [AutoModelForImageClassification.from_pretrained(canvas_folder(f"judge-{k}")) for k in ("object", "style")]
    return torch.cat([net.eval().base_model(pixel_values=x).pooler_output.flatten(1) for net in nets], 1).double()


def apart(a: Tensor, b: Tensor) -> float:
    """Kernel distance of features of the same prompts, both [N, D]: cubic kernel (arXiv 1801.01401), x 1000.
    Images of one prompt are not compared with each other, neither within a set (which makes it unbiased) nor across.
    """
    means = []
    for x, y in ((a, a), (b, b), (a, b)):
        kernel = (1 + x @ y.T / x.shape[1]) ** 3
        means.append((kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1)))
    return round(1000 * float(means[0] + means[1] - 2 * means[2]), 3)


def accuracy(seen: Judges, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> dict[str, float]:
    """Share of images in which the judges see what was asked for, in percent."""
    verdict, n = seen.look(images), len(prompts)
    return {
        "object": round(100 * sum(a == p.object for a, p in zip(verdict.objects, prompts, strict=True)) / n, 2),
        "style": round(100 * sum(a == p.style for a, p in zip(verdict.styles, prompts, strict=True)) / n, 2),
        "n": n,
    }


class Judged(Distiller):
    """The trainer, watched by the judges."""

    def watch(self, work: Path, every: int) -> "Judged":
        """Where to write, and how often."""
        self.log, self.every, self.pictures = work / "judged.jsonl", every, work / "pictures"
        return self

    def start(self, session: Session) -> None:
        """Also looks at the base."""
        super().start(session)
        self.pictures.mkdir(parents=True, exist_ok=True)
        with self.backbone.using(None):
            self.reference = features(draw(self.backbone, canvas_grid([288])).images)
        self.judges = Judges(canvas_folder("judge-object"), canvas_folder("judge-style"))
        rows = [json.loads(r) for r in self.log.read_text().splitlines()] if self.log.exists() else []
        self.done = {r["step"] for r in rows}
        if "base" not in self.done:
            with self.backbone.using(None):
                self._judge("base", sampling(self.backbone))

    def _judge(self, step: int | str, how: Sampling) -> None:
        prompts = canvas_grid([188])
        start = time.perf_counter()
        images = draw(self.backbone, prompts, how=how).images
        row = {"step": step, **accuracy(self.judges, list(images), prompts)}
        row |= {"apart": apart(features(images), self.reference), "seconds": round(time.perf_counter() - start, 2)}
        sheet = np.concatenate([np.concatenate([*map(np.asarray, images[k : k + 12])], 1) for k in range(0, 120, 12)])
        Image.fromarray(sheet).save(self.pictures / f"{step:>06}.png")
        with self.log.open("a") as f:
            f.write(json.dumps(row) + "\n")
        print(row, flush=True)

    def step(self, k: int, rng: torch.Generator) -> Mapping[str, float]:
        """One of the distillation's, then a look now and then."""
        logs = super().step(k, rng)
        last = k + 1 in (self.settings.warmup, self.steps)
        if ((k + 1) % self.every == 0 or last) and k + 1 not in self.done:
            with self.showing():
                self._judge(k + 1, Sampling(steps=self.settings.draw_steps, guidance=1.0, batch=60))
        return logs


@dataclass(frozen=True)
class Watched(SFD):
    """SFD, watched; the same settings, the same result."""

    def run(self, backbone: Backbone, task: Task) -> Judged:
        """What trains it."""
        return Judged(self, backbone, task).watch(WORK, EVERY)


WORK, EVERY = Path("onestep-work"), 100


def train(work: Path, out: Path, settings: dict[str, Any], force: bool) -> None:
    backbone = load("canvas-sd")
    base = configure("sfd", "canvas", settings)
    tool = Watched(**settings_of(base))
    (work / "run").mkdir(parents=True, exist_ok=True)
    task = Task((), tuple(canvas.CONCEPTS.values()), 0)
    loop = Loop(work / "run", resume=True, checkpoint_every=50)
    factors = solve(tool, backbone, task=task, loop=loop)
    drawing = base.run(backbone, task).drawing
    log = [json.loads(r) for r in (work / "judged.jsonl").read_text().splitlines()]
    note = {"world": "canvas", "base": "canvas-sd", "drawing": asdict(drawing)}
    note |= {"settings": settings_of(base), "judged": [log[0], log[-1]]}

    def fill(folder: Path) -> None:
        write_tensors(folder / LORA_FILE, {k: v.half() for k, v in peft_keys(factors).items()}, {})
        write_scheduler(folder, drawing.scheduler)
        (folder / "canvas.json").write_text(json.dumps(note, indent=1) + "\n")

    write_folder(out, fill, holds="canvas.json", force=force)
    size = (out / LORA_FILE).stat().st_size
    print(f"{out / LORA_FILE}: {size / 1e6:.2f} MB" + (f", more than {MOST / 1e6} MB" if size > MOST else ""))


def score() -> None:
    """Base and generator as they are shipped, on all cells with five seeds."""
    prompts = canvas_grid()
    for name in ("canvas-sd", "canvas-sd-onestep"):
        backbone = load(name)
        how = sampling(backbone)
        draw(backbone, prompts[:60], how=how)
        gallery = draw(backbone, prompts, how=how)
        rate = len(prompts) / gallery.manifest["seconds"]
        found = accuracy(judges(backbone), list(gallery.images), prompts)
        print(f"{name}, {how.steps} steps, guidance {how.guidance:g}: {found}, {rate:.1f} images/s", flush=True)


def main() -> None:
    global WORK, EVERY
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for checkpoints and logs")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--settings", default="{}", help='JSON, over the recipe\'s: {"steps": 1000}')
    parser.add_argument("--judge-every", type=int, default=100)
    parser.add_argument("--force", action="store_true", help="replace what --out holds")
    parser.add_argument("--score", action="store_true", help="only score what is there")
    args = parser.parse_args()
    WORK, EVERY = args.work, args.judge_every
    if not args.score:
        train(args.work, args.out, {**SETTINGS, **json.loads(args.settings)}, args.force)
    if args.out.resolve() == HERE.resolve():
        score()


if __name__ == "__main__":
    main()
