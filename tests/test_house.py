"""The house rules that a machine can check."""

import ast
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["prompts", "pipelines", "erase", "eval", "app"]


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import in a file, those inside functions too."""
    out = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            out += [(node.level, name) for name in names]
        elif isinstance(node, ast.Import):
            out += [(0, alias.name) for alias in node.names]
    return out


@pytest.mark.parametrize("room", ROOMS)
def test_imports_never_run_up(room):
    above = set(ROOMS[ROOMS.index(room) + 1 :])
    for path in sources(room):
        depth = len(path.relative_to(ROOT).parts)
        for level, module in imported(path):
            first = module.split(".")[0]
            if level == depth:
                assert first not in above, f"{path} imports {module}"
            assert not (level == 0 and first == "erasers"), f"{path} imports itself absolutely: {module}"


def test_only_pipelines_imports_diffusers():
    for room in ROOMS:
        for path in sources(room):
            if room != "pipelines":
                assert not [m for _, m in imported(path) if m.split(".")[0] == "diffusers"], path


def test_prompts_need_the_standard_library_only():
    for path in sources("prompts"):
        for level, module in imported(path):
            assert level or module.split(".")[0] in sys.stdlib_module_names, f"{path}: {module}"


def test_every_folder_is_packaged_and_the_root_is_bare():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tree = {"erasers"} | {
        ".".join(["erasers", *p.parent.relative_to(ROOT).parts]) for r in ROOMS for p in (ROOT / r).rglob("__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == tree
    assert [p.name for p in ROOT.glob("*.py")] == ["__init__.py"]
    for room in ROOMS:
        for path in sources(room):
            assert (path.parent / "__init__.py").exists(), f"{path} lies in no package"


@pytest.mark.parametrize("room", ["erase", "eval"])
def test_plugins_are_short(room):
    for path in sources(room):
        if not path.name.startswith("_"):
            assert len(path.read_text().splitlines()) <= 200, path


def test_root_import_is_light_and_lazy():
    code = "import sys, erasers; erasers.__version__; assert 'torch' not in sys.modules; erasers.Eraser; erasers.load"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version_is_said_once():
    import erasers

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == erasers.__version__
    assert f"## {erasers.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_help_answers_in_under_a_second():
    """Of processor time, so that a busy machine changes nothing."""

    def spent():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    best = 9.0
    for _ in range(3):
        start = spent()
        done = subprocess.run([sys.executable, "-m", "erasers.app.cli", "--help"], capture_output=True, text=True)
        best = min(best, spent() - start)
    assert done.returncode == 0
    assert "erase" in done.stdout
    assert best < 1.0
