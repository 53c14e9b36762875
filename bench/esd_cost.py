"""What a step of ESD costs: time outside the denoiser, and memory at Stable Diffusion 1.5's real size (random weights).

    python bench/esd_cost.py time      # canvas-sd: share of wall time that is not spent in the denoiser
    python bench/esd_cost.py memory    # SD 1.5 shape, 64 x 64 latents, batch 1, float32: a row per setting

Each memory setting runs in a process of its own; the figure is the highest resident memory over that of the loaded
pipeline.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from uce_speed import sd15

from erasers.erase import Loop, Session, Task, configure, solve
from erasers.eval import Cost, resident
from erasers.pipelines import load, wrap
from erasers.prompts import Concept, canvas

SETTINGS = {
    "LoRA rank 4, cross-attention": {"train": "cross"},
    "dense, cross-attention (ESD-x)": {"train": "cross", "dense": True},
    "dense, everything else (ESD-u)": {"train": "not-cross", "dense": True},
    "dense, whole UNet": {"train": "all", "dense": True},
}


class Clock:
    """Adds up the time spent inside some functions."""

    def __init__(self) -> None:
        self.total = 0.0

    def around(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return f(*args, **kwargs)
            finally:
                self.total += time.perf_counter() - start

        return timed


PUBLISHED = {"pool": 0, "refresh": 0, "keep": 0.0, "relative": 0.0, "compose": False, "decay": False}
"""What the Canvas preset adds to the published method, off."""


def measure_time() -> None:
    """Wall time of ESD on canvas-sd against the time inside the denoiser."""
    backbone = load("canvas-sd")
    concept = canvas.find("moon")
    kept = tuple(c for c in canvas.CONCEPTS.values() if c != concept)
    for label, settings in {
        "canvas preset, 60 of its 160 steps": {"steps": 60},
        "as published (new latents in every step)": {"steps": 25, **PUBLISHED},
        "as published, dense": {"steps": 25, **PUBLISHED, "dense": True},
    }.items():
        forward, backward = Clock(), Clock()
        original, back = backbone.denoiser.forward, Session.backward
        backbone.denoiser.forward = forward.around(original)
        Session.backward = backward.around(back)
        start = time.perf_counter()
        solve(configure("esd", "canvas", settings), backbone, task=Task((concept,), kept, 0))
        wall = time.perf_counter() - start
        backbone.denoiser.forward, Session.backward = original, back
        rest = wall - forward.total - backward.total
        print(
            f"{label}: wall {wall:.1f} s, forward {forward.total:.1f} s, backward {backward.total:.1f} s, "
            f"the rest {rest:.2f} s = {rest / wall:.1%} of wall time",
            flush=True,
        )


def measure_memory(only: str | None) -> None:
    """One setting here, or each in its own process."""
    if only is None:
        print("| trained | gradient checkpointing | extra memory, MB | s a step |\n|---|---|---:|---:|", flush=True)
        for name in SETTINGS:
            for checkpointing in (False, True):
                spec = json.dumps([name, checkpointing])
                done = subprocess.run(
                    [sys.executable, __file__, "memory", "--only", spec], capture_output=True, text=True
                )
                failed = f"| {name} | {'yes' if checkpointing else 'no'} | did not fit (exit {done.returncode}) | |"
                print(done.stdout.strip() if done.returncode == 0 else failed, flush=True)
        return
    name, checkpointing = json.loads(only)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    backbone = wrap(sd15(), "sd15-shape")
    weights = sum(p.numel() for p in backbone.denoiser.parameters()) * 4 / 2**20
    settings = {"steps": 1, "batch": 1, "sampler_steps": 2, "contexts": 1, "pool": 0, **SETTINGS[name]}
    task = Task((Concept("concept0"),), (), 3)  # a seed whose step denoises once before it trains
    loaded = resident()
    with Cost() as memory:
        start = time.perf_counter()
        tool = configure("esd", "paper", {"dense": False, **settings})
        solve(tool, backbone, task=task, loop=Loop(gradient_checkpointing=checkpointing))
        seconds = time.perf_counter() - start
    print(f"| {name} | {'yes' if checkpointing else 'no'} | {memory.peak:.0f} | {seconds:.0f} |")
    print(f"UNet weights {weights:.0f} MB, resident with the pipeline loaded {loaded:.0f} MB", file=sys.stderr)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "memory"])
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "time":
        measure_time()
    else:
        measure_memory(args.only)


if __name__ == "__main__":
    main()
