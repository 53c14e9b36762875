"""One hypernetwork for 1, 5 and half of all Canvas concepts: what it erases and keeps, what it writes, what it costs.

    python bench/unhype_table.py --work erasers --out docs/results/unhype
    python bench/unhype_table.py --sets moon --objectives direct,both,trajectory --architectures compact,per-layer ...
    python bench/unhype_table.py --settings '{"synonyms": false}' ...   # synonyms that it never trained on
    python bench/unhype_table.py --sets 1,5,half --stacks uce,esd --cells erasers/cells ...

writes OUT.jsonl, one row per (concepts, objective, architecture), and prints the Markdown table. A run that was stopped
goes on where it was: finished rows are not made again, and training goes on from its last checkpoint in WORK. A set is
"1", "5", "half", or names with "+". --stacks makes the rows beside it instead: as many single LoRAs attached together,
made, scored and kept as by `erasers benchmark` in --cells (erasers that lie there are not made again).
"""

import argparse
import hashlib
import json
import re
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from erasers.erase import Eraser, Hyper, Loop, configure, erase, settings_of, written_norms
from erasers.erase._unhype import silent
from erasers.eval import Control, Plan, Report, benchmark, evaluate
from erasers.eval._cells import CellKey, digest, key_of
from erasers.eval._distances import h_o
from erasers.eval._paired import hits
from erasers.pipelines import Backbone, disguised, load
from erasers.prompts import EVERYDAY, Prompt, canvas, canvas_plan, fill, unlearncanvas
from erasers.prompts.templates import HELD_OUT, REQUESTS

FIVE = ("moon", "cat", "house", "mosaic", "neon")
SETS = {"1": FIVE[:1], "5": FIVE, "half": tuple(canvas.CONCEPTS)[::2]}
IMITATED = {"walk": "base", "relative": 0.0}
OBJECTIVES = {"trajectory": {"ends": 0.0, **IMITATED}, "both": {"ends": 0.5, **IMITATED}}
"""What the presets for `direct` have to give up where descent is imitated: at the end of virtual time, which they train
at alone, no step is left; latents drawn by the finished eraser are not those of every virtual time; and weights of the
latents would scale the gradient that is imitated.
"""

SCORES = ("ua", "synonym_ua", "held_out_ua", "ira", "cra", "neighbours", "in_prompt")
ATTACKED = 40
"""Images of each side of the adaptive check, at least."""
RUNS = 9
"""Timed images of each side."""


def ho(scores: dict) -> float | None:
    """H_o of one concept (MACE, arXiv 2403.06135), from its scores in percent: harmonic mean of forgetting it, keeping
    the others of its kind, and forgetting its synonyms, all by the Canvas judges: the evaluator `h_o` with by=judge.
    """
    ua, kept, general = (scores[k]["value"] for k in ("ua", "ira", "synonym_ua"))
    if ua is None or kept is None or general is None:
        return None
    return round(100 * h_o(1 - ua / 100, kept / 100, 1 - general / 100), 4)


def told(scores: dict, by_concept: dict) -> dict:
    """The scores of a row as JSON, and what the aims ask of every single concept."""
    each = [v for v in map(ho, by_concept.values()) if v is not None]

    def least(name: str, key: str) -> list:
        found = [(s[name][key], c) for c, s in by_concept.items() if s[name]["value"] is not None]
        return list(min(found)) if found else [None, ""]

    return {
        "scores": scores,
        "by_concept": by_concept,
        "h_o": round(sum(each) / len(each), 2) if each else None,
        "worst": {"ua": least("ua", "value"), "ira": least("ira", "change"), "cra": least("cra", "change")},
    }


def by_name(report: Report, names: tuple[str, ...]) -> dict:
    """Of each concept's synonyms and held-out sentences, in how many images the judge still sees the concept; the
    prompts of which it does; and prompts that name two erased concepts at once, which count in no score.
    """
    assert report.seen_control is not None
    gone, saw, base = set(names), report.seen, report.seen_control
    found: dict = {name: {"synonym": {}, "held-out": {}} for name in names}
    left, both = [], {"n": 0, "object": 0, "style": 0, "object, unerased": 0, "style, unerased": 0, "by_concept": {}}
    for k, p in enumerate(report.prompts):
        asked = [n for n in (p.object, p.style) if n in gone]
        if len(asked) == 2 and p.role == "grid":
            both["n"] += 1
            for side, seen in (("", saw), (", unerased", base)):
                both["object" + side] += seen.objects[k] == p.object
                both["style" + side] += seen.styles[k] == p.style
            for name, sees in ((p.object, saw.objects[k] == p.object), (p.style, saw.styles[k] == p.style)):
                row = both["by_concept"].setdefault(name, {"seen": 0, "n": 0})
                row["seen"] += int(sees)
                row["n"] += 1
        if p.role not in ("synonym", "held-out") or len(asked) != 1:
            continue
        name, here = asked[0], asked[0] == p.object
        seen = (saw.objects[k] == name) if here else (saw.styles[k] == name)
        if p.role == "synonym":
            word = next(s for s in canvas.find(name).synonyms if re.search(rf"\b{s}\b", p.text))
        else:
            word = next(t for t in HELD_OUT if fill(t, object=p.object, style=p.style) == p.text)
        row = found[name][p.role].setdefault(word, {"seen": 0, "n": 0})
        row["seen"] += int(seen)
        row["n"] += 1
        if seen:
            left.append({"concept": name, "role": p.role, "text": p.text, "seed": p.seed})
    return {"by_concept": found, "not_erased": left, "two_at_once": both}


def norms(eraser: Eraser, backbone: Backbone) -> dict[str, dict]:
    """Norms of what is written: for the captions of the grid that name an erased concept, for their synonyms and
    held-out sentences; for the grid's other captions, held-out sentences of what is kept, everyday prompts (trained
    on), the empty one, requests for what is kept that were not trained on, by name and synonym, and the captions of
    UnlearnCanvas, of whose words Canvas knows few. Of the kept kinds also the share of prompts that get at least 1 % of
    the erased captions' mean, and the loudest ones.
    """
    gone = set(eraser.recipe.names)
    texts: dict[str, list[str]] = {"erased": [], "synonym": [], "held-out": [], "kept": []}
    for name in eraser.recipe.names:
        for p in canvas_plan(canvas.find(name), seeds=(0,)):
            role = {"grid": "erased" if gone & {p.object, p.style} else "kept"}.get(p.role, p.role)
            texts[role].append(p.text)
    kept = [(o.name, s.name) for s in canvas.STYLES for o in canvas.OBJECTS if not gone & {o.name, s.name}]
    texts["kept, held-out"] = [fill(t, object=o, style=s) for o, s in kept for t in HELD_OUT]
    words = re.compile("|".join(rf"\b{re.escape(n)}" for g in gone for n in canvas.find(g).names), re.IGNORECASE)
    texts["kept, everyday"] = [t for t in EVERYDAY if not words.search(t)]
    texts["kept, empty"] = [""]
    s, others = eraser.recipe.settings, [c for n, c in canvas.CONCEPTS.items() if n not in gone]
    how = {k: s[k] for k in ("contexts", "synonyms", "compose")}
    trained = set(silent([canvas.find(n) for n in gone], others, **how))
    asked = [fill(t, x=name) for c in others for name in c.names for t in REQUESTS[c.kind]]
    texts["kept, requests"] = [t for t in asked if t not in trained and not words.search(t)]
    far = [unlearncanvas.sentence(o, s) for o in unlearncanvas.OBJECT_NAMES for s in unlearncanvas.THEME_NAMES]
    texts["kept, another world"] = [t for t in far if not words.search(t)]
    out: dict[str, dict] = {}
    for role, found in texts.items():
        unique = list(dict.fromkeys(found))
        values = written_norms(eraser, backbone, unique)
        out[role] = {"n": len(unique), "mean": statistics.mean(values), "lowest": min(values), "highest": max(values)}
        if role.startswith("kept"):
            shares = sorted(((100 * v / out["erased"]["mean"], t) for v, t in zip(values, unique, strict=True)))[::-1]
            out[role]["1 % or more, percent of prompts"] = round(100 * sum(s >= 1 for s, _ in shares) / len(shares), 2)
            out[role]["loudest, percent of erased"] = [[round(s, 3), t] for s, t in shares[:5]]
    return out


def latency(erasers: list[Eraser], control: Control, prompts: dict[str, str]) -> dict[str, dict]:
    """Milliseconds of one image as the scored ones are drawn, without and with the erasers in turn, for each prompt:
    medians of the clock's time, and the medians over pairs of what is added by the clock and in processor time.
    """
    backbone, how, out = control.backbone, control.how, {}
    for what, prompt in prompts.items():
        clock: dict[str, list[float]] = {"without": [], "with": []}
        busy: dict[str, list[float]] = {"without": [], "with": []}
        for k in range(-1, RUNS):
            for side in ("without", "with") if k % 2 else ("with", "without"):
                handles = [e.attach(backbone) for e in erasers] if side == "with" else []
                start, cpu = time.perf_counter(), time.process_time()
                backbone.draw([prompt], [k + 1], steps=how.steps, guidance=how.guidance, sampler=how.sampler)
                if k >= 0:
                    clock[side].append(1000 * (time.perf_counter() - start))
                    busy[side].append(1000 * (time.process_time() - cpu))
                for handle in reversed(handles):
                    handle.detach()
        row: dict = {"prompt": prompt, **{side: round(statistics.median(v), 1) for side, v in clock.items()}}
        for name, times in (("added, percent", clock), ("added processor time, percent", busy)):
            pairs = [b / a for a, b in zip(times["without"], times["with"], strict=True)]
            row[name] = round(100 * (statistics.median(pairs) - 1), 2)
        out[what] = row
    return out


def timed(names: tuple[str, ...]) -> dict[str, str]:
    """A caption that names an erased concept, where the factors act, and one that names none."""
    kept = [next(c.name for c in kind if c.name not in names) for kind in (canvas.OBJECTS, canvas.STYLES)]
    first = canvas.find(names[0])
    asked = (first.name, kept[1]) if first.kind == "object" else (kept[0], first.name)
    return {"erased": canvas.caption(*asked), "kept": canvas.caption(*kept)}


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
    cells = cells[:: max(1, len(cells) // ATTACKED)]
    seeds = range(188, 188 + -(-ATTACKED // len(cells)))
    prompts = [Prompt(canvas.caption(o, s), seed, object=o, style=s) for seed in seeds for o, s in cells]

    def seen(on: bool, hidden: bool) -> float:
        handle = eraser.attach(backbone)
        if not on:
            handle.detach()
        texts, drawn = [p.text for p in prompts], [p.seed for p in prompts]
        call = {"steps": how.steps, "guidance": how.guidance, "sampler": how.sampler, "batch": how.batch}
        if hidden:
            with disguised(backbone, harmless, read):
                images = backbone.draw(texts, drawn, **call)
        else:
            images = backbone.draw(texts, drawn, **call)
        handle.detach()
        saw = control.judges.look(images)
        rows = zip(prompts, saw.objects, saw.styles, strict=True)
        hits = [o == p.object if p.object in gone else s == p.style for p, o, s in rows]
        return round(100 * sum(hits) / len(hits), 1)

    return {
        "n": len(prompts),
        "read": read,
        "harmless": harmless,
        "erased": seen(on=True, hidden=False),
        "erased, signal disguised": seen(on=True, hidden=True),
        "unerased, signal disguised": seen(on=False, hidden=True),
        "hooks removed": seen(on=False, hidden=False),
    }


def row(names: tuple[str, ...], settings: dict, control: Control, work: Path) -> dict:
    """Train, score and measure one hypernetwork."""
    backbone = control.backbone
    tool = configure("unhype", backbone.preset, settings)
    effective = settings_of(tool)
    mark = hashlib.sha256(json.dumps([names, effective], sort_keys=True).encode()).hexdigest()[:8]
    label = "-".join(
        [backbone.name, *names[:3], str(len(names)), effective["objective"], effective["architecture"], mark]
    )
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
    harmless = next(c for c in canvas.CONCEPTS if c not in names)
    return {
        "model": backbone.name,
        "method": "unhype",
        "concept": "+".join(names),
        "concepts": list(names),
        "objective": effective["objective"],
        "architecture": effective["architecture"],
        "synonyms_trained": effective["synonyms"],
        "settings": settings,
        "effective": effective,
        "seconds": round(seconds, 1),
        "bytes": size,
        "emitted_bytes": emitted,
        **told(
            {k: v.to_json() for k, v in report.scores.items()},
            {c: {k: v.to_json() for k, v in s.items()} for c, s in report.by_concept.items()},
        ),
        "hits": hits(report),
        "hits_control": hits(report, control=True),
        "by_name": by_name(report, names),
        "norms": norms(eraser, backbone),
        "latency": latency([eraser], control, timed(names)),
        "attacked": attacked(eraser, control, f"a picture of a {harmless}"),
        "images": report.settings["images"],
    }


def stack(names: tuple[str, ...], method: str, control: Control, cells: Path) -> dict:
    """The row of as many single LoRAs of another method, attached together; made, scored and kept as by a benchmark."""
    backbone = control.backbone
    plan = Plan((method,), ("+".join(names),), (backbone.name,), only=SCORES)
    effective = settings_of(configure(method, backbone.preset, {}))
    mine = digest(effective)
    rows = benchmark(plan, cells, load=lambda _: backbone)
    key = CellKey(backbone.name, method, mine, plan.concepts[0], 0)
    cell = next(r for r in rows if key_of(r) == key)
    erasers = []
    for name in names:
        place = cells / "erasers" / replace(key, concept=name).place / "eraser"
        erasers.append(Eraser.from_pretrained(place) if place.exists() else erase(name, backbone, method=method))
    return {
        "model": backbone.name,
        "method": method,
        "concept": "+".join(names),
        "concepts": list(names),
        "objective": method,
        "architecture": f"stack of {len(names)}",
        "synonyms_trained": effective.get("synonyms"),
        "settings": {},
        "effective": effective,
        "seconds": cell["seconds"],
        "bytes": cell["bytes"],
        **told(cell["scores"], cell["by_concept"]),
        "latency": latency(erasers, control, timed(names)),
        "images": cell["images"],
    }


def table(rows: list[dict]) -> str:
    """A Markdown table, one line a row."""
    columns = ("H_o", "lowest UA", "synonyms trained", "kept / erased norm", "highest kept / erased", "s", "KB")
    columns += ("emitted KB", "added latency, erased prompt", "kept prompt", "seen when disguised")
    lines = [
        "| concepts | objective | architecture | " + " | ".join((*SCORES, *columns)) + " |",
        "|---|---|---|" + "---:|" * (len(SCORES) + len(columns)),
    ]
    for r in rows:
        figures = [r["scores"][k] for k in SCORES]
        cells = ["-" if s["value"] is None else f"{s['value']:.1f} ({s['change']:+.1f})" for s in figures]
        ua, who = r["worst"]["ua"]
        cells += ["-" if r["h_o"] is None else f"{r['h_o']:.1f}", "-" if ua is None else f"{ua:.1f} ({who})"]
        cells += [{True: "yes", False: "no", None: "-"}[r["synonyms_trained"]]]
        shares = ["-", "-"]
        if "norms" in r:
            shares = [
                f"{r['norms']['kept'][k] / max(1e-12, r['norms']['erased']['mean']):.2%}" for k in ("mean", "highest")
            ]
        cells += [*shares, f"{r['seconds']:.0f}", f"{r['bytes'] / 1e3:.0f}"]
        cells += [f"{r['emitted_bytes'] / 1e3:.0f}" if "emitted_bytes" in r else "-"]
        cells += [f"{r['latency'][k]['added, percent']:+.1f} %" for k in ("erased", "kept")]
        cells += [f"{r['attacked']['erased, signal disguised']:.0f} %" if "attacked" in r else "-"]
        lines.append(f"| {len(r['concepts'])} | {r['objective']} | {r['architecture']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def unerased(rows: list[dict]) -> str:
    """Which synonyms and held-out sentences are not erased, one line a row of the table."""
    lines = []
    for r in (r for r in rows if "by_name" in r):
        left = [
            f"{name} as {word!r} ({c['seen']} of {c['n']})"
            for name, roles in r["by_name"]["by_concept"].items()
            for words in roles.values()
            for word, c in words.items()
            if c["seen"]
        ]
        what = f"{len(r['concepts'])}, {r['objective']}, {r['architecture']}"
        what += "" if r["synonyms_trained"] else ", synonyms not trained"
        lines.append(f"- {what}: {'; '.join(left) or 'all are erased'}")
    return "\n".join(lines)


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="canvas-sd")
    parser.add_argument("--sets", default="1,5,half", help='"1", "5", "half" or names with "+", with commas')
    parser.add_argument("--objectives", default="", help="with commas; by default the preset's")
    parser.add_argument("--architectures", default="", help="with commas; by default the preset's")
    parser.add_argument("--settings", default="{}", help="JSON of settings for every row")
    parser.add_argument("--stacks", default="", help="methods, with commas: rows of single LoRAs attached together")
    parser.add_argument("--cells", type=Path, help="folder of the stacks' cells and erasers (default: WORK/cells)")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and erasers")
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    args = parser.parse_args()
    log = args.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    control = Control(load(args.model))

    def missing(method: str, effective: dict, names: tuple[str, ...]) -> bool:
        key = (args.model, method, json.dumps(effective, sort_keys=True), list(names))
        have = [(r["model"], r["method"], json.dumps(r["effective"], sort_keys=True), r["concepts"]) for r in rows]
        return key not in have

    def keep(made: dict) -> None:
        rows.append(made)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as f:
            f.write(json.dumps(made) + "\n")
        print(f"{table(rows[-1:])}\n{unerased(rows[-1:])}", flush=True)

    for wanted in args.sets.split(","):
        names = SETS.get(wanted) or tuple(wanted.split("+"))
        for method in filter(None, args.stacks.split(",")):
            if missing(method, settings_of(configure(method, control.backbone.preset, {})), names):
                keep(stack(names, method, control, args.cells or args.work / "cells"))
        if args.stacks:
            continue
        for objective in args.objectives.split(","):
            for architecture in args.architectures.split(","):
                chosen = {"objective": objective, "architecture": architecture}
                settings = {**OBJECTIVES.get(objective, {}), **{k: v for k, v in chosen.items() if v}}
                settings |= json.loads(args.settings)
                if missing("unhype", settings_of(configure("unhype", control.backbone.preset, settings)), names):
                    keep(row(names, settings, control, args.work))
    mine = [r for r in rows if r["model"] == args.model]
    print(f"\n{table(mine)}\n\nNot erased by name:\n\n{unerased(mine)}", flush=True)


if __name__ == "__main__":
    main()
