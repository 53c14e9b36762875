"""mypy as a user's project would see us: build the wheel, unpack it, check the package `erasers` in it."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Build, unpack, check; the exit code is mypy's."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        source = Path(scratch) / "source"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.split("\0")  # fmt: skip
        for name in filter(None, listed):
            if (ROOT / name).is_file() and not name.endswith((".safetensors", ".png", ".ipynb")):
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes((ROOT / name).read_bytes())
        subprocess.run(
            [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch, str(source)],
            check=True,
        )
        site = Path(scratch) / "site"
        zipfile.ZipFile(next(Path(scratch).glob("*.whl"))).extractall(site)
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "erasers"]
        return subprocess.run(
            command, cwd=site, env=os.environ | {"MYPYPATH": str(site), "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache")}
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
