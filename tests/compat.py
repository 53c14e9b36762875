"""`make compat`: what plain diffusers makes of the golden erasers, in an environment with an old release and in one
with the newest, both without `erasers`. Standard library only; the environments are kept under .compat/.

    python tests/compat.py                       # builds both (about 6 GB each, most of it torch) and looks
    python tests/compat.py --torch-of PYTHON     # takes torch from another Python's environment instead of its own
    python tests/compat.py --only newest         # one of them
    python tests/compat.py --as-is               # installs nothing
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACE = ROOT / ".compat"
PLAIN = Path(__file__).parent / "golden/plain.py"
COMMON = ("accelerate", "sentencepiece", "safetensors", "numpy")
ENVIRONMENTS = {
    "oldest": (
        *("diffusers==0.34.*", "transformers>=4.51,<4.58", "peft>=0.15,<0.18", "huggingface_hub<1", "torch>=2.6,<2.8"),
        *COMMON,
    ),
    "newest": ("diffusers", "transformers", "peft", "huggingface_hub", "torch", *COMMON),
}
LINKED = ("torch", "torchgen", "functorch", "triton", "nvidia")
FIND = "import json, site, sys; print(json.dumps([sys.version_info[:2], site.getsitepackages()]))"


def link_torch(python: str, folder: Path) -> tuple[Path, str]:
    """A folder with links to another environment's torch, and its version. Packages outside an environment are never
    taken away by its pip, so that the other one stays whole.
    """
    done = subprocess.run([python, "-c", FIND], check=True, capture_output=True, text=True)
    release, places = json.loads(done.stdout)
    if tuple(release) != sys.version_info[:2]:
        sys.exit(
            f"--torch-of: expected Python {'.'.join(map(str, sys.version_info[:2]))}, got {release[0]}.{release[1]}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    found = ""
    for entry in (e for place in places for e in Path(place).iterdir()):
        name, _, rest = entry.name.partition("-")
        if name in LINKED or name.startswith("nvidia_"):
            link = folder / entry.name
            if not link.is_symlink():
                link.symlink_to(entry)
            if name == "torch" and rest.endswith(".dist-info"):
                found = rest.removesuffix(".dist-info")
    if not found:
        sys.exit(f"--torch-of: no torch in the environment of {python}: name the Python of one that has it")
    return folder, found


def build(name: str, torch_of: str | None) -> Path:
    """An environment with everything installed; its Python."""
    home = PLACE / name
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(home, with_pip=True)
    wanted, more = list(ENVIRONMENTS[name]), []
    if torch_of:
        folder, version = link_torch(torch_of, PLACE / "torch")
        inside = subprocess.run([python, "-c", FIND], check=True, capture_output=True, text=True)
        (Path(json.loads(inside.stdout)[1][0]) / "torch-of.pth").write_text(f"{folder}\n")
        wanted = [w for w in wanted if not w.startswith("torch")]
        more = ["--constraint", str(PLACE / "torch.txt")]
        (PLACE / "torch.txt").write_text(f"torch=={version}\n")
    print(f"{name}: installing {', '.join(wanted)}", flush=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    done = subprocess.run([*pip, *more, *wanted])
    if done.returncode:
        sys.exit(f"{name}: pip could not install {', '.join(wanted)}: see above; --as-is takes what is there")
    return python


def look(name: str, python: Path) -> bool:
    """Run the plain script there and print what it saw."""
    done = subprocess.run([python, "-I", PLAIN], cwd=PLACE, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        print(f"{name}: the script did not run:\n{done.stderr.strip()[-2000:]}")
        return False
    print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in lines[0].items()))
    for line in lines[1:]:
        state = "ok" if line["ok"] else "known" if "known" in line else "FAILED"
        said = line.get("error") or f"off by {line['erased']:.1e} of its effect (base {line['base']:.1e})"
        note = f"; {line['known']}" if "known" in line else ""
        print(f"  {state:6} {line['eraser']:15} {line['file']:34} {said}{note}")
    if done.returncode and all(line["ok"] or "known" in line for line in lines[1:]):
        print(f"  FAILED {done.stderr.strip()[-500:]}")
    return done.returncode == 0


def main() -> None:
    """Build, look, and end with 1 if anything is not as it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ENVIRONMENTS, help="one environment")
    parser.add_argument("--torch-of", metavar="PYTHON", help="link torch of this Python's environment; download none")
    parser.add_argument("--as-is", action="store_true", help="install nothing")
    args = parser.parse_args()
    fine = True
    for name in [args.only] if args.only else ENVIRONMENTS:
        home = PLACE / name
        python = home / "bin/python" if args.as_is else build(name, args.torch_of)
        if not python.exists():
            sys.exit(f"no environment {home}: leave out --as-is, which builds it")
        fine &= look(name, python)
    sys.exit(not fine)


if __name__ == "__main__":
    main()
