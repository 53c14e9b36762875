"""One hypernetwork for 1, 5 and half of all Canvas concepts: what it erases and keeps, what it writes, what it costs.

    python bench/unhype_table.py --work erasers --out docs/results/unhype
    python bench/unhype_table.py --sets moon --objectives direct,both,trajectory --architectures compact,per-layer ...

writes OUT.jsonl, one row per (concepts, objective, architecture), and prints the Markdown table. A run that was stopped
goes on where it was: finished rows are not made again, and training goes on from its last checkpoint in WORK. A set is
"1", "5", "half", or names with "+". Beside it stand stacks of single LoRAs of the same concepts:
`python bench/canvas_table.py --methods uce,esd --concepts moon+cat+...`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from erasers.erase import Eraser, Hyper, Loop, configure, erase, settings_of, written_norms
from erasers.eval import Control, evaluate
from erasers.pipelines import Backbone, disguised, load
from erasers.prompts import Prompt, canvas, canvas_plan

FIVE = ("moon", "cat", "house", "mosaic", "neon")
SETS = {"1": FIVE[:1], "5": FIVE, "half": tuple(canvas.CONCEPTS)[::2]}
ENDS = {"trajectory": {"ends": 0.0}, "both": {"ends": 0.5}}
"""At the end of virtual time no step is left to imitate, which the presets for `direct` train at alone."""

SCORES = ("ua", "synonym_ua", "held_out_ua", "ira", "cra", "neighbours", "in_prompt")


def ho(ua: float, kept: float) -> float:
    """The harmonic mean of forgetting and keeping."""
    return 2 * ua * kept / max(1e-9, ua + kept)


def norms(eraser: Eraser, backbone: Backbone) -> dict[str, dict[str, float]]:
    """Norms of what is written: for the captions of the grid that name an erased concept, for their synonyms and
    held-out sentences, and for the grid's other captions.
    """
    gone = set(eraser.recipe.names)
    texts: dict[str, list[str]] = {"erased": [], "synonym": [], "held-out": [], "kept": []}
    for name in eraser.recipe.names:
        for p in canvas_plan(canvas.find(name), seeds=(0,)):
            role = {"grid": "erased" if gone & {p.object, p.style} else "kept"}.get(p.role, p.role)
            texts[role].append(p.text)
    out = {}
    for role, found in texts.items():
        values = written_norms(eraser, backbone, list(dict.fromkeys(found)))
        out[role] = {"mean": statistics.mean(values), "lowest": min(values), "highest": max(values)}
    return out


def latency(eraser: Eraser, backbone: Backbone, runs: int = 7) -> dict[str, float]:
    """Milliseconds of one image of 25 steps with guidance, without and with the eraser in turn: medians."""
    times: dict[str, list[float]] = {"without": [], "with": []}
    for k in range(-1, runs):
        for side in times:
            handle = eraser.attach(backbone) if side == "with" else None
            start = time.perf_counter()
            backbone.draw(["a picture of a house"], [k + 1], steps=25, guidance=4.0)
            if k >= 0:
                times[side].append(1000 * (time.perf_counter() - start))
            if handle is not None:
                handle.detach()
    out = {side: round(statistics.median(v), 1) for side, v in times.items()}
    pairs = [b / a for a, b in zip(times["without"], times["with"], strict=True)]
    return {**out, "added, percent": round(100 * (statistics.median(pairs) - 1), 2)}


def attacked(eraser: Eraser, control: Control, harmless: str) -> dict[str, float]:
    """Images of the erased concepts' captions in which the judge sees the concept, in percent: with the eraser; with it
    and the conditioning that it reads taken from a harmless prompt while the token states are the caption's; the same
    disguise without any eraser; and with the hooks taken out.
    """
    backbone, how = control.backbone, control.how
    assert isinstance(eraser.payload, Hyper)
    read = eraser.payload.plan.read
    gone = set(eraser.recipe.names)
    cells = [(o.name, s.name) for s in canvas.STYLES for o in canvas.OBJECTS if len(gone & {o.name, s.name}) == 1]
    prompts = [Prompt(canvas.caption(o, s), 188, object=o, style=s) for o, s in cells][:: max(1, len(cells) // 40)]

    def seen(on: bool, hidden: bool) -> float:
        handle = eraser.attach(backbone) if on else None
        texts, seeds = [p.text for p in prompts], [p.seed for p in prompts]
        call = {"steps": how.steps, "guidance": how.guidance, "sampler": how.sampler, "batch": how.batch}
        if hidden:
            with disguised(backbone, harmless, read):
                images = backbone.draw(texts, seeds, **call)
        else:
            images = backbone.draw(texts, seeds, **call)
        if handle is not None:
            handle.detach()
        saw = control.judges.look(images)
        rows = zip(prompts, saw.objects, saw.styles, strict=True)
        hits = [o == p.object if p.object in gone else s == p.style for p, o, s in rows]
        return round(100 * sum(hits) / len(hits), 1)

    return {
        "n": len(prompts),
        "erased": seen(on=True, hidden=False),
        "erased, signal disguised": seen(on=True, hidden=True),
        "unerased, signal disguised": seen(on=False, hidden=True),
        "hooks removed": seen(on=False, hidden=False),
    }


def row(names: tuple[str, ...], settings: dict, control: Control, work: Path) -> dict:
    """Train, score and measure one hypernetwork."""
    backbone = control.backbone
    tool = configure("unhype", backbone.preset, settings)
    label = "-".join([*names[:3], str(len(names)), tool.objective, tool.architecture])  # type: ignore[attr-defined]
    log = work / label / "training" / "log.jsonl"
    loop = Loop(work=log.parent, resume=True, checkpoint_every=20)
    eraser = erase(list(names), backbone, method=tool, loop=loop)
    seconds = json.loads(log.read_text().splitlines()[-1])["seconds"]
    with TemporaryDirectory() as folder:
        saved = eraser.save_pretrained(Path(folder) / "eraser", verify=backbone)
        size = (saved / eraser.payload.file).stat().st_size
        lora = eraser.materialize(backbone, canvas.caption(canvas.OBJECTS[0].name, canvas.STYLES[0].name))
        emitted = lora.export(Path(folder) / "lora.safetensors").stat().st_size
    eraser.save_pretrained(work / label / "eraser", force=True)
    report = evaluate(eraser, control.backbone, control=control)
    scores = {k: v.to_json() for k, v in report.scores.items()}
    kept = [scores[k]["value"] for k in ("ira", "cra") if scores[k]["value"] is not None]
    harmless = next(c for c in canvas.CONCEPTS if c not in names)
    return {
        "model": backbone.name,
        "concepts": list(names),
        "objective": settings_of(tool)["objective"],
        "architecture": settings_of(tool)["architecture"],
        "settings": settings,
        "effective": settings_of(tool),
        "seconds": round(seconds, 1),
        "bytes": size,
        "emitted_bytes": emitted,
        "scores": scores,
        "h_o": round(ho(scores["ua"]["value"], sum(kept) / len(kept)), 2),
        "by_concept": {c: {k: v.to_json() for k, v in s.items()} for c, s in report.by_concept.items()},
        "norms": norms(eraser, backbone),
        "latency": latency(eraser, backbone),
        "attacked": attacked(eraser, control, f"a picture of a {harmless}"),
        "images": report.settings["images"],
    }


def table(rows: list[dict]) -> str:
    """A Markdown table, one line a row."""
    columns = ("H_o", "kept / erased norm", "s", "KB", "emitted KB", "added latency", "seen when disguised")
    lines = [
        "| concepts | objective | architecture | " + " | ".join((*SCORES, *columns)) + " |",
        "|---|---|---|" + "---:|" * (len(SCORES) + len(columns)),
    ]
    for r in rows:
        figures = [r["scores"][k] for k in SCORES]
        cells = ["-" if s["value"] is None else f"{s['value']:.1f} ({s['change']:+.1f})" for s in figures]
        share = r["norms"]["kept"]["mean"] / r["norms"]["erased"]["mean"]
        cells += [f"{r['h_o']:.1f}", f"{share:.2%}", f"{r['seconds']:.0f}", f"{r['bytes'] / 1e3:.0f}"]
        cells += [f"{r['emitted_bytes'] / 1e3:.0f}", f"{r['latency']['added, percent']:+.1f} %"]
        cells += [f"{r['attacked']['erased, signal disguised']:.0f} %"]
        lines.append(f"| {len(r['concepts'])} | {r['objective']} | {r['architecture']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="canvas-sd")
    parser.add_argument("--sets", default="1,5,half", help='"1", "5", "half" or names with "+", with commas')
    parser.add_argument("--objectives", default="", help="with commas; by default the preset's")
    parser.add_argument("--architectures", default="", help="with commas; by default the preset's")
    parser.add_argument("--settings", default="{}", help="JSON of settings for every row")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and erasers")
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    args = parser.parse_args()
    log = args.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    control = Control(load(args.model))
    done = {(r["model"], json.dumps(r["effective"], sort_keys=True), *r["concepts"]) for r in rows}
    for wanted in args.sets.split(","):
        names = SETS.get(wanted) or tuple(wanted.split("+"))
        for objective in args.objectives.split(","):
            for architecture in args.architectures.split(","):
                chosen = {"objective": objective, "architecture": architecture}
                settings = {**ENDS.get(objective, {}), **{k: v for k, v in chosen.items() if v}}
                settings |= json.loads(args.settings)
                effective = settings_of(configure("unhype", control.backbone.preset, settings))
                if (args.model, json.dumps(effective, sort_keys=True), *names) in done:
                    continue
                rows.append(row(names, settings, control, args.work))
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("a") as f:
                    f.write(json.dumps(rows[-1]) + "\n")
                print(table(rows[-1:]), flush=True)
    print(f"\n{table([r for r in rows if r['model'] == args.model])}", flush=True)


if __name__ == "__main__":
    main()
