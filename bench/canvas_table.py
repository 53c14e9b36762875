"""Every Canvas concept erased in turn by each method, scored and tabled: what fills `docs/results/`.

    python bench/canvas_table.py --methods uce,random --out docs/results/canvas-uce

writes OUT.jsonl (one row per method and concept; a rerun goes on where it stopped) and prints the Markdown tables.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from erasers.erase import erase
from erasers.eval import Control, evaluate
from erasers.pipelines import load
from erasers.prompts import canvas
from memory import Peak

SCORES = ("ua", "synonym_ua", "held_out_ua", "ira", "cra", "neighbours", "in_prompt")


def row(method: str, name: str, settings: dict, control: Control) -> dict:
    """Erase, save, score one concept."""
    backbone = control.backbone
    with Peak() as memory:
        start = time.perf_counter()
        eraser = erase(name, backbone, method=(method, settings))
        seconds = time.perf_counter() - start
    with TemporaryDirectory() as folder:
        file = eraser.export(Path(folder) / "e.safetensors")
        size = file.stat().st_size
    report = evaluate(eraser, backbone, control=control)
    return {
        "method": method,
        "settings": settings,
        "concept": name,
        "seconds": round(seconds, 3),
        "extra_mb": round(memory.extra, 1),
        "bytes": size,
        "rank": eraser.rank,
        "scores": {k: v.to_json() for k, v in report.scores.items()},
    }


def table(rows: list[dict]) -> str:
    """A Markdown table of one method: value (change against the unerased control) per concept, and the mean."""
    rows = sorted(rows, key=lambda r: list(canvas.CONCEPTS).index(r["concept"]))
    lines = [
        "| concept | " + " | ".join(SCORES) + " | s | MB | KB |",
        "|---|" + "---:|" * (len(SCORES) + 3),
    ]

    def cell(s: dict) -> str:
        return "-" if s["value"] is None else f"{s['value']:.1f} ({s['change']:+.1f})"

    for r in rows:
        figures = " | ".join(cell(r["scores"][k]) for k in SCORES)
        lines.append(
            f"| {r['concept']} | {figures} | {r['seconds']:.2f} | {r['extra_mb']:.0f} | {r['bytes'] / 1e3:.0f} |"
        )
    for label, names in (("objects", canvas.OBJECTS), ("styles", canvas.STYLES)):
        part = [r for r in rows if r["concept"] in {c.name for c in names}]
        if part:
            means = []
            for k in SCORES:
                real = [r["scores"][k] for r in part if r["scores"][k]["value"] is not None]
                value, change = (sum(s[x] for s in real) / len(real) for x in ("value", "change"))
                means.append(f"**{value:.1f}** ({change:+.1f})")
            lines.append(f"| **mean of {len(part)} {label}** | " + " | ".join(means) + " | | | |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="uce,random")
    parser.add_argument("--concepts", default=",".join(canvas.CONCEPTS))
    parser.add_argument("--settings", default="{}", help='JSON: {"uce": {"ridge": 0.1}}')
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    log = args.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    chosen = json.loads(args.settings)
    done = {(r["method"], json.dumps(r["settings"]), r["concept"]) for r in rows}
    control = Control(load("canvas-sd"))
    for method in args.methods.split(","):
        for name in args.concepts.split(","):
            settings = chosen.get(method, {})
            if (method, json.dumps(settings), name) in done:
                continue
            rows.append(row(method, name, settings, control))
            with log.open("a") as f:
                f.write(json.dumps(rows[-1]) + "\n")
            short = {k: rows[-1]["scores"][k]["value"] for k in SCORES}
            print(method, name, short, flush=True)
        wanted = [r for r in rows if r["method"] == method and r["settings"] == chosen.get(method, {})]
        print(f"\n### {method} {json.dumps(chosen.get(method, {}))}\n\n{table(wanted)}\n", flush=True)


if __name__ == "__main__":
    main()
