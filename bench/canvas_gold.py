"""The gold standard: a Canvas pipeline with its denoiser retrained in a world in which a concept was never drawn nor
named, and beside it the same pipeline with a denoiser that was never trained.

    python bench/canvas_gold.py --concepts cat,neon --work canvas-work --out docs/results/canvas-gold

trains (resumable: the same command goes on where it was killed; about an hour a concept on two cores), with the text
encoders and the VAE of the bundled pipeline, writes each pipeline into WORK/MODEL-without-CONCEPT, scores it like an
eraser of the concept beside the bundled one (`--model canvas-flow`: the other one, into the same files), and writes:

- OUT.jsonl: rows of the methods `retrained` and `untrained`. `erasers benchmark --import OUT.jsonl` takes them into a
  folder of cells, where they fill the columns `retrained` and `gap` of the table and `gap to retrained` of every
  leaderboard; `bench/canvas_table.py` reads them for its tables.
- OUT/: of each row the eight images that a benchmark keeps, and the unerased ones; the import brings them along.
- OUT-MODEL-CONCEPT.png: every image that was scored, in the order of the plan: each as the base draws it, below it as
  the retrained model does, below that what was asked for; red where a judge does not see that in the retrained image.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from erasers.erase import write_text
from erasers.eval import Case, Control, Gallery, Report, Verdict, choose, draw, evaluators, save_image
from erasers.eval._benchmark import real_accuracy, shown
from erasers.eval._cells import SCHEMA, digest
from erasers.eval._evaluate import judged
from erasers.eval._gallery import loaded_as
from erasers.eval._paired import hits
from erasers.pipelines import load
from erasers.pipelines.canvas import flow, models
from erasers.pipelines.canvas import train as recipe
from erasers.prompts import Prompt, canvas

COLUMNS, LABEL = 20, 24
MODELS = ("canvas-sd", "canvas-flow")
IMAGES = ("fid", "kid", "lpips")
"""Scored beside the judges' own: against the world's drawings, and the base's image of the same prompt and seed."""


def marked(folder: Path, model: str, about: dict[str, str]) -> Path:
    """The recipe's mark, written last: a folder that has it is whole. How the bundled model is called stands in it."""
    call = {"call": {"max_sequence_length": 0}} if model == "canvas-flow" else {}
    write_text(folder / "canvas.json", json.dumps({"world": "canvas", **about, **call}) + "\n")
    return folder


def retrain(model: str, name: str, work: Path) -> tuple[Path, dict[str, Any]]:
    """The pipeline that never saw the concept; and how it was trained: its plan, seconds, last logged loss."""
    folder, label = work / f"{model}-without-{name}", f"{model.removeprefix('canvas-')}-without-{name}"
    if not (folder / "canvas.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        pipe: Any = load(model, dtype="float32").pipe
        kept = recipe.world(recipe.PER_CELL, 0, work / "world.safetensors").without(name)
        words = recipe.captions(kept, recipe.CAPTIONS_PER_IMAGE, 0)
        if model == "canvas-sd":
            made = recipe.train_sd(work, label, kept, words, pipe.text_encoder, pipe.tokenizer, pipe.vae)
        else:
            towers = (pipe.text_encoder, pipe.text_encoder_2)
            moments = recipe.latents(work, pipe.vae, kept, label)
            made = flow.train_flow(work, label, moments, words=words, towers=towers, tok=pipe.tokenizer, vae=pipe.vae)
        made.save_pretrained(folder)
        marked(folder, model, {"without": name})
    journal = json.loads((work / f"{label}.json").read_text())
    logged = (work / f"{label}.log.jsonl").read_text().splitlines()
    return folder, {**journal["plan"], "seconds": journal["seconds"], "loss": json.loads(logged[-1])["loss"]}


def untrained(model: str, work: Path) -> Path:
    """The pipeline with random weights in its denoiser: what "forgets" everything."""
    folder = work / f"{model}-untrained"
    if not (folder / "canvas.json").exists():
        pipe: Any = load(model, dtype="float32").pipe
        torch.manual_seed(0)
        if model == "canvas-sd":
            made: Any = recipe.assemble_sd(models.unet(), pipe.vae, pipe.text_encoder, pipe.tokenizer)
        else:
            towers = (pipe.text_encoder, pipe.text_encoder_2)
            made = flow.assemble(models.transformer(), pipe.vae, towers, pipe.tokenizer)
        made.save_pretrained(folder)
        marked(folder, model, {"untrained": "yes"})
    return folder


def sheet(prompts: Sequence[Prompt], sides: Sequence[Gallery], seen: Verdict) -> Image.Image:
    """All images, base above retrained, with the object and the style asked for in two lines below."""
    side = sides[0].images[0].width
    tall, font = 2 * side + LABEL, ImageFont.load_default(9)
    out = Image.new("RGB", (COLUMNS * side, -(-len(prompts) // COLUMNS) * tall), "white")
    pen = ImageDraw.Draw(out)
    for k, p in enumerate(prompts):
        x, y = (k % COLUMNS) * side, (k // COLUMNS) * tall
        for line, gallery in enumerate(sides):
            out.paste(gallery.images[k].convert("RGB"), (x, y + line * side))
        for line, (word, saw) in enumerate(((p.object, seen.objects[k]), (p.style, seen.styles[k]))):
            pen.text((x + 2, y + 2 * side + 1 + 11 * line), word, "black" if word == saw else "red", font)
    return out


def pictures(name: str, sides: Sequence[Gallery], seen: Sequence[Verdict], *, place: Path, method: str) -> list[dict]:
    """The images that a benchmark keeps of a cell, as files in OUT/MODEL, named as seen from OUT.jsonl."""
    rows = []
    for k in shown(sides[0].prompts, frozenset({name})):
        p = sides[0].prompts[k]
        files = {}
        for what, folder, gallery in (("original", "original", sides[0]), ("file", f"{method}-{name}", sides[1])):
            code = hashlib.sha256(f"{p.text}|{p.seed}".encode()).hexdigest()[:12]
            path = save_image(gallery.images[k], place / folder / f"{code}.png")
            files[what] = path.relative_to(place.parents[1]).as_posix()
        saw = [[v.objects[k], v.styles[k]] for v in seen]
        asks = name in (p.object, p.style)
        rows.append({**asdict(p), "asks": asks, **files, "saw_original": saw[0], "saw": saw[1]})
    return rows


def score(method: str, name: str, folder: Path, control: Control, out: Path) -> dict[str, Any]:
    """A row of results, its pictures, and of a retrained model the sheet."""
    concept = canvas.find(name)
    model = control.backbone.name
    prompts = tuple(control.plan(concept))
    base, seen_base = control.side(prompts)
    gallery = draw(load(str(folder), dtype="float32"), prompts, how=control.how, label=f"{method} {name}")
    seen = control.judges.look(gallery.images)
    case = Case(concept, frozenset({name}), gallery, base, seen, seen_base)
    scores = {n: t.score(case) for n, t in choose([*evaluators(unasked=True), *IMAGES]).items()}
    report = Report(scores, {name: scores}, {}, prompts, seen, seen_base)
    if method == "retrained":
        save_image(sheet(prompts, (base, gallery), seen), out.with_name(f"{out.name}-{model}-{name}.png"))
    figures = {n: s.to_json() for n, s in scores.items()}
    told = judged(control.judges, prompts, seen_base)
    return {
        "schema": SCHEMA,
        "model": model,
        "method": method,
        "settings": {},
        "concept": name,
        "seed": 0,
        "images": len(prompts),
        "sampling": asdict(control.how),
        "loaded": loaded_as(control.backbone),
        "judge": told["judge accuracy on the unerased model"],
        "judge_real": real_accuracy(told["judge accuracy on real images"]),
        "scores": figures,
        "by_concept": {name: figures},
        "hits": hits(report),
        "hits_control": hits(report, control=True),
        "pictures": pictures(name, (base, gallery), (seen_base, seen), place=out / model, method=method),
    }


def rows(model: str, name: str, control: Control, work: Path, out: Path) -> list[dict[str, Any]]:
    """Retrain, and score what was retrained and what was never trained."""
    folder, training = retrain(model, name, work)
    seconds, loss = training.pop("seconds"), training.pop("loss")
    size = sum(p.stat().st_size for p in folder.glob("*/diffusion_pytorch_model.safetensors") if p.parent.name != "vae")
    return [
        {
            **score("retrained", name, folder, control, out),
            "effective": training,
            "digest": digest(training),
            "seconds": round(seconds, 1),
            "loss": loss,
            "bytes": size,
        },
        {
            **score("untrained", name, untrained(model, work), control, out),
            "effective": {"steps": 0},
            "digest": digest({"steps": 0}),
        },
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Retrain and score what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="canvas-sd", choices=MODELS)
    parser.add_argument("--concepts", default="cat,neon")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, logs and pipelines")
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    args = parser.parse_args(argv)
    names = [canvas.find(n).name for n in args.concepts.split(",")]
    log, control = args.out.with_name(f"{args.out.name}.jsonl"), None
    found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for name in names:
        if any((r["model"], r["concept"]) == (args.model, name) for r in found):
            continue
        start = time.perf_counter()
        control = control or Control(load(args.model, dtype="float32"))
        new = rows(args.model, name, control, args.work, args.out)
        found += new
        log.parent.mkdir(parents=True, exist_ok=True)
        write_text(log, "".join(json.dumps(r) + "\n" for r in found))
        for row in new:
            figures = {k: v["value"] for k, v in row["scores"].items()}
            print(row["method"], name, figures, f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
