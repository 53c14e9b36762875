"""The gold standard: `canvas-sd` with its denoiser retrained in a world in which a concept was never drawn nor named.

    python bench/canvas_gold.py --concepts cat,neon --work canvas-work --out docs/results/canvas-gold

trains (resumable: the same command goes on where it was killed; about an hour a concept on two cores), with the text
encoder and the VAE of the bundled pipeline, writes each pipeline into WORK/retrained-CONCEPT, scores it like an eraser
of the concept beside `canvas-sd`, and writes OUT.jsonl: rows of the method `retrained`, from which `erasers benchmark
--import OUT.jsonl` fills the columns `retrained` and `gap`. OUT-CONCEPT.png holds every image that was scored, in the
order of the plan: each as the base draws it, and below it as the retrained model does.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from erasers.erase import write_text
from erasers.eval import Case, Control, Report, choose, draw, save_image
from erasers.eval._paired import hits
from erasers.pipelines import load
from erasers.pipelines.canvas.train import CAPTIONS_PER_IMAGE, PER_CELL, captions, train_sd, world
from erasers.prompts import canvas

COLUMNS = 20


def retrain(name: str, work: Path) -> tuple[Path, float]:
    """The pipeline that never saw the concept, and the seconds it took."""
    folder, label = work / f"retrained-{name}", f"sd-without-{name}"
    if not (folder / "canvas.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        pipe: Any = load("canvas-sd", dtype="float32").pipe
        kept = world(PER_CELL, 0, work / "world.safetensors").without(name)
        words = captions(kept, CAPTIONS_PER_IMAGE, 0)
        made = train_sd(work, label, kept, words, pipe.text_encoder, pipe.tokenizer, pipe.vae)
        made.save_pretrained(folder)
        write_text(folder / "canvas.json", json.dumps({"world": "canvas", "without": name}) + "\n")
    return folder, json.loads((work / f"{label}.json").read_text())["seconds"]


def sheet(base: list[Image.Image], retrained: list[Image.Image]) -> Image.Image:
    """All images, in two lines each: the base's, and below them the retrained model's."""
    side = base[0].width
    lines = -(-len(base) // COLUMNS)
    out = np.full((lines * (2 * side + 8), COLUMNS * side, 3), 255, np.uint8)
    for k, pair in enumerate(zip(base, retrained, strict=True)):
        y, x = (k // COLUMNS) * (2 * side + 8), (k % COLUMNS) * side
        out[y : y + 2 * side, x : x + side] = np.concatenate([np.asarray(i.convert("RGB")) for i in pair])
    return Image.fromarray(out)


def score(name: str, folder: Path, control: Control, out: Path) -> dict[str, Any]:
    """A row of results, and the sheet."""
    concept = canvas.find(name)
    prompts = tuple(control.plan(concept))
    base, seen_base = control.side(prompts)
    gallery = draw(load(str(folder)), prompts, how=control.how)
    seen = control.judges.look(gallery.images)
    case = Case(concept, frozenset({name}), gallery, base, seen, seen_base)
    scores = {n: t.score(case) for n, t in choose(None).items()}
    report = Report(scores, {name: scores}, {}, prompts, seen, seen_base)
    save_image(sheet(list(base.images), list(gallery.images)), out.with_name(f"{out.name}-{name}.png"))
    return {
        "model": control.backbone.name,
        "method": "retrained",
        "settings": {},
        "effective": {},
        "concept": name,
        "images": len(prompts),
        "scores": {k: v.to_json() for k, v in scores.items()},
        "hits": hits(report),
        "hits_control": hits(report, control=True),
    }


def main() -> None:
    """Retrain and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", default="cat,neon")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, logs and pipelines")
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    args = parser.parse_args()
    log, control = args.out.with_suffix(".jsonl"), Control(load("canvas-sd"))
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for name in args.concepts.split(","):
        if any(r["concept"] == name for r in rows):
            continue
        start = time.perf_counter()
        folder, seconds = retrain(name, args.work)
        row = {**score(name, folder, control, args.out), "seconds": round(seconds, 1)}
        rows.append(row)
        write_text(log, "".join(json.dumps(r) + "\n" for r in rows))
        figures = {k: v["value"] for k, v in row["scores"].items()}
        print(name, figures, f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
