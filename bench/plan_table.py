"""The settings that fit into 6, 12 and 24 GB for each trained method, by arithmetic: the tables of docs/memory.md.

    python bench/plan_table.py                              # SD 1.5 and SDXL
    python bench/plan_table.py --shapes flux-dev
    python bench/plan_table.py --into docs/memory.md        # puts them in the place of the tables there

The presets `sd`, batches as they stand there; on a GPU that need not be there. Nothing is measured.
"""

import argparse
import tempfile
from pathlib import Path

import shapes

from erasers.erase import Loop, Machine, Planner, asked, configure, fit, parse_bytes, write_text
from erasers.prompts import InputError

MARKS = ("<!-- plan_table: begin -->", "<!-- plan_table: end -->")
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


def put(lines: list[str], page: Path) -> None:
    """The lines between the page's two marks, in the place of what is there."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise InputError(f"{page} has no place for the tables: expected {MARKS[0]} and {MARKS[1]} in it")
    write_text(page, before + MARKS[0] + "\n" + "\n".join(lines) + "\n\n" + MARKS[1] + after)


def main() -> None:
    """Print a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="sd15,sdxl", help=f"with commas, of {', '.join(shapes.NAMES)}")
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas")
    parser.add_argument("--memory", default="6GB,12GB,24GB", help="with commas")
    parser.add_argument("--into", type=Path, help="a page with marks for the tables")
    args = parser.parse_args()
    sizes, lines = args.memory.split(","), list[str]()

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    for name in args.shapes.split(","):
        what = shapes.shape(name)
        with tempfile.TemporaryDirectory() as folder:
            planner = Planner(shapes.write(what, Path(folder)))
            say(f"\n{what['source']} (`bench/shapes/{name}.json`):\n")
            say("| " + " | ".join(["method", "weights in", "GB as it is", "MB written", *sizes]) + " |")
            say("|---|---|---:|---:|" + "---|" * len(sizes))
            for said in args.methods.split(","):
                say("| " + " | ".join(row(planner, said, [parse_bytes(s) for s in sizes])) + " |")
    if args.into is not None:
        put(lines, args.into)


if __name__ == "__main__":
    main()
