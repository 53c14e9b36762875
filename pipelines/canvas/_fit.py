"""The recipe's training loop: AdamW, warm-up and cosine decay, an average of the weights, resumable to the step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from .._seeds import step_generator
from .world import save_tensors, write_json


@dataclass(frozen=True)
class Fit:
    """How long and how fast.

    Attributes:
        steps: optimiser steps.
        lr: peak learning rate; linear warm-up over `warmup` steps, cosine decay to `lr / 20`.
        decay: AdamW weight decay.
        ema: decay of the averaged weights, reached gradually; 0 keeps the last weights.
        clip: gradient norm ceiling.
        every: steps between checkpoints.
        bf16: run the forward pass under bfloat16 autocast.
        seed: step k draws from a generator seeded with (seed, k), so a resumed run repeats the same draws.
    """

    steps: int
    lr: float
    warmup: int = 100
    decay: float = 0.01
    ema: float = 0.0
    clip: float = 1.0
    every: int = 500
    bf16: bool = False
    seed: int = 0


M = TypeVar("M", bound=nn.Module)
Loss = Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]


def fit(name: str, model: M, loss: Loss, plan: Fit, work: Path) -> M:
    """Train `model` in place and return it with its averaged weights.

    `loss(step, generator)` gives a scalar and what to log. State lives in `work/name.safetensors` (weights, average,
    moments) and `work/name.json`; a killed run goes on from there, a finished one loads and returns at once.
    """
    work.mkdir(parents=True, exist_ok=True)
    weights, journal, log = work / f"{name}.safetensors", work / f"{name}.json", work / f"{name}.log.jsonl"
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    buffers = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
    average = {n: t.detach().clone() for n, t in (params | buffers).items()}
    optimiser = torch.optim.AdamW(params.values(), lr=plan.lr, weight_decay=plan.decay, betas=(0.9, 0.99), fused=True)

    start, spent = 0, 0.0
    if weights.exists() and journal.exists():
        note = json.loads(journal.read_text())
        if note["plan"] != asdict(plan):
            raise ValueError(f"{journal} was made with {note['plan']}, asked for {asdict(plan)}: use another folder")
        state = load_file(weights)
        start, spent = int(state.get("step", torch.tensor(note["step"]))), note["seconds"]
        _restore(state, model, params, average, optimiser, start)

    def checkpoint(step: int) -> None:
        state = {f"model/{n}": t.detach() for n, t in model.state_dict().items()}
        state |= {f"average/{n}": t for n, t in average.items()} | {"step": torch.tensor(step)}
        for n, p in params.items():
            for key in ("exp_avg", "exp_avg_sq"):
                if key in optimiser.state[p]:
                    state[f"{key}/{n}"] = optimiser.state[p][key]
        save_tensors(weights, {k: v.contiguous().clone() for k, v in state.items()})
        write_json(journal, {"step": step, "seconds": spent, "plan": asdict(plan)})

    model.train()
    clock = time.perf_counter()
    for step in (bar := tqdm(range(start, plan.steps), desc=name, initial=start, total=plan.steps, mininterval=5)):
        rate = plan.lr * min(1.0, (step + 1) / plan.warmup)
        rate *= 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(next(iter(params.values())).device.type, torch.bfloat16, enabled=plan.bf16):
            value, extra = loss(step, step_generator(plan.seed, step))
        value.backward()
        norm = nn.utils.clip_grad_norm_(params.values(), plan.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"{name}: the gradient is {norm} at step {step}; the last checkpoint is kept")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        keep = min(plan.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for n, t in (params | buffers).items():
                average[n].lerp_(t, 1 - keep)
        now = time.perf_counter()
        spent, clock = spent + now - clock, now
        if step % 50 == 0 or step == plan.steps - 1:
            row = {"step": step, "loss": round(value.item(), 5), "seconds": round(spent, 1), **extra}
            with log.open("a") as f:
                f.write(json.dumps(row) + "\n")
            bar.set_postfix({k: v for k, v in row.items() if k not in ("step", "seconds")})
        if (step + 1) % plan.every == 0 or step == plan.steps - 1:
            checkpoint(step + 1)
    with torch.no_grad():
        for n, t in (params | buffers).items():
            t.copy_(average[n])
    return model.eval()


def _restore(
    state: dict[str, Tensor],
    model: nn.Module,
    params: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    step: int,
) -> None:
    model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model/")})
    with torch.no_grad():
        for n, t in average.items():
            t.copy_(state[f"average/{n}"])
    for n, p in params.items():
        if f"exp_avg/{n}" in state:
            optimiser.state[p] = {
                "step": torch.tensor(float(step), device=p.device),
                "exp_avg": state[f"exp_avg/{n}"].to(p.device),
                "exp_avg_sq": state[f"exp_avg_sq/{n}"].to(p.device),
            }
