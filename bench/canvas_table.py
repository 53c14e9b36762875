"""Every Canvas concept erased in turn by each method, scored and tabled: what fills `docs/results/`.

    python bench/canvas_table.py --methods uce,random --out docs/results/canvas-uce

writes OUT.jsonl (one row per method and concept; a rerun goes on where it stopped) and prints the Markdown tables. A
concept may be a stack, "moon+star+cat": the erasers of each, attached together and scored like one.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from erasers.erase import Eraser, configure, erase, settings_of
from erasers.eval import Control, Report, evaluate
from erasers.pipelines import Backbone, load
from erasers.prompts import canvas
from memory import Peak

SCORES = ("ua", "synonym_ua", "held_out_ua", "ira", "cra", "neighbours", "in_prompt")


def made(method: str, name: str, settings: dict, backbone: Backbone, keep: Path | None) -> tuple[Eraser, dict]:
    """An eraser, from the folder where an earlier run left it or new, and what making it took."""
    place = None if keep is None else keep / backbone.name / method / name
    if place is not None and (place / "made.json").exists():
        kept = Eraser.from_pretrained(place / "eraser")
        if kept.recipe.settings == settings_of(configure(method, backbone.preset, settings)):
            return kept, json.loads((place / "made.json").read_text())
    with Peak() as memory:
        start = time.perf_counter()
        eraser = erase(name, backbone, method=(method, settings))
        seconds = time.perf_counter() - start
    with TemporaryDirectory() as folder:
        saved = eraser.save_pretrained(Path(folder) / "eraser", verify=backbone)
        size = (saved / eraser.payload.file).stat().st_size
    took = {"seconds": round(seconds, 3), "extra_mb": round(memory.extra, 1), "bytes": size}
    if place is not None:
        eraser.save_pretrained(place / "eraser", force=True)
        (place / "made.json").write_text(json.dumps(took))
    return eraser, took


def as_lora(eraser: Eraser, took: dict, backbone: Backbone, rank: int) -> tuple[Eraser, dict]:
    """The LoRA of a delta, and the size of its file."""
    lora = eraser.to_lora(backbone, rank=rank)
    with TemporaryDirectory() as folder:
        size = lora.export(Path(folder) / "lora.safetensors").stat().st_size
    return lora, {**took, "bytes": size}


def row(method: str, name: str, settings: dict, control: Control, keep: Path | None, rank: int | None) -> dict:
    """Erase and score one concept, or the stack of the erasers of several ("moon+star"); with a rank, the LoRAs of that
    rank made of the deltas.
    """
    parts = [made(method, n, settings, control.backbone, keep) for n in name.split("+")]
    if rank is not None:
        parts = [as_lora(eraser, took, control.backbone, rank) for eraser, took in parts]
    report = evaluate([e for e, _ in parts], control.backbone, control=control)
    return {
        "model": control.backbone.name,
        "method": method,
        "settings": settings,
        "effective": settings_of(configure(method, control.backbone.preset, settings)),
        "concept": name,
        "derived": {**parts[0][0].recipe.derived, "asked": rank} if rank else {},
        "seconds": round(sum(t["seconds"] for _, t in parts), 3),
        "extra_mb": max(t["extra_mb"] for _, t in parts),
        "bytes": sum(t["bytes"] for _, t in parts),
        "images": report.settings["images"],
        "scores": {k: v.to_json() for k, v in report.scores.items()},
        "by_concept": {c: {k: v.to_json() for k, v in s.items()} for c, s in report.by_concept.items()},
        "hits": {domain: bits(report, domain) for domain in ("object", "style")},
    }


def bits(report: Report, domain: str) -> str:
    """One digit an image, in the order of `canvas_plan`: whether a judge saw what the prompt asked for."""
    saw = getattr(report.seen, domain + "s")
    return "".join(str(int(s == getattr(p, domain))) for s, p in zip(saw, report.prompts, strict=True))


def table(rows: list[dict]) -> str:
    """A Markdown table of one method: value (change against the unerased control) per concept, and the mean."""
    rows = sorted(rows, key=lambda r: [list(canvas.CONCEPTS).index(n) for n in r["concept"].split("+")])
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


def summary(rows: list[dict]) -> str:
    """Means of each method over the concepts that all of them have, the unerased model first."""
    single = [r for r in rows if "+" not in r["concept"]]
    methods = list(dict.fromkeys(r["method"] for r in single))
    have = {(r["method"], r["concept"]) for r in single}
    common = [c for c in canvas.CONCEPTS if all((m, c) in have for m in methods)]
    if not common:
        return "The methods have no concept in common."
    lines = [
        f"Means over {len(common)} concepts ({', '.join(common)}).",
        "",
        "| method | " + " | ".join(SCORES) + " | s | MB | KB |",
        "|---|" + "---:|" * (len(SCORES) + 3),
    ]

    def mean(part: list[dict], key: str) -> list[str]:
        values = [[r["scores"][k][key] for r in part if r["scores"][k]["value"] is not None] for k in SCORES]
        return [f"{sum(v) / len(v):.1f}" for v in values]

    for method in methods:
        part = [r for r in single if r["method"] == method and r["concept"] in common]
        if method == methods[0]:
            lines.append("| original | " + " | ".join(mean(part, "control")) + " | | | |")
        cost = [sum(r[k] for r in part) / len(part) for k in ("seconds", "extra_mb", "bytes")]
        low = [min(r["scores"][k]["value"] for r in part if r["scores"][k]["value"] is not None) for k in SCORES]
        cells = [
            f"{m} (lowest {v:.1f})" if k in ("ua", "ira", "cra") else m
            for k, m, v in zip(SCORES, mean(part, "value"), low, strict=True)
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {cost[0]:.1f} | {cost[1]:.0f} | {cost[2] / 1e3:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="canvas-sd")
    parser.add_argument("--methods", default="uce,random")
    parser.add_argument("--concepts", default=",".join(canvas.CONCEPTS))
    parser.add_argument("--settings", default="{}", help='JSON: {"uce": {"ridge": 0.1}}')
    parser.add_argument("--keep", type=Path, help="folder in which erasers are kept, so that stacks reuse them")
    parser.add_argument("--rank", type=int, help="score the LoRAs of this rank made of deltas")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    log = args.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    chosen = json.loads(args.settings)
    if strangers := set(chosen) - set(args.methods.split(",")):
        parser.error(f"--settings names {sorted(strangers)}, not among the methods {args.methods}")
    control = Control(load(args.model))

    def key(method: str, settings: dict, name: str) -> tuple[str, ...]:
        effective = settings_of(configure(method, control.backbone.preset, settings))
        return args.model, method, json.dumps(effective, sort_keys=True), name, str(args.rank)

    def mine(r: dict) -> bool:
        return r.get("model", "canvas-sd") == args.model and r.get("derived", {}).get("asked") == args.rank

    done = {
        (
            r.get("model", "canvas-sd"),
            r["method"],
            json.dumps(r.get("effective"), sort_keys=True),
            r["concept"],
            str(r.get("derived", {}).get("asked")),
        )
        for r in rows
    }
    for method in args.methods.split(","):
        for name in args.concepts.split(","):
            settings = chosen.get(method, {})
            if key(method, settings, name) in done:
                continue
            rows.append(row(method, name, settings, control, args.keep, args.rank))
            with log.open("a") as f:
                f.write(json.dumps(rows[-1]) + "\n")
            short = {k: rows[-1]["scores"][k]["value"] for k in SCORES}
            print(method, name, short, flush=True)
        wanted = [r for r in rows if r["method"] == method and r["settings"] == chosen.get(method, {}) and mine(r)]
        print(f"\n### {method} {json.dumps(chosen.get(method, {}))}\n\n{table(wanted)}\n", flush=True)

    print(f"### Summary\n\n{summary([r for r in rows if r['settings'] == {} and mine(r)])}", flush=True)


if __name__ == "__main__":
    main()
