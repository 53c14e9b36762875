"""Concepts of Canvas erased one after the other: what each step does to those erased before and to what stays.

    python bench/canvas_sequence.py --methods uce,esd --work sequence --out docs/results/canvas-sequence.json
    python bench/canvas_sequence.py --print --out docs/results/canvas-sequence.json

UnlearnCanvas' sequential unlearning in two ways: each eraser made on top of those before it (`erase --on`), as published,
and each made alone on the base, attached beside the others. After each step all erasers so far are scored together by
`erasers.eval.in_sequence`, with the unerased model beside. Writes OUT and prints a Markdown table of each method and way.
A run that was stopped goes on where it was: erasers, trainings and scores lie in WORK.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from erasers.erase import Eraser, Loop, erase
from erasers.eval import Control, in_sequence
from erasers.pipelines import Backbone, load

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
            loop = Loop(work=place.with_suffix(".training"), checkpoint_every=20, resume=True)
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
                "images": len(report.prompts),
            }
            for k, (part, report) in enumerate(zip(steps.erased, steps.reports, strict=True), start=1)
        ],
    }
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(row))
    partial.replace(file)
    return row


def markdown(row: dict) -> str:
    """One line a step: UA of every concept erased by then, the change of what stays, and the number of images."""
    concepts = [n for step in row["steps"] for n in step["erased"]]
    heads = ["erased now", *(f"UA {n}" for n in concepts), *KEPT, "images"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]

    def stays(score: dict) -> str:
        return "-" if score["value"] is None else f"{score['value']:.1f} ({score['change']:+.1f})"

    for step in row["steps"]:
        ua = {r["concept"]: r["value"] for r in step["ua"]}
        gone = ["" if n not in ua else f"{ua[n]:.1f}" for n in concepts]
        cells = [*step["erased"], *gone, *(stays(step["scores"][n]) for n in KEPT), str(step["images"])]
        lines.append("| " + " | ".join(cells) + " |")
    return f"### `{row['method']}`, each made {row['way']}\n\n" + "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, of what is there or of what is made first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="canvas-sd")
    parser.add_argument("--methods", default="uce,esd")
    parser.add_argument("--concepts", default=FIVE, help="in the order in which they are erased")
    parser.add_argument("--work", type=Path, default=Path("sequence"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--print", action="store_true", help="format the rows of OUT; draw and write nothing")
    args = parser.parse_args(argv)
    if args.print:
        rows = json.loads(args.out.read_text())
    else:
        args.work.mkdir(parents=True, exist_ok=True)
        control = Control(load(args.model))
        pairs = [(m, w) for m in args.methods.split(",") for w in WAYS]
        rows = [scored(m, w, args.concepts.split(","), control, args.work) for m, w in pairs]
        partial = args.out.with_suffix(".part")
        partial.write_text(json.dumps(rows, indent=1) + "\n")
        partial.replace(args.out)
    print("\n".join(markdown(row) for row in rows), flush=True)


if __name__ == "__main__":
    main()
