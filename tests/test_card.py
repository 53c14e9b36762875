"""The model card of every kind of eraser: the Hub reads its front matter, its tables are whole, its code is code."""

import ast
import inspect
import re
import shlex
from dataclasses import replace

import diffusers
import pytest
import single_file
import torch
from golden import plain
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import tiny
from erasers.erase import Eraser
from erasers.erase._base import _transformer, flags, one_file, opened, shared, told
from erasers.erase._card import card
from erasers.pipelines._families import FAMILIES

SCORES = {
    "ua": {"value": 98.0, "low": 91.5, "high": 99.6, "n": 50, "control": 0.0, "unit": "%"},
    "clip_score": {"value": 0.312, "low": 0.3, "high": 0.32, "n": 50, "control": 0.314, "unit": ""},
    "settings": {"model": "canvas-sd", "prompts": "unlearncanvas", "steps": 12},
}
MANY = [
    {"name": "Van Gogh", "anchor": "a painting", "synonyms": ["Vincent | the painter", "The *Starry* Night"]},
    {"name": "a <b>cat</b>", "anchor": None, "synonyms": []},
    {"name": "猫_の_絵", "anchor": "dog", "synonyms": ["`code`"]},
]


FILE = "dreamshaper_8.safetensors"
ADDRESS = "https://huggingface.co/you/models/resolve/v2/sd/model.safetensors"
HOMES = {"scored": "stable-diffusion-v1-5/stable-diffusion-v1-5", "address": "you/models", "version": "you/model"}
"""What of the Hub a base is."""


def recipes():
    """One of each thing that a card can be about."""
    found = {e["name"]: Eraser.from_pretrained(plain.HERE / e["name"]).recipe for e in plain.WORLD["erasers"]}
    lora, three = found["lora-canvas-sd"], found["lora-sd3"]
    concepts = [{**lora.concepts[0], **c} for c in MANY]
    hub = {**lora.base, "id": HOMES["scored"]}
    rest = {"id": FILE, "config": HOMES["scored"]}
    few = {"id": "flux1-dev-Q4_0.gguf", "config": "black-forest-labs/FLUX.1-dev", "quantized": "gguf"}

    def of(name, **base):
        return replace(found[name], base={**found[name].base, **base})

    return {
        "file": of("lora-canvas-sd", id=FILE),
        "address": of("lora-canvas-sd", id=ADDRESS, revision="v2", commit="c" * 40),
        "gguf": of("lora-flux", **few),
        "delta of a file": of("delta-sd", id=FILE),
        "delta of a denoiser": of("delta-sd", **rest),
        "hyper of a file": of("hyper-sd", id=FILE),
        "hyper of a denoiser": of("hyper-sd", **rest),
        "version": of("lora-sdxl", id=HOMES["version"], revision="v2", variant="fp16"),
        **found,
        "scored": replace(lora, scores=SCORES, base=hub),
        "many": replace(lora, concepts=concepts, preserve=["dog", "a | b"]),
        "derived": replace(
            lora, derived={"from": "delta", "captured energy": 0.91, "rank": 16, "parameters left out": 3}
        ),
        "pixart": replace(three, family="pixart-sigma"),
        "sana": replace(three, family="sana"),
        "chroma": replace(three, family="chroma", targets=["transformer.distilled_guidance_layer.in_proj"]),
    }


RECIPES = recipes()
CARDS = {(name, repo): card(recipe, repo) for name, recipe in RECIPES.items() for repo in (None, "me/no-moon")}


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.mark.parametrize(("name", "repo"), CARDS, ids=lambda x: x or "folder")
def test_card(name, repo):
    text, recipe = CARDS[name, repo], RECIPES[name]
    read = ModelCard(text)
    data = read.data.to_dict()
    assert data["pipeline_tag"] == "text-to-image"
    assert data["library_name"] == "diffusers"
    assert {"concept-erasure", "diffusers"} <= set(data["tags"])
    assert ("lora" in data["tags"]) == (recipe.kind == "lora")
    assert data.get("base_model") == HOMES.get(name)
    assert data.get("base_model_relation") == ("adapter" if name in HOMES else None)
    for code in blocks(text, "python"):
        ast.parse(code)
    for code in blocks(text, "sh"):
        assert shlex.split(code)[0] == "erasers"
        assert ("--model-config" in code) == ("config" in recipe.base)
    if one_file(recipe.base["id"]):  # which only from_single_file reads
        loads = [line for code in blocks(text, "python") for line in code.splitlines() if ".from_pretrained(" in line]
        assert not [line for line in loads if FILE in line or "model.safetensors" in line or ".gguf" in line]
    assert blocks(text, "python")
    assert ("this-folder" in text) == (repo is None)
    assert (repo or "this-folder") in text
    longest = max(len(line) for code in blocks(text, "python") + blocks(text, "sh") for line in code.splitlines())
    assert longest <= 100, "a line that the page would cut off"
    assert "\n\n\n" not in text.partition("---\n\n")[2]
    body = re.sub(r"```.*?```", "", read.text.partition("## Settings")[0], flags=re.S)
    assert not re.search(r"None|[{}]", body)


@pytest.mark.parametrize("name", RECIPES)
def test_it_renders(name):
    """Every row of a table has as many cells as its head, and names are text, not marks."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(ModelCard(CARDS[name, None]).text)
    tables = re.findall(r"<table>.*?</table>", html, re.S)
    assert len(tables) == 1 + (name == "scored")
    for table in tables:
        head, *rows = re.findall(r"<tr>.*?</tr>", table, re.S)
        assert {len(re.findall("<t[dh]", row)) for row in rows} == {len(re.findall("<th", head))}
        assert rows
    prose = re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", html, flags=re.S)
    assert "|" not in prose.replace("Vincent | the", "").replace("a | b", "")
    assert "**" not in prose
    if name == "many":
        for words in ("Vincent | the painter", "The *Starry* Night", "a &lt;b&gt;cat&lt;/b&gt;", "猫_の_絵", "`code`"):
            assert words in html, words


def test_names_of_models(tmp_path, monkeypatch):
    """Others are told no place on this computer; a Hub's id is one wherever the card is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "x.gguf").touch()
    same = ("canvas-sd", "you/model", "somebody/models", "https://huggingface.co/you/m/blob/main/x.safetensors")
    for name, want in {
        **{n: n for n in same},
        "models/mine": "mine",
        "./models/mine/": "mine",
        str(tmp_path / "models/mine"): "mine",
        "/srv/somebody/gone/x.safetensors": "x.safetensors",
        "~/pipelines/x": "x",
        "x.gguf": "x.gguf",
        "https://hf.co/you/m/resolve/main/x.safetensors?token=secret": "https://hf.co/you/m/resolve/main/x.safetensors",
    }.items():
        assert told(name) == want
    base = {**RECIPES["file"].base, "id": str(tmp_path / "m/x.safetensors"), "config": "models/mine"}
    scores = {**SCORES, "settings": {"model": str(tmp_path / "m"), "steps": 3}}
    old = replace(RECIPES["file"], base=base, scores=scores)
    new = shared(old)
    assert (new.base["id"], new.base["config"], new.scores["settings"]["model"]) == ("x.safetensors", "mine", "m")
    assert new.base["fingerprint"] == old.base["fingerprint"]
    assert new.scores["ua"] == SCORES["ua"]
    assert str(tmp_path) in card(old)
    assert str(tmp_path) not in card(new) + new.header()["erasers"]


def test_flags():
    assert flags(RECIPES["version"]) == "--model you/model --model-variant fp16 --model-revision v2"
    assert flags(RECIPES["address"]) == f"--model {ADDRESS}", "it names its revision"
    spaced = replace(RECIPES["file"], base={**RECIPES["file"].base, "id": "my model.safetensors"})
    assert shlex.split(flags(spaced)) == ["--model", "my model.safetensors"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_names_of_transformers(family):
    kind = FAMILIES[family].pipeline
    want = inspect.signature(getattr(diffusers, kind).__init__).parameters["transformer"].annotation
    assert _transformer(kind) in str(want)
    assert hasattr(diffusers, _transformer(kind))


@pytest.mark.parametrize("kind", ["file", "hyper of a file", "hyper of a denoiser", "delta of a denoiser"])
def test_what_it_says_of_single_files_opens_them(kind, tmp_path, monkeypatch):
    """Run as it stands, but that a small file says nothing of its configuration. The pipeline's own weights differ."""
    monkeypatch.chdir(tmp_path)
    pipe = tiny.sd()
    single_file.write(pipe, tmp_path / FILE)
    want = pipe.unet.conv_in.weight.clone()
    pipe.unet.conv_in.weight.data.mul_(2)
    pipe.save_pretrained("pipeline")
    recipe = RECIPES[kind]
    recipe = replace(recipe, base={**recipe.base, **({"config": "pipeline"} if "config" in recipe.base else {})})
    custom = "folder" if recipe.kind == "hyper" else None
    how = opened(recipe, custom=custom)
    lines = how.lines
    if "config" not in recipe.base:
        lines = lines.replace(f'"{FILE}"', f'"{FILE}", config="pipeline", safety_checker=None')
    space = {"folder": str(plain.HERE / "hyper-sd")}
    exec(f"{how.imports}\n{lines}", space)
    assert torch.equal(space["pipe"].unet.conv_in.weight, want)
    assert hasattr(space["pipe"], "load_eraser") == (custom is not None)
