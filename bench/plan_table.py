"""The settings that fit into 6, 12 and 24 GB for each trained method, by arithmetic: the tables of docs/memory.md.

python bench/plan_table.py                     # SD 1.5 and SDXL
python bench/plan_table.py --shapes flux-dev
"""

import argparse
import tempfile
from pathlib import Path

import shapes

from erasers.erase import Loop, Machine, Planner, asked, configure, fit, parse_bytes
from erasers.prompts import InputError

METHODS = ("esd", "esd --dense", "concept_ablation", "salun", "salun --no-dense", "sfd", "unhype")


def row(planner: Planner, said: str, memory: list[int]) -> list[str]:
    """One method: what it needs as it is, and what fits."""
    name, *flag = said.split()
    given = {"dense": flag[0] == "--dense"} if flag else {}
    tool = configure(name, "sd", given)
    machine = Machine(device="cuda", dtype="float32" if getattr(tool, "dense", False) else None, flops=1e14)
    loop = Loop(work=Path("training"))
    ask = asked(planner, ["Van Gogh"], method=tool, preserve=None, loop=loop, machine=machine)
    plain = planner.estimate(ask)
    cells = [f"`{said}`", f"{plain.dtype}", f"{plain.memory / 2**30:.1f}", f"{plain.written / 2**20:.1f}"]
    for room in memory:
        try:
            found = fit(planner, ask, room)
        except InputError as error:
            cells.append(str(error))
            continue
        words = " ".join(found.words) or "as it is"
        cells.append(f"{words}: {found.estimate.memory / 2**30:.1f}" if found.fits else "none")
    return cells


def main() -> None:
    """Print a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="sd15,sdxl", help=f"with commas, of {', '.join(shapes.NAMES)}")
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas")
    parser.add_argument("--memory", default="6GB,12GB,24GB", help="with commas")
    args = parser.parse_args()
    sizes = args.memory.split(",")
    for name in args.shapes.split(","):
        what = shapes.shape(name)
        with tempfile.TemporaryDirectory() as folder:
            planner = Planner(shapes.write(what, Path(folder)))
            print(f"\n{what['source']} (`bench/shapes/{name}.json`)\n", flush=True)
            print("| " + " | ".join(["method", "weights in", "GB as it is", "MB written", *sizes]) + " |")
            print("|---|---|---:|---:|" + "---|" * len(sizes))
            for said in args.methods.split(","):
                print("| " + " | ".join(row(planner, said, [parse_bytes(s) for s in sizes])) + " |", flush=True)


if __name__ == "__main__":
    main()
