"""The tables of `docs/results/`: every Canvas concept erased in turn by each method, one Markdown line a concept.

    python bench/canvas_table.py --methods uce,random --out docs/results/canvas-uce

The same as `erasers benchmark`, whose cells lie in --work (default: OUT.cells; a rerun goes on where it stopped).
Beside them it writes OUT.jsonl, one row per method and concept, which `erasers benchmark --import` reads, and prints a
Markdown table of each method and of their means. With --gold, rows of `bench/canvas_gold.py`, each line has its gap to
the model retrained without the concept: UA, IRA and CRA minus that model's.
"""

import argparse
import json
from pathlib import Path

from erasers.eval import Cells, Plan, benchmark, import_rows, leaderboard, table
from erasers.eval._table import BALANCE, RETRAINED
from erasers.eval._table import markdown as leaderboards
from erasers.prompts import canvas

GOLD, GOLD_ROWS = (RETRAINED, "untrained"), Path("docs/results/canvas-gold.jsonl")
SCORES = ("ua", "synonym_ua", "held_out_ua", "ira", "cra", "neighbours", "in_prompt")


def gap(row: dict, gold: list[dict]) -> str:
    """UA, IRA and CRA of a row minus the retrained model's, in percent points; "-" where there is none."""
    same = ("model", "concept")
    found = [g for g in gold if g["method"] == RETRAINED and all(g[k] == row[k] for k in same)]
    if not found:
        return "-"
    return ", ".join(f"{row['scores'][k]['value'] - found[0]['scores'][k]['value']:+.1f}" for k in BALANCE)


def markdown(rows: list[dict], gold: list[dict]) -> str:
    """A Markdown table of one method: value (change against the unerased control) per concept, and the means."""
    rows = sorted(rows, key=lambda r: [list(canvas.CONCEPTS).index(n) for n in r["concept"].split("+")])
    heads = ["concept", *SCORES, "gap to retrained (UA, IRA, CRA)", "s", "MB", "KB"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]

    def cell(s: dict) -> str:
        return "-" if s["value"] is None else f"{s['value']:.1f} ({s['change']:+.1f})"

    for r in rows:
        figures = " | ".join(cell(r["scores"][k]) for k in SCORES)
        costs = f"{gap(r, gold)} | {r['seconds']:.2f} | {r['extra_mb']:.0f} | {r['bytes'] / 1e3:.0f}"
        lines.append(f"| {r['concept']} | {figures} | {costs} |")
    means = table(r for r in rows if "+" not in r["concept"])
    means = means[means["method"] != "original"].groupby(["domain", "evaluator"])[["value", "change"]].mean()
    for domain, names in (("object", canvas.OBJECTS), ("style", canvas.STYLES)):
        if n := sum(r["concept"] in {c.name for c in names} for r in rows):
            found = [means.loc[domain, k] for k in SCORES]
            figures = " | ".join(f"**{m['value']:.1f}** ({m['change']:+.1f})" for m in found)
            lines.append(f"| **mean of {n} {domain}s** | {figures} | | | | |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, write OUT.jsonl and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="canvas-sd")
    parser.add_argument("--methods", default="uce,random")
    parser.add_argument("--concepts", default=",".join(canvas.CONCEPTS))
    parser.add_argument("--settings", default="{}", help='JSON: {"uce": {"ridge": 0.1}}')
    parser.add_argument("--rank", type=int, help="score the LoRAs of this rank made of deltas")
    parser.add_argument(
        "--work", "--keep", type=Path, help="folder of cells and erasers; stacks reuse the erasers of their parts"
    )
    parser.add_argument("--gold", type=Path, default=GOLD_ROWS, help="rows of what was retrained, if there are any")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    work = args.work or args.out.with_suffix(".cells")
    log = args.out.with_suffix(".jsonl")
    plan = Plan(
        methods=tuple(args.methods.split(",")),
        concepts=tuple(args.concepts.split(",")),
        models=(args.model,),
        settings={m: [s] for m, s in json.loads(args.settings).items()},
        only=SCORES,
        rank=args.rank,
    )
    methods = set(plan.methods)
    if log.exists():
        import_rows(log, Cells(work))
        methods |= {json.loads(line)["method"] for line in log.read_text().splitlines()}
    if args.gold.exists():
        import_rows(args.gold, Cells(work))
    rows = benchmark(plan, work, say=lambda line: print(line, flush=True))
    rows = [r for r in rows if r["model"] == args.model]
    gold = [r for r in rows if r["method"] in GOLD]
    rows = [r for r in rows if r["method"] in methods]  # others may share the folder
    partial = log.with_name(f".{log.name}.part")
    partial.write_text("".join(json.dumps(r) + "\n" for r in rows))
    partial.replace(log)
    for entry in dict.fromkeys((r["method"], r["digest"]) for r in rows):
        mine = [r for r in rows if (r["method"], r["digest"]) == entry]
        print(f"\n### {entry[0]} {entry[1]} {json.dumps(mine[0]['settings'])}\n\n{markdown(mine, gold)}", flush=True)
    print(f"\n{leaderboards(leaderboard([*rows, *gold]), [])}", flush=True)


if __name__ == "__main__":
    main()
