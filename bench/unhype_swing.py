"""How far the code of an UnHype eraser (compact) swings in a step of virtual time, beside the step it is to imitate.

    python bench/unhype_swing.py ERASER --concept moon

For the Canvas captions of an erased concept, at every step of virtual time: the mean length of the code's change, the
S-th part of the code's mean length (by which a trajectory in a straight line grows), the median of their ratio, and the
cosine of two changes twenty steps apart. Draws nothing.
"""

import argparse
from collections.abc import Sequence

import torch

from erasers.erase import Eraser, Hyper
from erasers.erase._detect import codes
from erasers.pipelines import load, prompt_signals
from erasers.prompts import canvas

LATER = 20


def swing(steps: torch.Tensor) -> dict[str, float]:
    """Of codes at times 0 .. S, [S + 1, prompts, code]."""
    change, length = steps.diff(dim=0), steps.norm(dim=-1)
    part = length / (len(steps) - 1)
    return {
        "change": float(change.norm(dim=-1).mean()),
        "S-th part": float(part.mean()),
        "ratio": float((change.norm(dim=-1) / part[1:]).median()),
        "cosine later": float(torch.cosine_similarity(change[LATER:], change[:-LATER], dim=-1).mean()),
    }


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print the four figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("eraser")
    parser.add_argument("--concept", default="moon", choices=[c.name for c in canvas.OBJECTS])
    parser.add_argument("--model", default="canvas-sd")
    args = parser.parse_args(argv)
    payload = Eraser.from_pretrained(args.eraser).payload
    if not isinstance(payload, Hyper) or payload.plan.architecture != "compact":
        parser.error(f"expected a compact hypernetwork, got {args.eraser}: name another eraser")
    texts = [canvas.caption(args.concept, s.name) for s in canvas.STYLES]
    asked = prompt_signals(load(args.model), texts, payload.plan.read)
    times = payload.plan.times
    steps = torch.stack([codes(payload.network, asked, s / times).relu() for s in range(times + 1)])
    print(" | ".join(f"{name} {value:.4f}" for name, value in swing(steps).items()))


if __name__ == "__main__":
    main()
