"""The gold standard: retrained without a concept in a few steps; scored like an eraser, by hand-made judges."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cells import cell, right, swaps, verdict
from PIL import Image
from safetensors.torch import load_file

from erasers.eval import Cells, Gallery, Sampling, import_rows, leaderboard, report, rows_of, table
from erasers.eval._table import split
from erasers.pipelines import load
from erasers.prompts import CANVAS, canvas

SCRIPT = Path(__file__).parent.parent / "bench/canvas_gold.py"
SEES = {"base": right, "retrained": swaps("cat", every=2), "untrained": lambda p: ("cup", "ink")}
COLOURS = {"base": (0, 0, 200), "retrained": (0, 200, 0), "untrained": (200, 0, 0)}


@pytest.fixture
def gold():
    spec = importlib.util.spec_from_file_location("canvas_gold", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- scored: nothing is drawn


class Judge:
    """Sees what each model draws, by its images' colour."""

    world = CANVAS

    def __init__(self, prompts):
        self.prompts = prompts

    def look(self, images):
        found = {next(n for n, c in COLOURS.items() if c == i.getpixel((0, 0))) for i in images}
        assert len(found) == 1
        return verdict(SEES[found.pop()], self.prompts)

    def record(self):
        return {d: {"weights": "w", "accuracy on real images": 99.0} for d in ("object", "style")}


class Side:
    """The unerased model."""

    how = Sampling(steps=1)

    def __init__(self, backbone):
        self.backbone, self.judges = backbone, Judge(self.plan(canvas.find("cat")))

    def plan(self, concept):
        return CANVAS.plan(concept)

    def side(self, prompts):
        return Gallery(tuple(prompts), painted("base", len(prompts)), {}), verdict(right, prompts)


def painted(name, count):
    return tuple(Image.new("RGB", (64, 64), COLOURS[name]) for _ in range(count))


@pytest.fixture
def scored(gold, tmp_path, monkeypatch):
    """What `main` writes where training and drawing cost nothing."""
    (tmp_path / "work/m/unet").mkdir(parents=True)
    (tmp_path / "work/m/unet/diffusion_pytorch_model.safetensors").write_bytes(b"12345")
    trained = {"steps": 5000, "seconds": 3600.0, "loss": 0.05}
    monkeypatch.setattr(gold, "retrain", lambda model, name, work: (tmp_path / "work/m", dict(trained)))
    monkeypatch.setattr(gold, "untrained", lambda model, work: tmp_path / "work/u")
    monkeypatch.setattr(gold, "load", lambda name: type("Backbone", (), {"name": name})())
    monkeypatch.setattr(gold, "Control", Side)
    monkeypatch.setattr(gold, "loaded_as", lambda backbone: {"precision": "float32 on cpu"})
    monkeypatch.setattr(gold, "IMAGES", ())

    def drawn(backbone, prompts, *, how, label):
        return Gallery(tuple(prompts), painted(label.split()[0], len(prompts)), {})

    monkeypatch.setattr(gold, "draw", drawn)
    gold.main(["--concepts", "kitten", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "docs/gold")])
    return tmp_path / "docs"


def test_rows_are_an_erasers_rows(scored, gold, monkeypatch):
    """By the definitions: half of the cats are still drawn, everything else is kept; the untrained keeps nothing."""
    kept, lost = (json.loads(line) for line in (scored / "gold.jsonl").read_text().splitlines())
    assert [r["method"] for r in (kept, lost)] == ["retrained", "untrained"]
    assert kept["concept"] == "cat", "named as the world names it"
    asked = [p for p in CANVAS.plan(canvas.find("cat")) if p.role == "grid" and p.object == "cat"]
    see = SEES["retrained"]
    share = 100 * sum(see(p)[0] != "cat" for p in asked) / len(asked)
    assert kept["scores"]["ua"]["value"] == pytest.approx(share, abs=1e-3)
    assert [kept["scores"][n]["value"] for n in ("ira", "cra")] == [100, 100]
    assert kept["scores"]["ua"]["control"] == 0
    assert lost["scores"]["ua"]["value"] == 100
    assert lost["scores"]["ira"]["value"] == pytest.approx(100 / 11, abs=1), "one object of eleven is always a cup"
    assert (kept["seconds"], kept["loss"], kept["bytes"]) == (3600, 0.05, 5)
    assert kept["judge"] == {"object": 100, "style": 100}
    monkeypatch.setattr(gold, "rows", lambda *a: pytest.fail("what is there is not made again"))
    gold.main(["--concepts", "cat", "--work", str(scored), "--out", str(scored / "gold")])


def test_every_image_is_shown(scored):
    """Base above retrained, in the order of the plan; a wrong word is red."""
    prompts = CANVAS.plan(canvas.find("cat"))
    with Image.open(scored / "gold-canvas-sd-cat.png") as f:
        sheet = f.convert("RGB")
    lines = -(-len(prompts) // 20)
    assert sheet.size == (20 * 64, lines * (2 * 64 + 24))
    k = len(prompts) - 1
    x, y = (k % 20) * 64, (k // 20) * 152
    assert [sheet.getpixel((x + 5, y + d)) for d in (5, 69)] == [COLOURS["base"], COLOURS["retrained"]]
    see = SEES["retrained"]
    for k, p in enumerate(prompts):
        x, y = (k % 20) * 64, (k // 20) * 152 + 128
        words = sheet.crop((x, y, x + 64, y + 12)).getcolors(10000)
        assert any(r - g > 60 for _, (r, g, _) in words) == (see(p)[0] != p.object), p


def test_they_fill_the_columns_and_the_report(scored, tmp_path):
    """Imported beside a method's cells, with their pictures."""
    folder = tmp_path / "b"
    Cells(folder).write(cell("cat", swaps("cat")))
    assert import_rows(scored / "gold.jsonl", Cells(folder)) == (2, 0)
    assert all(len(r["pictures"]) == 8 for r in rows_of(folder) if r["method"] != "uce")
    frame = table(rows_of(folder))
    ua = frame[(frame.evaluator == "ua")].set_index("method")
    gold = ua.loc["retrained", "value"]
    assert 0 < gold < 100
    assert ua.loc["uce", "gap"] == pytest.approx(100 - gold)
    assert ua.loc["original", "gap"] == pytest.approx(-gold)
    assert list(frame["method"].drop_duplicates()) == ["original", "untrained", "retrained", "uce"]
    only = json.loads((scored / "gold.jsonl").read_text().splitlines()[0])
    only["scores"]["fid"] = {**only["scores"]["ua"], "unit": "", "value": 12.5}
    boards = leaderboard([*(r for r in rows_of(folder) if r["method"] == "uce"), {**only, "extra_mb": None}])
    assert "fid" in boards[0]["entries"][1]["scores"]
    assert "fid" not in split(boards[0])[1], "no column for what no method was scored by"
    text = report(folder, tmp_path / "r.html").read_text()
    assert text.count("<img") == 8 * 3, "unerased, untrained, retrained"


# ---------------------------------------------------------------- trained, a few steps


def hasty(gold, monkeypatch):
    """A world of one drawing a cell, and two steps of training."""
    monkeypatch.setattr(gold.recipe, "PER_CELL", 1)
    monkeypatch.setattr(gold.recipe, "CAPTIONS_PER_IMAGE", 2)
    monkeypatch.setattr(gold.recipe, "SD_PLAN", replace(gold.recipe.SD_PLAN, steps=2))
    monkeypatch.setattr(gold.flow, "PLAN", replace(gold.flow.PLAN, steps=1))


def state(module):
    return {n: t.detach().float() for n, t in module.state_dict().items()}


def same(a, b):
    a, b = state(a), state(b)
    return a.keys() == b.keys() and all((a[n] == b[n]).all() for n in a)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["canvas-sd", "canvas-flow"])
def test_retrained_without_it(gold, tmp_path, monkeypatch, model):
    """Nothing of the concept is drawn or named; the denoiser is new, all else is the bundled pipeline's."""
    hasty(gold, monkeypatch)
    module, verb = {"canvas-sd": (gold.recipe, "train_sd"), "canvas-flow": (gold.flow, "train_flow")}[model]
    words, embed = [], module.embeddings
    monkeypatch.setattr(module, "embeddings", lambda a, b, texts: words.extend(texts) or embed(a, b, texts))
    folder, training = gold.retrain(model, "cat", tmp_path)
    assert training["steps"] == (2 if model == "canvas-sd" else 1)
    assert training["loss"] > 0
    (moments,) = tmp_path.glob("latents-*.safetensors")
    assert len(load_file(moments)["mean"]) == 11 * 10, "one drawing of each cell but the cat's"
    said = " ".join(words).lower().replace(".", " ").replace(",", " ").split()
    assert not {"cat", "kitten"} & set(said)
    assert {"moon", "crescent"} & set(said), "the others are named"
    made, bundled = load(str(folder), dtype="float32"), load(model, dtype="float32")
    assert made.world == "canvas"
    assert made.call == bundled.call
    assert same(made.pipe.text_encoder, bundled.pipe.text_encoder)
    assert same(made.pipe.vae, bundled.pipe.vae)
    assert not same(made.denoiser, bundled.denoiser)
    monkeypatch.setattr(module, verb, lambda *a, **k: pytest.fail("trained again"))
    assert gold.retrain(model, "cat", tmp_path) == (folder, training)
    never = load(str(gold.untrained(model, tmp_path)), dtype="float32")
    assert not same(never.denoiser, bundled.denoiser)
    assert state(never.denoiser).keys() == state(bundled.denoiser).keys()
    assert len(never.draw(["a moon"], [0], steps=1, guidance=1.0)) == 1
