"""docs/recipes.md: every command and every line of Python on the page is run, in a reader's order, in one folder.

Models become small random pipelines of the same classes, CLIP the bundled one, trainings two steps; nothing else
changes.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from families import build
from test_cli import run

from erasers.erase import methods
from erasers.eval import Gallery

PAGE = (Path(__file__).parent.parent / "docs/recipes.md").read_text()
STAND_INS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "black-forest-labs/FLUX.1-dev": "flux",
    "open_clip:ViT-B-32:openai": "canvas-clip",
    "torch.float16": "torch.float32",
    "--dtype float16": "--dtype float32",
}
FEW = {
    "esd": "--steps 2 --sampler-steps 2",
    "unhype": "--steps 2 --sampler-steps 2 --retained 4",
    "draw": "--steps 1",
    "grid": "--steps 1",
}
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def blocks(section):
    """The fenced blocks of a section: language and text, with the stand-ins."""
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```", section, re.M | re.S):
        for real, here in STAND_INS.items():
            text = text.replace(real, here)
        yield language, text


def lines(text):
    """The commands of a shell block, continued lines joined."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def shortly(words):
    """The words of a command, with few steps."""
    method = words[words.index("--method") + 1] if "--method" in words else "uce"
    return [*words, *shlex.split(FEW.get(method if words[0] == "erase" else words[0], ""))]


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
    """A folder with the models, and a LoRA of the reader's own."""
    monkeypatch.chdir(tmp_path)
    for name, family in {"sd15": "sd", "sdxl": "sdxl", "flux": "flux"}.items():
        build(family).pipe.save_pretrained(name)
    assert run("erase", "a dog", "--model", "sd15", "--out", "dog")[0] == 0
    assert run("export", "dog", "--to", "peft", "--out", "my-lora.safetensors")[0] == 0
    return tmp_path


@pytest.mark.slow
def test_all_recipes(kitchen):
    ran = 0
    for title, section in SECTIONS.items():
        for language, text in blocks(section):
            if language == "python":
                exec(text, {})
                continue
            for line in lines(text):
                if not line.startswith("erasers "):
                    subprocess.run(["bash", "-ec", line], check=True)
                    continue
                code, out, err = run(*shortly(shlex.split(line)[1:]))
                assert code == 0, f"{title}: {line}\n{out}{err}"
                ran += 1
    assert ran == len(re.findall(r"^erasers ", PAGE, re.M))
    for made in ("van-gogh.png", "each.png", "loras/no-brad-pitt.safetensors", "without-van-gogh/model_index.json"):
        assert (kitchen / made).exists(), made
    assert len(Gallery.load(kitchen / "drawn/erased").images) == 5 * 8


def test_nothing_on_the_page_escapes_the_stand_ins():
    """No id of a model is left that would be fetched, and every method on the page gets few steps."""
    for section in SECTIONS.values():
        for language, text in blocks(section):
            assert not re.search(r"[\w.-]+/(stable|FLUX|sd)[\w.-]*", text), text
            for line in lines(text) if language == "sh" else ():
                words = shlex.split(line)
                if words[:2] == ["erasers", "erase"]:
                    method = words[words.index("--method") + 1] if "--method" in words else "uce"
                    assert method in methods()
                    assert method == "uce" or method in FEW


def test_the_wishes_that_were_named_are_there():
    told = " ".join(SECTIONS).lower()
    wishes = (
        "artist",
        "object from sdxl",
        "person from flux",
        "ten concepts",
        "lora of my own",
        "baked",
        "comfyui or a1111",
    )
    for wish in (*wishes, "stacked", "quick check", "6 or 12 gb", "undoing", "clip"):
        assert wish in told, wish
    assert "None of this was run on real weights" in PAGE
