"""What SalUn needs at Stable Diffusion 1.5's real size (random weights, 64 x 64 latents, batch 1, whole UNet, float32).

    python bench/salun_cost.py

Counts the bytes of weights, gradients, Adam's moments and masks whenever a gradient arrives, in the mask stage and in
two training steps, and prints the largest sum of each stage beside what full Adam needs (weights, gradients, two
moments: 16 bytes a weight); also the highest resident memory over that of the loaded pipeline, activations included,
and the size of the mask's file.
"""

import tempfile
import time
from pathlib import Path

import torch
from uce_speed import sd15

from erasers.erase import Loop, Task, configure, salun, solve
from erasers.eval import Cost, resident
from erasers.pipelines import wrap
from erasers.prompts import Concept


def size(tensors: object) -> int:
    """Bytes of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)  # type: ignore[attr-defined]


def main() -> None:
    """Measure and print."""
    torch.manual_seed(0)
    backbone = wrap(sd15(), "sd15-shape")
    params = list(backbone.denoiser.parameters())
    weights = size(params)
    most: dict[str, dict[str, int]] = {}
    trainers = []
    start = salun._Trainer.start

    def follow(trainer: salun._Trainer, session: object) -> None:
        trainers.append(trainer)
        start(trainer, session)  # type: ignore[arg-type]

    def look(_p: torch.Tensor) -> None:
        student = trainers[0]._student
        now = {"weights": weights, "gradients": size(p.grad for p in params if p.grad is not None)}
        now["gradients"] += 0 if student is None else size(student._summed.values())
        now["moments"] = 0 if student is None else size(t for pair in student._moments.values() for t in pair)
        now["masks"] = 0 if student is None else size(student._bits.values())
        stage = "mask" if student is None else "training"
        if sum(now.values()) > sum(most.get(stage, {}).values()):
            most[stage] = now

    salun._Trainer.start = follow  # type: ignore[method-assign]
    for p in params:
        p.register_post_accumulate_grad_hook(look)
    settings = {"steps": 2, "batch": 1, "images": 1, "sampler_steps": 2, "lr": 1e-5}
    with tempfile.TemporaryDirectory() as folder:
        loaded = resident()
        with Cost() as memory:
            begun = time.perf_counter()
            tool = configure("salun", "paper", settings)
            loop = Loop(work=Path(folder) / "work", checkpoint_every=0)
            delta = solve(tool, backbone, task=Task((Concept("concept0"),), (Concept("concept1"),), 0), loop=loop)
            seconds = time.perf_counter() - begun
        file = (Path(folder) / "work" / "mask.safetensors").stat().st_size
    count, full = weights // 4, 4 * weights
    print(f"weights {count:,}; changed {sum(len(c.values) for c in delta.changes.values()):,}")  # type: ignore[union-attr]
    print("| stage | " + " | ".join(most["training"]) + " | sum | of full Adam |\n|---|---:|---:|---:|---:|---:|---:|")
    for stage, parts in most.items():
        cells = " | ".join(f"{v / 2**20:.0f}" for v in parts.values())
        print(f"| {stage} | {cells} | {sum(parts.values()) / 2**20:.0f} | {sum(parts.values()) / full:.1%} |")
    print(f"mask file: {file} bytes, {file / count:.5f} a weight")
    print(f"resident: {loaded:.0f} MB loaded, {memory.peak:.0f} MB more at most; {seconds:.0f} s")


if __name__ == "__main__":
    main()
