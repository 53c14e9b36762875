"""Concepts of Canvas erased one after the other: what each step does to those erased before and to what stays.

    python bench/canvas_sequence.py --methods uce,esd --work sequence --out docs/results/canvas-sequence.json
    python bench/canvas_sequence.py --print --out docs/results/canvas-sequence.json
    python bench/canvas_sequence.py --picture sequence.png --methods esd --work sequence

UnlearnCanvas' sequential unlearning in two ways: each eraser made on top of those before it (`erase --on`), as
published, and each made alone on the base, attached beside the others. After each step all erasers so far are scored
together by `erasers.eval.in_sequence`, with the unerased model beside. Writes OUT and prints a Markdown table of each
method and way, and how often the prompts of one erased concept draw another one. A run that was stopped goes on where
it was: erasers, trainings and scores lie in WORK. --picture draws a prompt of each concept, and some of what stays,
after each step of the first method on top.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from canvas_table import figure
from PIL import Image

from erasers.erase import Eraser, Loop, checkpoints, erase
from erasers.erase._files import write_text
from erasers.eval import Control, draw, grid, in_sequence
from erasers.pipelines import Backbone, load
from erasers.prompts import Prompt, canvas

FIVE = "moon,cat,house,mosaic,neon"
KEPT = ("ira", "cra", "neighbours", "in_prompt")
WAYS = {"on top": True, "alone": False}


def chain(method: str, concepts: Sequence[str], backbone: Backbone, *, on_top: bool, work: Path) -> list[Eraser]:
    """An eraser of each concept, in their order, made on top of those before it or on the base."""
    made: list[Eraser] = []
    for k, concept in enumerate(concepts):
        below = made if on_top else []
        place = work / "-".join([method, *([*concepts[:k], "then"] if below else []), concept])
        if not place.exists():
            training = place.with_suffix(".training")
            loop = Loop(work=training, resume=bool(checkpoints(training)))
            eraser = erase(concept, backbone, method=method, seed=0, on=below, loop=loop)
            eraser.save_pretrained(place)
        made.append(Eraser.from_pretrained(place))
    return made


def scored(method: str, way: str, concepts: Sequence[str], control: Control, work: Path) -> dict:
    """A row: UA of every concept after each step, and the means of what stays."""
    file = work / f"{method}-{way.replace(' ', '-')}-{'-'.join(concepts)}.json"
    if file.exists():
        return json.loads(file.read_text())
    erasers = chain(method, concepts, control.backbone, on_top=WAYS[way], work=work)
    steps = in_sequence(erasers, control.backbone, only=("ua", *KEPT), control=control)
    row = {
        "method": method,
        "way": way,
        "on top": steps.on_top,
        "model": control.backbone.name,
        "settings": erasers[-1].recipe.settings,
        "seed": 0,
        "steps": [
            {
                "erased": part,
                "ua": [r for r in steps.table("ua") if r["step"] == k],
                "scores": {n: s.to_json() for n, s in report.scores.items()},
                "instead": {n: found["ua"].details["drawn_instead"] for n, found in report.by_concept.items()},
                "images": len(report.prompts),
            }
            for k, (part, report) in enumerate(zip(steps.erased, steps.reports, strict=True), start=1)
        ],
    }
    write_text(file, json.dumps(row))
    return row


def picture(method: str, concepts: Sequence[str], backbone: Backbone, work: Path) -> Image.Image:
    """A line for each erased concept and for four that stay, a column for each step; every prompt with seed 188."""
    erasers = chain(method, concepts, backbone, on_top=True, work=work)
    objects, styles = ([c.name for c in s if c.name not in concepts] for s in (canvas.OBJECTS, canvas.STYLES))
    pairs = [(c, styles[0]) if canvas.find(c).kind == "object" else (objects[0], c) for c in concepts]
    pairs += zip(objects[1:5], styles[1:5], strict=True)
    prompts = [Prompt(canvas.caption(*p), 188) for p in pairs]
    heads = ["original", *(f"{'then ' * (k > 0)}{c}" for k, c in enumerate(concepts))]
    columns = {head: draw(backbone, prompts, erasers[:k]).images for k, head in enumerate(heads)}
    return grid(columns, [f"{o}, {s}" for o, s in pairs], cell=96, title=f"{method}, each made on top of those before")


def markdown(row: dict) -> str:
    """One line a step: UA of every concept erased by then, the share of its images in which another erased one is seen,
    the change of what stays, and the number of images.
    """
    concepts = [n for step in row["steps"] for n in step["erased"]]
    heads = ["erased now", *(f"UA {n}" for n in concepts), "shows another", *KEPT, "images"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for step in row["steps"]:
        ua = {r["concept"]: r["value"] for r in step["ua"]}
        gone = ["" if n not in ua else f"{ua[n]:.1f}" for n in concepts]
        another = sum(n for saw in step["instead"].values() for label, n in saw.items() if label in ua)
        another /= sum(r["n"] for r in step["ua"])
        stay = [figure(step["scores"][n]) for n in KEPT]
        cells = [*step["erased"], *gone, f"{100 * another:.1f}", *stay, str(step["images"])]
        lines.append("| " + " | ".join(cells) + " |")
    return f"### `{row['method']}`, each made {row['way']}\n\n" + "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, of what is there or of what is made first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="canvas-sd")
    parser.add_argument("--methods", default="uce,esd")
    parser.add_argument("--concepts", default=FIVE, help="in the order in which they are erased")
    parser.add_argument("--work", type=Path, default=Path("sequence"))
    parser.add_argument("--out", type=Path, default=Path("canvas-sequence.json"))
    parser.add_argument("--print", action="store_true", help="format the rows of OUT; draw and write nothing")
    parser.add_argument("--picture", type=Path, help="draw this file instead")
    args = parser.parse_args(argv)
    if args.picture:
        method, concepts = args.methods.split(",")[0], args.concepts.split(",")
        picture(method, concepts, load(args.model), args.work).save(args.picture)
        return
    if args.print:
        rows = json.loads(args.out.read_text())
    else:
        args.work.mkdir(parents=True, exist_ok=True)
        control = Control(load(args.model))
        pairs = [(m, w) for m in args.methods.split(",") for w in WAYS]
        rows = [scored(m, w, args.concepts.split(","), control, args.work) for m, w in pairs]
        write_text(args.out, json.dumps(rows, indent=1))
    print("\n".join(markdown(row) for row in rows), flush=True)


if __name__ == "__main__":
    main()
