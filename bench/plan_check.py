"""`erasers plan` beside what really happens: pipelines of published sizes with random weights on disk go through erase,
save, load and one drawn step, each in a process of its own.

    python bench/plan_check.py                            # every row that is not there yet
    python bench/plan_check.py --only sd15:esd            # one row (or SHAPE: or :METHOD)
    python bench/plan_check.py --only small-sd: --table   # print what is there, beside the estimates

Where a row would not fit by its estimate it is run with gradient checkpointing, and left out if that does not help.
Rows are added to `--out` one by one, and those that are there are not made again (`--again` makes them anew). The
weights lie in `--folder` and are made when first needed; `--clean` removes those of a shape after its last row,
whether that was measured now or was there, was left out or failed.
Estimates never see them: they come from a folder that holds configs only.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shapes

from erasers.erase import Loop, Machine, Planner, Speed, asked, configure, find, options

MB = 2**20
METHODS = ("uce", "esd", "esd-dense", "salun", "sfd", "unhype", "concept_ablation")
SHORT = {"steps": 1, "batch": 1, "sampler_steps": 2, "images": 2, "pool": 0, "contexts": 1, "warmup": 0}
"""One step of each method, as short as it goes; what a method does not have is left out."""


@dataclass(frozen=True)
class Case:
    """A pipeline to measure.

    Attributes:
        shape: its configs in `shapes/`; "": a bundled pipeline of the case's own name.
        dtype: precision of the weights.
        without: components that are left out.
        other: component -> settings in place of the published ones.
        preset: of the methods.
        checkpointing: activations are computed twice, in every row.
    """

    shape: str
    dtype: str = "float32"
    without: tuple[str, ...] = ()
    other: dict[str, dict[str, Any]] = field(default_factory=dict)
    preset: str = "sd"
    checkpointing: bool = False


NO_T5 = ("text_encoder_3", "tokenizer_3")
SMALL_UNET = {"block_out_channels": [64, 128, 256, 256], "sample_size": 32}
SMALL_TEXT = {"num_hidden_layers": 4}
SMALL_VAE = {"block_out_channels": [32, 32, 64, 64]}
CASES = {
    "canvas-sd": Case("", preset="canvas"),
    "canvas-flow": Case("", preset="canvas-flow"),
    "small-sd": Case("sd15", other={"unet": SMALL_UNET, "text_encoder": SMALL_TEXT, "vae": SMALL_VAE}),
    "sd15": Case("sd15"),
    "sdxl-512": Case("sdxl", "bfloat16", other={"unet": {"sample_size": 64}}, checkpointing=True),
    # the third text encoder has 4.8 billion weights, which change nothing but the sum of the weights
    "sd35-medium-512": Case("sd35-medium", "bfloat16", NO_T5, {"transformer": {"sample_size": 64}}, checkpointing=True),
    "sdxl": Case("sdxl", "bfloat16", checkpointing=True),
    "sd35-medium": Case("sd35-medium", "bfloat16", NO_T5, checkpointing=True),
}


USUAL = ("canvas-sd", "canvas-flow", "small-sd", "sd15", "sdxl-512", "sd35-medium-512")
"""The two last of `CASES`, with their own latents, take hours on a CPU: name them to measure them."""


def configs(case: Case, folder: Path) -> Path:
    """The case's configs, without weights."""
    what = shapes.shape(case.shape)
    parts = {n: (lib, cls, {**c, **case.other.get(n, {})}) for n, (lib, cls, c) in what["parts"].items()}
    what["parts"] = {n: v for n, v in parts.items() if n not in case.without}
    shapes.write(what, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {n: [None, None] for n in case.without}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return folder


def build(name: str, folder: Path) -> Path:
    """The case's pipeline on disk with random weights, component by component."""
    import diffusers
    import torch
    import transformers
    from transformers import CLIPTokenizer

    from erasers.pipelines.canvas.models import vocabulary

    case, done = CASES[name], folder / ".whole"
    if done.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    configs(case, folder)
    index = json.loads((folder / "model_index.json").read_text())
    kind = getattr(torch, case.dtype)
    for part, value in list(index.items()):
        if part.startswith("_") or not isinstance(value, list) or value[0] is None or part == "scheduler":
            continue
        library, cls = value
        torch.set_default_dtype(kind)
        if library == "diffusers":
            made = getattr(diffusers, cls)
            net = made.from_config(made.load_config(folder / part))
        else:
            made = getattr(transformers, cls)
            net = made(made.config_class.from_pretrained(folder / part))
        net.to(dtype=kind).save_pretrained(folder / part)
        del net
        torch.set_default_dtype(torch.float32)
        if part.startswith("text_encoder"):
            tok = part.replace("text_encoder", "tokenizer")
            vocabulary(["a moon and a star in the style of a picture of"], folder / tok)
            CLIPTokenizer.from_pretrained(folder / tok, model_max_length=77).save_pretrained(folder / tok)
            index[tok] = ["transformers", "CLIPTokenizer"]
    if index["_class_name"] == "StableDiffusionPipeline":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    done.touch()
    return folder


def tool(case: Case, method: str) -> Any:
    """One short step of a method."""
    name = method.removesuffix("-dense")
    has = {o.name for o in options(find(name))}
    settings = {k: v for k, v in SHORT.items() if k in has} | ({"dense": True} if method.endswith("-dense") else {})
    if name == "sfd":
        settings["start"] = "base"
    if name == "salun" and case.dtype != "float32":  # weights themselves learn in float32 only
        settings["dense"] = False
    return configure(name, case.preset, settings)


def measure(name: str, method: str, *, place: str, checkpointing: bool) -> dict[str, Any]:
    """Here and now: load, erase, save, load, draw one step. Memory in MB (2^20 bytes)."""
    import torch

    from erasers.erase import Eraser, erase
    from erasers.eval import Cost, resident
    from erasers.pipelines import load

    case, start = CASES[name], resident()
    backbone = load(place, dtype=case.dtype)
    for part in backbone.pipe.components.values():  # a file's pages come into memory when they are first read
        for p in part.parameters() if isinstance(part, torch.nn.Module) else ():
            float(p.view(-1)[:: 4096 // p.element_size()].float().sum())
    torch.manual_seed(0)
    on_gpu = backbone.device.type == "cuda"
    loaded = torch.cuda.memory_allocated() / MB if on_gpu else resident() - start
    with Cost() as erasing:
        eraser = erase(
            ["moon"], backbone, method=tool(case, method), preserve=["star"], seed=3, loop=_loop(method, checkpointing)
        )
    with tempfile.TemporaryDirectory() as folder:
        saved = eraser.save_pretrained(Path(folder) / "e", verify=backbone)
        written = sum(f.stat().st_size for f in saved.rglob("*.safetensors"))
        del eraser
        again = Eraser.from_pretrained(saved)
        few = again.recipe.drawing
        with Cost() as drawing, again.attached(backbone):
            backbone.draw(["a moon"], [0], steps=1, guidance=1.0 if few else 7.5)
    return {
        "process": round(start),
        "loaded": round(loaded),
        "erase": round(erasing.peak),
        "draw": round(drawing.peak),
        "written": written,
        "seconds": round(erasing.seconds, 1),
        "device": str(backbone.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _loop(method: str, checkpointing: bool) -> Loop | None:
    return None if method == "uce" else Loop(checkpoint_every=0, gradient_checkpointing=checkpointing)


def estimate(name: str, method: str, planner: Planner, *, checkpointing: bool, speed: Speed | None) -> dict[str, Any]:
    """What `erasers plan` says of the same."""
    import torch

    case = CASES[name]
    machine = Machine(device="cuda" if torch.cuda.is_available() else "cpu", dtype=case.dtype, speed=speed)
    loop = _loop(method, checkpointing)
    ask = asked(planner, ["moon"], method=tool(case, method), preserve=["star"], loop=loop, machine=machine)
    e = planner.estimate(ask)
    return {
        "process": round(e.base / MB),
        "loaded": round(sum(e.weights.values()) / MB),
        "erase": round(e.extra / MB),
        "draw": round((e.draws + e.workspace) / MB),
        "written": e.written,
        "seconds": round(e.seconds, 1),
        "highest": e.highest.name,
        "speed": [e.speed.flops, e.speed.call, e.speed.attention, e.speed.attention_backward],
        "fits": (room := machine.room()) is None or e.fits(room),
    }


def off(row: dict[str, Any], *keys: str) -> float:
    """Estimate over measurement, minus 1, of a sum of entries."""
    have, want = (sum(row[side][k] for k in keys) for side in ("measured", "estimate"))
    return want / have - 1


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: estimate / measured and the relative error. "twice": gradient checkpointing."""
    lines = [
        "| shape | method | dtype | twice | everything, MB | off | erasing, MB | off | file, MB | off | s | off |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row["shape"], row["method"], row["dtype"], "yes" if row["checkpointing"] else "no"]
        for keys, by in ((("process", "loaded", "erase"), 1), (("erase",), 1), (("written",), MB), (("seconds",), 1)):
            want, have = (sum(row[side][k] for k in keys) / by for side in ("estimate", "measured"))
            digits = ".1f" if by == MB or keys == ("seconds",) else ".0f"
            cells += [f"{want:{digits}} / {have:{digits}}", f"{off(row, *keys):+.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def clean(folder: Path, name: str) -> None:
    """Remove a shape's weights, if they are there."""
    if CASES[name].shape:
        shutil.rmtree(folder / name, ignore_errors=True)


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=":", help="SHAPE:METHOD, either may be left out")
    parser.add_argument("--shapes", default=",".join(USUAL), help=f"with commas, of {', '.join(CASES)}")
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas; default: all")
    parser.add_argument("--folder", type=Path, default=Path("plan-check"), help="for the weights on disk")
    parser.add_argument("--out", type=Path, default=Path("plan-check.jsonl"), help="one row for each shape and method")
    parser.add_argument("--threads", type=int, help="of the measured process")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--table", action="store_true", help="measure nothing; work the estimates out anew and print")
    parser.add_argument("--clean", action="store_true", help="remove a shape's weights after its last row")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--build", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        shape, method, place, twice = args.measure
        print("\n" + json.dumps(measure(shape, method, place=place, checkpointing=twice == "yes")))
        return
    if args.build:
        build(args.build[0], Path(args.build[1]))
        return
    shape, _, method = args.only.partition(":")
    names = [shape] if shape else args.shapes.split(",")
    if strange := [n for n in names if n not in CASES]:
        parser.error(f"no shape {strange[0]!r}: expected {', '.join(CASES)}")
    wanted = [(n, m) for n in names for m in args.methods.split(",") if not method or m == method]
    wanted = [(n, m) for n, m in wanted if m != "esd-dense" or CASES[n].dtype == "float32"]
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    shown = []
    with tempfile.TemporaryDirectory() as bare:
        planners = {
            n: Planner(configs(CASES[n], Path(bare) / n) if CASES[n].shape else n) for n in dict.fromkeys(names)
        }
        for k, (name, how) in enumerate(wanted):
            if args.clean and k and wanted[k - 1][0] != name:
                clean(args.folder, wanted[k - 1][0])
            there = [r for r in rows if (r["shape"], r["method"]) == (name, how)]
            if args.table or (there and not args.again):
                for row in there[-1:]:
                    speed, kept = Speed(*row["estimate"]["speed"]), row["checkpointing"]
                    row["estimate"] = estimate(name, how, planners[name], checkpointing=kept, speed=speed)
                    shown.append(row)
                continue
            for kept in (False, True)[CASES[name].checkpointing :]:  # where it would not fit, with checkpointing
                expected = estimate(name, how, planners[name], checkpointing=kept, speed=None)
                if expected["fits"]:
                    break
            else:
                print(f"{name}:{how} is left out: it would not fit here, by the estimate: {expected}", file=sys.stderr)
                continue
            me, place = [sys.executable, __file__], str(args.folder / name) if CASES[name].shape else name
            if CASES[name].shape:
                subprocess.run([*me, "--build", name, place], check=True)
            env = {**os.environ, **({"OMP_NUM_THREADS": str(args.threads)} if args.threads else {})}
            me += ["--measure", name, how, place, "yes" if kept else "no"]
            done = subprocess.run(me, capture_output=True, text=True, env=env)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["killed"])[-1]
                print(f"{name}:{how} failed (exit {done.returncode}): {last}", file=sys.stderr, flush=True)
                continue
            row = {"shape": name, "method": how, "dtype": CASES[name].dtype, "checkpointing": kept}
            row["measured"] = json.loads(done.stdout.strip().splitlines()[-1])
            row["estimate"] = expected
            shown.append(row)
            with args.out.open("a") as f:
                f.write(json.dumps(row) + "\n")
            print(table([row]).splitlines()[-1], flush=True)
        if args.clean and wanted:
            clean(args.folder, wanted[-1][0])
    print(table(shown))


if __name__ == "__main__":
    main()
