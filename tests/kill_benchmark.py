"""Run a small benchmark in a process that is killed (SIGKILL) again and again, then let it finish; print as JSON how
often it was killed and which finished files were made again.

    python tests/kill_benchmark.py FOLDER KILLS SEED

The processes are forks of this one, so that each starts in no time; the sentences drawn are few.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from erasers.eval import Cells, Plan, benchmark, rows_of, write_all
from erasers.eval import _evaluate as scoring
from erasers.prompts import canvas_plan

PLAN = Plan(methods=("uce", "random"), concepts=("moon", "moon+ink"), only=("ua", "ira"), steps=1)


def few(concept):
    """Six of a concept's images: four that ask for it and two that do not."""
    whole = [p for p in canvas_plan(concept) if p.role == "grid"]
    asked = [p for p in whole if concept.name in (p.object, p.style)]
    return asked[::15] + [p for p in whole if p not in asked][:2]


def work(folder):
    torch.set_num_threads(1)
    scoring.canvas_plan = few
    scoring.Control.plan = lambda self, concept: few(concept)
    benchmark(PLAN, folder)
    write_all(rows_of(folder), folder)


def run(folder, seconds=None):
    """In a fork; killed after so many seconds. Whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            work(folder)
        except BaseException as error:  # told and turned into an exit code: a fork must never return to its caller
            print(f"{type(error).__name__}: {error}", file=sys.__stderr__, flush=True)
            os._exit(1)
        os._exit(0)
    until = time.monotonic() + (seconds if seconds is not None else 1e9)
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, "the benchmark failed by itself, see above"
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def stamps(folder):
    """When each finished cell and eraser was written: what is done again gets another time."""
    files = [*folder.glob("cells/*/*/*.json"), *folder.glob("erasers/*/*/*/made.json")]
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in files}


def main():
    folder, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    start = time.monotonic()
    assert run(folder / "whole")
    length = time.monotonic() - start
    killed, again, seen = 0, [], {}
    for _ in range(20 * kills):
        if killed == kills:
            break
        killed += not run(folder / "killed", rng.uniform(0.03, 0.2) * length)
        now = stamps(folder / "killed")
        again += [f for f, t in seen.items() if now.get(f) != t]
        seen = now
    left = len(Cells(folder / "killed").rows())
    assert run(folder / "killed")
    now = stamps(folder / "killed")
    again += [f for f, t in seen.items() if now.get(f) != t]
    print(json.dumps({"killed": killed, "made again": again, "done before the last run": left, "seconds": length}))


if __name__ == "__main__":
    main()
