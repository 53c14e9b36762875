"""What the documents show is run: the README's Python and shell, and the notebooks."""

import re
import shlex
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from test_cli import run

from erasers.erase import Eraser
from erasers.eval._gallery import SAMPLING

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FEW = """
from dataclasses import replace
from erasers.eval._gallery import SAMPLING
SAMPLING["canvas"] = replace(SAMPLING["canvas"], steps=1)
"""


@pytest.fixture
def few(monkeypatch):
    """Evaluations of canvas-sd draw in one step, not in twelve: what is shown is run whole, its figures are not."""
    monkeypatch.setitem(SAMPLING, "canvas", SAMPLING["canvas"])  # put back afterwards
    exec(FEW, {})


def block(heading: str, language: str = "sh") -> list[str]:
    """The lines of the first code block under one of the README's headings."""
    part = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", part, re.S)
    assert found, f"README has no block of {language} under {heading}"
    return found[1].splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook(path, tmp_path):
    """Every cell as it stands; images of evaluations are drawn in one step."""
    notebook = nbformat.read(path, as_version=4)
    assert not any(c.get("outputs") for c in notebook.cells), "commit notebooks without outputs"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FEW))
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_readme_commands_and_python(tmp_path, monkeypatch):
    """In a reader's order, in an empty folder, without commands that name the reader's own model."""
    monkeypatch.chdir(tmp_path)
    python = re.findall(r"```python\n(.*?)```", README, re.S)
    lines = [line for line in block("Erase") if "you/" not in line]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line.partition("#")[0])
        assert words[0] == "erasers"
        assert run(*words[1:])[0] == 0, line
    assert (tmp_path / "grid.png").exists()
    scope = {}
    exec(python[0], scope)
    assert scope["report"].scores["ua"].n == 50
    scope["pipe"] = scope["backbone"].pipe
    exec(python[1], scope)
    scope["pipe"].unload_lora_weights()
    exec(python[2], scope)
    assert not scope["handle"].is_active()


@pytest.mark.slow
def test_readme_trained_methods(tmp_path, monkeypatch):
    """The block on trained methods, line by line but shortly; the launcher's line is run by tests/test_train.py."""
    monkeypatch.chdir(tmp_path)
    lines = block("Trained methods")
    assert len(lines) == 4
    few = shlex.split("--steps 2 --batch 2 --sampler-steps 2")
    for line in lines[:3]:
        words = shlex.split(line.partition("#")[0])
        assert words[0] == "erasers"
        more = ["--images", "4"] if "salun" in words else ["--pool", "2"]
        assert run(*words[1:], *few, *more)[0] == 0, line
    assert lines[3].startswith("torchrun --standalone --nproc_per_node 2 -m erasers.app.cli erase circle --method esd")


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_readme_comparing(tmp_path, monkeypatch):
    """The block on comparing and judging, line by line, with fewer concepts and seeds."""
    monkeypatch.chdir(tmp_path)
    assert run("erase", "moon", "--out", "my-eraser")[0] == 0
    lines = block("Compare and judge")
    assert len(lines) == 6
    for line in lines:
        words = [w.replace("moon,star,mosaic", "moon") for w in shlex.split(line.partition("#")[0])]
        assert words[0] == "erasers"
        more = ["--seed-list", "188"] if "--protocol" in words else []
        assert run(*words[1:], *more)[0] == 0, line
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert Eraser.from_pretrained("my-eraser").recipe.scores["ua"]["n"] == 50


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_strange_addresses():
    """No registry host and no path of one machine in anything that is committed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if name.endswith((".py", ".md", ".toml", ".yaml", ".json", ".jsonl", ".ipynb", "Makefile", "run")):
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"https?://[^\s)\"']*/(simple|packages)/", text), name
            assert not re.search(
                r"(?<![\w.])/(root|home|work|Users)/", text.replace(r"/(root|home|work|Users)/", "")
            ), name
