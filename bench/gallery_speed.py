"""What galleries and judges cost beside the bare pipeline, at the same batch size.

    python bench/gallery_speed.py --images 480 --batch 60
    python bench/gallery_speed.py --model you/your-model --images 32 --batch 8 --steps 100 --judges judges

Times the stock pipeline called by hand, then the same images drawn into a folder, then drawn into a folder and judged,
then judged as they are drawn, as `erasers evaluate` does (on models whose world has judges, or with yours), in
turn and several times; prints the medians.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from erasers.eval import Judges, collect, judges, sampling
from erasers.eval._evaluate import draw_and_judge
from erasers.pipelines import Backbone, load
from erasers.prompts import UNLEARN_CANVAS, Prompt, canvas_grid


def bare(backbone: Backbone, prompts: list[Prompt], batch: int, steps: int, guidance: float) -> None:
    """The stock pipeline, batch by batch, and nothing else."""
    for k in range(0, len(prompts), batch):
        part = prompts[k : k + batch]
        noise = [torch.Generator("cpu").manual_seed(p.seed) for p in part]
        call = dict(num_inference_steps=steps, generator=noise, guidance_scale=guidance, **backbone.call)
        backbone.pipe(prompt=[p.text for p in part], **call)


def seconds(work: object) -> float:
    """Time of one call, the GPU's work in it."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="canvas-sd")
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--judges", type=Path, help="folder with judges of UnlearnCanvas, in object/ and style/")
    args = parser.parse_args()
    backbone = load(args.model)
    how = replace(sampling(backbone), batch=args.batch, sampler=None, **({"steps": args.steps} if args.steps else {}))
    prompts = (canvas_grid() * (1 + args.images // 600))[: args.images]
    prompts = [replace(p, seed=k) for k, p in enumerate(prompts)]
    tools = judges(backbone) if backbone.world else None
    if args.judges:
        tools = Judges.from_folder(args.judges, UNLEARN_CANVAS, str(backbone.device))

    def drawn(judge: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            gallery = collect(Path(folder) / "g", backbone, prompts=prompts, how=how)
            if judge:
                tools.look(gallery.images)

    def evaluated() -> None:
        draw_and_judge(backbone, prompts, how=how, judges=tools, pictures=True)

    kinds = {
        "stock pipeline": lambda: bare(backbone, prompts, args.batch, how.steps, how.guidance),
        "into a folder": lambda: drawn(False),
        **({"into a folder, judged": lambda: drawn(True), "judged as drawn": evaluated} if tools else {}),
    }
    bare(backbone, prompts[: args.batch], args.batch, how.steps, how.guidance)  # warm up
    times: dict[str, list[float]] = {k: [] for k in kinds}
    for _ in range(args.repeat):
        for name, work in kinds.items():
            times[name].append(seconds(work))
    base = statistics.median(times["stock pipeline"])
    print(f"{args.model}, {len(prompts)} images, batch {args.batch}, {how.steps} steps, median of {args.repeat}\n")
    print("| | s | images / s | of the stock pipeline's speed |\n|---|---:|---:|---:|")
    for name, found in times.items():
        median = statistics.median(found)
        print(f"| {name} | {median:.2f} | {len(prompts) / median:.1f} | {100 * base / median:.0f} % |")


if __name__ == "__main__":
    main()
