"""The tables of `docs/results/`: every Canvas concept erased in turn by each method, one Markdown line a concept.

    python bench/canvas_table.py --methods uce,random --out docs/results/canvas-uce
    python bench/canvas_table.py --print --out docs/results/canvas-uce

The same as `erasers benchmark`, whose cells lie in --work (default: OUT.cells; a rerun goes on where it stopped).
Beside them it writes OUT.jsonl, one row per method and concept, which `erasers benchmark --import` reads, and prints a
Markdown table of each method and of their means. With --gold, rows of `bench/canvas_gold.py`, each line has its gap to
the model retrained without the concept: UA, IRA and CRA minus that model's. --print draws nothing: it prints the tables
of the rows that OUT.jsonl holds.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from erasers.erase._files import write_text
from erasers.eval import Cells, Plan, benchmark, import_rows, leaderboard, table
from erasers.eval._cells import key_of
from erasers.eval._table import BALANCE, RETRAINED
from erasers.eval._table import markdown as leaderboards
from erasers.prompts import canvas

GOLD_ROWS = Path("docs/results/canvas-gold.jsonl")
GAP = "gap to retrained (UA, IRA, CRA)"
SCORES = ("ua", "synonym_ua", "held_out_ua", "ira", "cra", "neighbours", "in_prompt")


def rows_in(file: Path) -> list[dict]:
    """The rows of a results file, as a benchmark takes them; none where there is no such file."""
    with TemporaryDirectory() as folder:
        cells = Cells(Path(folder))
        if file.exists():
            import_rows(file, cells)
        return cells.rows()


def gap(row: dict, gold: list[dict]) -> str:
    """UA, IRA and CRA of a row minus the retrained model's, in percent points; "-" where there is none."""
    same = ("model", "concept")
    other = next((g for g in gold if g["method"] == RETRAINED and all(g[k] == row[k] for k in same)), None)
    if other is None:
        return "-"
    return ", ".join(f"{row['scores'][k]['value'] - other['scores'][k]['value']:+.1f}" for k in BALANCE)


def figure(score: dict) -> str:
    """Value (change against the unerased control) of a score; "-" where there is none."""
    return "-" if score["value"] is None else f"{score['value']:.1f} ({score['change']:+.1f})"


def markdown(rows: list[dict], gold: list[dict]) -> str:
    """A Markdown table of one method: value (change against the unerased control) per concept, and the means."""
    rows = sorted(rows, key=lambda r: [list(canvas.CONCEPTS).index(n) for n in r["concept"].split("+")])
    heads = ["concept", *SCORES, GAP, "s", "MB", "KB"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]

    for r in rows:
        figures = " | ".join(figure(r["scores"][k]) for k in SCORES)
        costs = f"{r['seconds']:.2f} | {r['extra_mb']:.0f} | {r['bytes'] / 1e3:.0f}"
        lines.append(f"| {r['concept']} | {figures} | {gap(r, gold)} | {costs} |")
    means = table(r for r in rows if "+" not in r["concept"])
    means = means[means["method"] != "original"].groupby(["domain", "evaluator"])[["value", "change"]].mean()
    for domain, names in (("object", canvas.OBJECTS), ("style", canvas.STYLES)):
        if n := sum(r["concept"] in {c.name for c in names} for r in rows):
            found = [means.loc[domain, k] for k in SCORES]
            figures = " | ".join(f"**{m['value']:.1f}** ({m['change']:+.1f})" for m in found)
            lines.append(f"| **mean of {n} {domain}s** | {figures} | | | | |")
    return "\n".join(lines)


def tables(rows: list[dict], gold: list[dict]) -> str:
    """A table of each method with its settings, and the leaderboards of all, as Markdown."""
    parts = []
    for entry in dict.fromkeys(key_of(r).entry for r in rows):
        mine = [r for r in rows if key_of(r).entry == entry]
        parts.append(f"### {entry[1]} {entry[2]} {json.dumps(mine[0]['settings'])}\n\n{markdown(mine, gold)}\n")
    models = {r["model"] for r in rows}
    boards = leaderboard([*rows, *(g for g in gold if g["model"] in models)])
    return "\n".join([*parts, leaderboards(boards, [])])


def made(args: argparse.Namespace, log: Path) -> list[dict]:
    """Run what is missing, and write all to the log."""
    work = args.work or args.out.with_suffix(".cells")
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
    rows = benchmark(plan, work, say=lambda line: print(line, flush=True))
    rows = [r for r in rows if r["model"] == args.model and r["method"] in methods]  # others may share the folder
    write_text(log, "".join(json.dumps(r) + "\n" for r in rows))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, of what is there or of what is made first."""
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
    parser.add_argument("--print", action="store_true", help="format the rows of OUT.jsonl; draw and write nothing")
    args = parser.parse_args(argv)
    log = args.out.with_suffix(".jsonl")
    if args.print and not log.exists():
        parser.error(f"expected rows to print in {log}, found no such file: leave out --print to make it")
    rows = rows_in(log) if args.print else made(args, log)
    print(f"\n{tables(rows, rows_in(args.gold))}", flush=True)


if __name__ == "__main__":
    main()
