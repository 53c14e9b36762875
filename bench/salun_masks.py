"""Whether SalUn's mask matters: concepts x four masks x three ways out, and the saliency mask against each other one.

    python bench/salun_masks.py --work salun-work --out docs/results/salun-masks

Ways out: `delta` (the trained values themselves), `svd` (the LoRA of rank `--rank` made of that delta), `lora` (the
mask picks layers, and a LoRA is trained there: `{"dense": false}`). A rerun goes on where it stopped. Writes OUT.jsonl,
one row per cell as `erasers benchmark` writes them, and prints Markdown: the means, what the saliency mask adds to each
other one on the same prompts and seeds, with 95 % intervals (a bootstrap over whole concepts), and every cell.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from canvas_table import GAP, GOLD_ROWS, gap, rows_in

from erasers.erase import write_text
from erasers.eval import Plan, benchmark, paired
from erasers.eval._cells import key_of
from erasers.pipelines import load

MASKS = ("saliency", "random", "none", "lowest")
WAYS: dict[str, dict[str, Any]] = {"delta": {}, "svd": {}, "lora": {"dense": False}}
CONCEPTS = ("house", "cat", "neon", "mosaic")
SCORES = ("ua", "synonym_ua", "held_out_ua", "ira", "cra", "neighbours", "in_prompt")
COMPARED = ("ua", "ira", "cra", "in_prompt")


def run(args: argparse.Namespace) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows by (way, mask), in the order of the concepts."""
    found, preset = {}, load(args.model).preset
    for way in args.ways.split(","):
        for mask in args.masks.split(","):
            plan = Plan(
                methods=("salun",),
                concepts=tuple(args.concepts.split(",")),
                models=(args.model,),
                settings={"salun": [{**WAYS[way], "mask": mask}]},
                only=SCORES,
                rank=args.rank if way == "svd" else None,
            )
            rows = {key_of(r): r for r in benchmark(plan, args.work, say=lambda line: print(line, flush=True))}
            found[way, mask] = [{**rows[k], "way": way, "mask": mask} for k in plan.cells(args.model, preset)]
    return found


def means(found: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Over the concepts of each way and mask: value (change against the unerased control), and the lowest UA."""
    lines = [
        "| way | mask | " + " | ".join(SCORES) + " | lowest ua | KB |",
        "|---|---|" + "---:|" * (len(SCORES) + 2),
    ]
    for (way, mask), rows in found.items():
        cells = []
        for key in SCORES:
            given = [r["scores"][key] for r in rows if r["scores"][key]["value"] is not None]
            value, change = (mean(c[what] for c in given) for what in ("value", "change"))
            cells.append(f"{value:.1f} ({change:+.1f})")
        low, name = min((r["scores"]["ua"]["value"], r["concept"]) for r in rows)
        cells += [f"{low:.1f}" + (f" ({name})" if low < 100 else ""), f"{mean(r['bytes'] for r in rows) / 1e3:.0f}"]
        lines.append(f"| {way} | {mask} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def scores(found: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Every cell: value (change against the unerased control), and the gap to the retrained model, if there is one."""
    lines = [
        "| way | mask | concept | " + " | ".join([*SCORES, GAP]) + " | KB |",
        "|---|---|---|" + "---:|" * (len(SCORES) + 2),
    ]
    gold = rows_in(GOLD_ROWS)
    for (way, mask), rows in found.items():
        for row in rows:
            cells = [row["scores"][k] for k in SCORES]
            text = " | ".join("-" if c["value"] is None else f"{c['value']:.1f} ({c['change']:+.1f})" for c in cells)
            text += f" | {gap(row, gold)} | {row['bytes'] / 1e3:.0f}"
            lines.append(f"| {way} | {mask} | {row['concept']} | {text} |")
    return "\n".join(lines)


def differences(found: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """The saliency mask minus each other one, way by way, in points."""
    lines = ["| way | saliency minus | " + " | ".join(COMPARED) + " | n |", "|---|---|" + "---:|" * (len(COMPARED) + 1)]
    for (way, mask), rows in found.items():
        if mask != "saliency" and (way, "saliency") in found:
            d = paired(found[way, "saliency"], rows, only=COMPARED)
            text = " | ".join(f"{d[k].value:+.1f} [{d[k].low:+.1f}, {d[k].high:+.1f}]" for k in COMPARED)
            lines.append(f"| {way} | {mask} | {text} | {' / '.join(str(d[k].n) for k in COMPARED)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, write OUT.jsonl, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="canvas-sd")
    parser.add_argument("--concepts", default=",".join(CONCEPTS))
    parser.add_argument("--masks", default=",".join(MASKS))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA made of a delta")
    parser.add_argument("--work", type=Path, required=True, help="folder of cells and erasers")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = run(args)
    rows = [r for several in found.values() for r in several]
    write_text(args.out.with_suffix(".jsonl"), "".join(json.dumps(r) + "\n" for r in rows))
    print(f"\n{means(found)}\n\n{differences(found)}\n\n{scores(found)}")


if __name__ == "__main__":
    main()
