"""Which sampler and how many steps are enough on a Canvas pipeline: judge accuracy against the first setting, paired.

python bench/canvas_sampling.py --guidance 4 --try ddim:50,ddim:25,dpm++:15
python bench/canvas_sampling.py --model canvas-flow --try euler:28:7,euler:12:4:0

A setting is sampler:steps, then as wanted :guidance and :max_sequence_length (of Stable Diffusion 3's third encoder).
"""

import argparse
import time

from erasers.eval import Sampling, draw, judges
from erasers.eval._score import clustered
from erasers.pipelines import load, wrap
from erasers.prompts import SEEDS, canvas_grid


def main() -> None:
    """Print a row per setting; the first is the reference of the paired differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="canvas-sd")
    parser.add_argument("--try", dest="settings", default="ddim:50,ddim:25,ddim:15,dpm++:20,dpm++:15,dpm++:10")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    loaded, prompts = load(args.model), canvas_grid(SEEDS[: args.seeds])
    judge = judges(loaded)
    cells = [(p.object, p.style) for p in prompts]
    first = None
    print("| setting | object % | style % | change against the first (95 %) | s per 120 images |")
    print("|---|---:|---:|---|---:|")
    for setting in args.settings.split(","):
        sampler, steps, guidance, tokens = [*setting.split(":"), None, None][:4]
        scale = args.guidance if guidance is None else float(guidance)
        how = Sampling(steps=int(steps), guidance=scale, sampler=sampler, batch=60)
        call = {} if tokens is None else {"max_sequence_length": int(tokens)}
        backbone = wrap(loaded.pipe, loaded.name, call=call)
        start = time.perf_counter()
        gallery = draw(backbone, prompts, how=how)
        seconds = (time.perf_counter() - start) * 120 / len(prompts)
        seen = judge.look(gallery.images)
        right = [
            [100.0 * (a == b.object) for a, b in zip(seen.objects, prompts, strict=True)],
            [100.0 * (a == b.style) for a, b in zip(seen.styles, prompts, strict=True)],
        ]
        first = first or right
        changes = []
        for now, then in zip(right, first, strict=True):
            gap = [a - b for a, b in zip(now, then, strict=True)]
            low, high = clustered(gap, cells)
            changes.append(f"{sum(gap) / len(gap):+.2f} ({low:+.2f} .. {high:+.2f})")
        means = " | ".join(f"{sum(r) / len(r):.2f}" for r in right)
        print(f"| {setting} | {means} | objects {changes[0]}, styles {changes[1]} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
