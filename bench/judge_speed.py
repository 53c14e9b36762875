"""What judges of the published size cost: two ViT-L/16 with random weights, by way of `erasers convert-judge`.

    python bench/judge_speed.py --images 16 --batches 1,4,16

Writes a checkpoint by timm's names, converts it, and lets both judges look at noise in batches of each size, in turn
and several times. Prints images a second, the most memory on top of the loaded judges, and whether all batches saw the
same: random weights know nothing, so that says that batches change no verdict, and nothing else.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erasers.eval import Cost, Judges, convert_judge
from erasers.prompts import UNLEARN_CANVAS


def checkpoint(
    classes: int, width: int, depth: int, seed: int, *, patch: int = 16, side: int = 224
) -> dict[str, Tensor]:
    """A ViT's weights by timm's names: linears of deviation width^-0.5, norms of 1, biases of 0."""
    draw = torch.Generator().manual_seed(seed)

    def linear(name: str, *shape: int) -> dict[str, Tensor]:
        weight = torch.randn(*shape, generator=draw) * width**-0.5
        return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(shape[0])}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}

    places = (side // patch) ** 2 + 1
    state = {n: torch.randn(1, k, width, generator=draw) * 0.02 for n, k in (("cls_token", 1), ("pos_embed", places))}
    state |= linear("patch_embed.proj", width, 3, patch, patch) | norm("norm") | linear("head", classes, width)
    sizes = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for k in range(depth):
        for name, (high, wide) in sizes.items():
            state |= linear(f"blocks.{k}.{name}", high * width, wide * width)
        state |= norm(f"blocks.{k}.norm1") | norm(f"blocks.{k}.norm2")
    return state


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batches", default="1,4,16", help="with commas")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for seed, kind in enumerate(("object", "style")):
            torch.save(checkpoint(len(UNLEARN_CANVAS.names(kind)), args.width, args.depth, seed), place / "vit.pth")
            convert_judge(place / "vit.pth", place / "judges", kind=kind)
        (place / "vit.pth").unlink()
        judges = Judges.from_folder(place / "judges", UNLEARN_CANVAS, args.device)
        noise = np.random.default_rng(0)
        images = [Image.fromarray(noise.integers(0, 256, (512, 512, 3), np.uint8)) for _ in range(args.images)]
        judges.look(images[:1])
        sizes = [int(b) for b in args.batches.split(",")]
        took: dict[int, list[float]] = {b: [] for b in sizes}
        memory, seen = dict.fromkeys(sizes, 0.0), set()
        for _ in range(args.repeat):
            for batch in sizes:
                start = time.perf_counter()
                with Cost(torch.device(args.device or "cpu")) as cost:
                    seen.add(judges.look(images, batch))
                took[batch].append(time.perf_counter() - start)
                memory[batch] = max(memory[batch], cost.peak)
    print("| batch | images/s | MB |\n|---:|---:|---:|")
    for batch in sizes:
        print(f"| {batch} | {args.images / statistics.median(took[batch]):.2f} | {memory[batch]:.0f} |")
    verdict = next(iter(seen))
    kinds = len(set(verdict.objects)), len(set(verdict.styles))
    print(
        f"\n{'same' if len(seen) == 1 else 'DIFFERENT'} verdicts; {kinds[0]} objects and {kinds[1]} styles were named"
    )


if __name__ == "__main__":
    main()
