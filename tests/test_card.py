"""The model card of every kind of eraser: the Hub reads its front matter, its tables are whole, its code is code."""

import ast
import re
import shlex
from dataclasses import replace

import pytest
from golden import plain
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from erasers.erase import Eraser
from erasers.erase._card import card

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


def recipes():
    """One of each thing that a card can be about."""
    found = {e["name"]: Eraser.from_pretrained(plain.HERE / e["name"]).recipe for e in plain.WORLD["erasers"]}
    lora, three = found["lora-canvas-sd"], found["lora-sd3"]
    concepts = [{**lora.concepts[0], **c} for c in MANY]
    hub = {**lora.base, "id": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
    return {
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
    assert data.get("base_model") == (recipe.base["id"] if "/" in recipe.base["id"] else None)
    assert data.get("base_model_relation") == ("adapter" if "/" in recipe.base["id"] else None)
    for code in blocks(text, "python"):
        ast.parse(code)
    for code in blocks(text, "sh"):
        assert shlex.split(code)[0] == "erasers"
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
