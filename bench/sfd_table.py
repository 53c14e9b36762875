"""Score Forgetting Distillation on Canvas: the base in its many steps, the one-step generator that has forgotten
nothing, and what SFD makes of it, on the same prompts and seeds.

    python bench/sfd_table.py --work sfd-work --out docs/results/canvas-sfd

erases each of --concepts, scores it beside the one-step generator (which is scored beside the base), times drawing, and
writes OUT.jsonl (a row per concept and method), OUT.png (pictures) and a Markdown table to the screen. Every row says
KID (x1000, features of the Canvas judges) of the images without the concept from the base's images of the same cells
with other seeds, and the gap to the model retrained without the concept, where `bench/canvas_gold.py` made one. A rerun
goes on where it stopped.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from canvas_table import GAP, GOLD_ROWS, gap, rows_in

from erasers.erase import Eraser, Loop, configure, erase, settings_of, write_text
from erasers.eval import Case, Control, Evaluator, draw, evaluate, grid, save_image
from erasers.eval._evaluator import find
from erasers.eval.kid import KID
from erasers.pipelines import Backbone, load
from erasers.prompts import Concept, Prompt, canvas, canvas_grid

SCORES = ("ua", "synonym_ua", "held_out_ua", "ira", "cra", "neighbours", "in_prompt")
OTHER_SEEDS = (1188, 1288, 1388, 1488, 1588)
"""Of the base's images that KID compares with; used nowhere else."""


class Table:
    """The models and what they drew."""

    def __init__(self, model: str, work: Path) -> None:
        self.base, self.work = Control(load(model)), work
        self.fast = Control(load(f"{model}-onestep"))
        self.reference = work / "reference"
        self.concepts: dict[str, dict[str, Any]] = {}

    def tools(self, concept: Concept) -> dict[str, Evaluator]:
        """The judges' scores, and KID from the base's images that leave the concept out."""
        folder = self.reference / concept.name
        if not folder.is_dir():
            kept = [p for p in canvas_grid(OTHER_SEEDS) if concept.name not in (p.object, p.style)]
            gallery, _ = self.base.side(kept)
            gallery.save(folder)
        return {n: find(n)() for n in SCORES} | {"kid": KID(reference=str(folder))}

    def control(self, concept: Concept) -> dict[str, Any]:
        """The one-step generator scored as though it were an eraser of the concept, beside the base."""
        if concept.name not in self.concepts:
            prompts = tuple(self.base.plan(concept))
            many, seen_many = self.base.side(prompts)
            few, seen_few = self.fast.side(prompts)
            case = Case(concept, frozenset({concept.name}), few, many, seen_few, seen_many)
            self.concepts[concept.name] = {n: t.score(case).to_json() for n, t in self.tools(concept).items()}
        return self.concepts[concept.name]

    def row(self, method: str, concept: Concept, settings: dict[str, Any]) -> dict[str, Any]:
        """Erase, score."""
        backbone = self.base.backbone
        tool = configure(method, backbone.preset, settings)
        place = self.work / method / concept.name
        loop = Loop(place / "training", resume=True, checkpoint_every=20)
        eraser = erase(concept.name, backbone, method=tool, loop=loop)
        eraser.save_pretrained(place / "eraser", force=True, verify=backbone)
        control = self.fast if eraser.drawing else self.base
        report = evaluate(eraser, backbone, only=self.tools(concept), control=control)
        log = (place / "training" / "log.jsonl").read_text().splitlines()
        return {
            "model": backbone.name,
            "method": method,
            "concept": concept.name,
            "settings": settings,
            "effective": settings_of(tool),
            "seconds": json.loads(log[-1])["seconds"],
            "bytes": (place / "eraser" / eraser.payload.file).stat().st_size,
            "images": report.settings["images"],
            "scores": self.told({k: v.to_json() for k, v in report.scores.items()}),
            "one step, beside the base": self.told(self.control(concept)),
            "rates": self.rates(eraser),
        }

    @staticmethod
    def told(scores: dict[str, Any]) -> dict[str, Any]:
        """The same without the place of the reference on this computer."""
        where = "the base, the same cells, other seeds"
        return {**scores, "kid": {**scores["kid"], "details": {**scores["kid"]["details"], "reference": where}}}

    def rates(self, eraser: Eraser, runs: int = 3) -> dict[str, float]:
        """Images per second of each, drawn in turn: medians."""
        prompts, found = canvas_grid([688]), {"base": [], "one step": [], "eraser": []}  # type: ignore[var-annotated]
        sides: dict[str, tuple[Backbone, list[Eraser], Control]] = {
            "base": (self.base.backbone, [], self.base),
            "one step": (self.fast.backbone, [], self.fast),
            "eraser": (self.base.backbone, [eraser], self.base),
        }
        for run in range(runs + 1):
            for name, (backbone, erasers, control) in sides.items():
                start = time.perf_counter()
                draw(backbone, prompts, erasers, how=control.how)
                if run:
                    found[name].append(len(prompts) / (time.perf_counter() - start))
        return {name: round(statistics.median(v), 2) for name, v in found.items()}


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line for each concept and model: value (change against the model named beside it)."""
    names = (*SCORES, "kid")
    lines = [
        "| concept | model | beside | " + " | ".join([*names, GAP]) + " | images/s | s | KB |",
        "|---|---|---|" + "---:|" * (len(names) + 4),
    ]
    gold = rows_in(GOLD_ROWS)

    def line(r: dict[str, Any], what: tuple[str, str], scores: dict[str, Any], rate: float, cost: str) -> None:
        cells = [
            "-" if s["value"] is None else f"{s['value']:.1f} ({s['change']:+.1f})" for s in map(scores.get, names)
        ]  # type: ignore[index]
        cells.append(gap({**r, "scores": scores}, gold))
        lines.append(f"| {r['concept']} | {what[0]} | {what[1]} | {' | '.join(cells)} | {rate:.1f} | {cost} |")

    for r in rows:
        fast = r["one step, beside the base"]
        base = {k: {"value": s["control"], "change": 0.0} for k, s in fast.items()}
        line(r, ("base", "itself"), base, r["rates"]["base"], " | ")
        line(r, ("one step", "base"), fast, r["rates"]["one step"], " | ")
        beside = "one step" if r["method"] == "sfd" else "base"
        cost = f"{r['seconds']:.0f} | {r['bytes'] / 1e3:.0f}"
        line(r, (r["method"], beside), r["scores"], r["rates"]["eraser"], cost)
    return "\n".join(lines)


def pictures(table: Table, rows: list[dict[str, Any]], target: Path) -> None:
    """Two prompts that ask for each concept and one that does not, drawn by all three."""
    columns: dict[str, list[Any]] = {"base": [], "one step": []}
    labels = []
    for r in rows:
        gone = canvas.find(r["concept"])
        cells = [p for p in canvas_grid([188]) if gone.name in (p.object, p.style)][1:8:4]
        other = next(p for p in canvas_grid([188]) if gone.name not in (p.object, p.style) and p.object != "moon")
        shown: list[Prompt] = [*cells, other]
        eraser = Eraser.from_pretrained(table.work / r["method"] / r["concept"] / "eraser")
        columns["base"] += draw(table.base.backbone, shown, how=table.base.how).images
        columns["one step"] += draw(table.fast.backbone, shown, how=table.fast.how).images
        gallery = draw(table.base.backbone, shown, [eraser], how=table.base.how)
        columns.setdefault("erased", []).extend(gallery.images)
        labels += [f"{r['method']}, {r['concept']}: {p.text}" for p in shown]
    save_image(grid(columns, labels, cell=96), target)


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="canvas-sd")
    parser.add_argument("--methods", default="sfd")
    parser.add_argument("--concepts", default="house,cat,neon,mosaic")
    parser.add_argument("--settings", default="{}", help="JSON, over the preset's")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints, erasers and references")
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    args = parser.parse_args()
    log = args.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    table, settings = Table(args.model, args.work), json.loads(args.settings)
    for method in args.methods.split(","):
        effective = settings_of(configure(method, table.base.backbone.preset, settings))
        for name in args.concepts.split(","):
            if any((r["method"], r["concept"], r["effective"]) == (method, name, effective) for r in rows):
                continue
            rows.append(table.row(method, canvas.find(name), settings))
            write_text(log, "".join(json.dumps(r) + "\n" for r in rows))
            print(markdown(rows[-1:]), flush=True)
    pictures(table, rows, args.out.with_suffix(".png"))
    print(f"\n{markdown(rows)}")


if __name__ == "__main__":
    main()
