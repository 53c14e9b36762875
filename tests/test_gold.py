"""The gold standard: retrained without a concept in a few steps; scored like an eraser, by hand-made judges."""

import importlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cells import cell, right, swaps, verdict
from PIL import Image
from safetensors.torch import load_file

from erasers.eval import Cells, Gallery, Sampling, import_rows, leaderboard, report, rows_of, table
from erasers.eval._table import markdown, split, warnings_of
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
        self.judges.prompts = tuple(prompts)
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
    monkeypatch.setattr(gold, "load", lambda name, dtype=None: type("Backbone", (), {"name": name, "dtype": dtype})())
    monkeypatch.setattr(gold, "Control", Side)
    monkeypatch.setattr(gold, "loaded_as", lambda backbone: {"precision": f"{backbone.dtype} on cpu"})
    monkeypatch.setattr(gold, "IMAGES", ())

    def drawn(backbone, prompts, *, how, label):
        assert backbone.dtype == "float32", "as methods are scored, whatever the device"
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
    assert kept["loaded"] == lost["loaded"] == {"precision": "float32 on cpu"}
    monkeypatch.setattr(gold, "rows", lambda *a: pytest.fail("what is there is not made again"))
    gold.main(["--concepts", "cat", "--work", str(scored), "--out", str(scored / "gold")])


def test_a_concept_is_added_to_those_that_are_there(scored, gold, tmp_path):
    before = (scored / "gold.jsonl").read_text()
    gold.main(["--concepts", "cat,neon", "--work", str(tmp_path / "work"), "--out", str(scored / "gold")])
    after = (scored / "gold.jsonl").read_text()
    assert after.startswith(before)
    found = [(r["method"], r["concept"]) for r in map(json.loads, after.splitlines())]
    assert found == [(m, c) for c in ("cat", "neon") for m in ("retrained", "untrained")]
    assert {p.name for p in scored.glob("*.png")} == {"gold-canvas-sd-cat.png", "gold-canvas-sd-neon.png"}
    folder = tmp_path / "b"
    for concept in ("cat", "neon", "star"):
        Cells(folder).write(cell(concept, swaps(concept)))
    assert import_rows(scored / "gold.jsonl", Cells(folder)) == (4, 0)
    (board,) = leaderboard(rows_of(folder))
    assert [(e["method"], e["concepts"]) for e in board["entries"]] == [
        ("original", 3),
        ("untrained", 2),
        ("retrained", 2),
        ("uce", 3),
    ]


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


# ---------------------------------------------------------------- on boards and in tables: hand-made rows


def anew(*concepts):
    """Rows of both kinds for each concept; half of it is still drawn by what was retrained."""
    return [
        cell(c, swaps(c, every=2) if method == "retrained" else lambda p: ("cup", "ink"), method=method)
        for c in concepts
        for method in ("retrained", "untrained")
    ]


def others(*concepts):
    return [cell(c, swaps(c)) for c in concepts] + [cell(c, right, method="random") for c in concepts]


def figures(board, *methods):
    """What a board says of some methods, but for what they are compared with."""
    rows = {e["method"]: e for e in board["entries"]}

    def plain(scores):
        return {n: {k: v for k, v in s.items() if "gap" not in k} for n, s in scores.items()}

    return {m: (rows[m]["concepts"], rows[m]["harmonic"], plain(rows[m]["scores"])) for m in methods}


def test_gold_of_other_concepts_changes_no_board():
    alone = leaderboard(others("star", "house"))
    rows = others("star", "house") + anew("cat", "neon")
    names = ("original", "random", "uce")
    for before, after in zip(alone, leaderboard(rows), strict=True):
        assert [e["method"] for e in after["entries"]] == list(names)
        assert figures(after, *names) == figures(before, *names)
    assert [(b["complete"], b["concepts"]) for b in alone] == [(True, ["star", "house"])]
    assert {"cat", "neon"} < set(table(rows)["concept"]), "the table has them"
    assert markdown(leaderboard(rows), []) == markdown(alone, [])


def test_gold_of_some_concepts_stands_beside_the_others():
    """Cat is had by everybody, star by the methods alone, neon by gold alone."""
    (alone,) = leaderboard(others("star", "cat"))
    rows = others("star", "cat") + anew("cat", "neon")
    (board,) = boards = leaderboard(rows)
    assert (board["complete"], board["concepts"]) == (True, ["star", "cat"])
    names = ("original", "random", "uce")
    assert figures(board, *names) == figures(alone, *names)
    gold = next(e for e in board["entries"] if e["method"] == "retrained")
    (cat,) = [r for r in rows if (r["method"], r["concept"]) == ("retrained", "cat")]
    assert (gold["concepts"], gold["has"]) == (1, 2)
    assert gold["scores"]["ua"]["mean"] == cat["scores"]["ua"]["value"]
    uce = next(e for e in board["entries"] if e["method"] == "uce")["scores"]["ua"]
    assert (uce["gap_concepts"], uce["gap"]) == (1, pytest.approx(100 - cat["scores"]["ua"]["value"], abs=1e-3))
    page = markdown(boards, [])
    assert "| *retrained* (1 of 2 concepts) |" in page
    assert "| uce |" in page
    assert "canvas-sd, held-out concepts: retrained has 1 of 2 concepts" in warnings_of(rows, table(rows), boards)


def test_boards_of_methods_that_lack_concepts_have_gold_on_both():
    """What all have in common, and who lacks nothing, is decided by methods and controls."""
    rows = [*others("star", "cat", "boat"), cell("cat", swaps("cat"), method="esd")]
    boards = leaderboard(rows + anew("cat", "neon"))
    assert [(b["complete"], b["concepts"]) for b in boards] == [(True, ["star", "boat", "cat"]), (False, ["cat"])]
    listed = [{e["method"]: e["concepts"] for e in b["entries"]} for b in boards]
    assert listed[0] == {"original": 3, "untrained": 1, "random": 3, "retrained": 1, "uce": 3}
    assert listed[1] == dict.fromkeys(("original", "untrained", "random", "retrained", "esd", "uce"), 1)
    rows = others("star", "cat") + [r for r in anew("cat") if r["method"] == "retrained"]
    for r in rows[-1:]:
        del r["scores"]["cra"]
    (board,) = leaderboard(rows)
    assert next(e for e in board["entries"] if e["method"] == "uce")["scores"]["cra"]["concepts"] == 2


def test_gold_alone_is_a_board():
    (board,) = leaderboard(anew("cat"))
    assert [(e["method"], e["concepts"]) for e in board["entries"]] == [
        ("original", 1),
        ("untrained", 1),
        ("retrained", 1),
    ]


@pytest.fixture
def pages(monkeypatch):
    """The scripts that print tables."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return {n: importlib.import_module(n) for n in ("canvas_table", "sfd_table", "salun_masks")}


def test_gap_in_a_table(pages):
    """By hand: UA 100 beside the retrained model's, nothing lost by either; the mean of nothing is left empty."""
    print_, gold = pages["canvas_table"], anew("cat")
    cat, star = cell("cat", swaps("cat")), cell("star", swaps("star"))
    ua = gold[0]["scores"]["ua"]["value"]
    assert 0 < ua < 100
    assert print_.gap(cat, gold) == f"{100 - ua:+.1f}, +0.0, +0.0"
    for row in (star, {**cat, "model": "canvas-flow"}):
        assert print_.gap(row, gold) == "-"
    assert print_.gap(cat, gold[1:]) == print_.gap(cat, []) == "-", "the untrained is no reference"
    lines = print_.markdown([cat, star], gold).splitlines()
    heads, *body = ([c.strip() for c in line.strip("|").split("|")] for line in (lines[0], *lines[2:]))
    assert {len(line) for line in body} == {len(heads)}
    at = heads.index("gap to retrained (UA, IRA, CRA)")
    assert [(line[0], line[at]) for line in body] == [
        ("star", "-"),
        ("cat", f"{100 - ua:+.1f}, +0.0, +0.0"),
        ("**mean of 2 objects**", ""),
    ]
    assert body[0][1:3] == ["100.0 (+100.0)", "100.0 (+100.0)"]


def test_tables_of_what_is_there_draw_nothing(pages, tmp_path, monkeypatch, capsys):
    """Old rows without a digest too: each method once, the file as it was."""
    script = pages["canvas_table"]
    monkeypatch.setattr(script, "benchmark", lambda *_, **__: pytest.fail("drawn"))
    old = [{k: r[k] for k in ("method", "settings", "concept", "scores", "seconds", "extra_mb", "bytes")}
           for r in others("cat", "star")]  # fmt: skip
    for name, rows in (("rows", old), ("gold", anew("cat", "neon"))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    before = (tmp_path / "rows.jsonl").read_text()
    words = ["--print", "--out", str(tmp_path / "rows"), "--gold", str(tmp_path / "gold.jsonl")]
    script.main(words)
    out = capsys.readouterr().out
    heads = [line for line in out.splitlines() if line.startswith("### ")]
    assert heads == ["### random preset {}", "### uce preset {}"]
    assert "2 concept(s): star, cat." in out
    assert out.count("(1 of 2 concepts)") == 2
    assert (tmp_path / "rows.jsonl").read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gold.jsonl", "rows.jsonl"]
    script.main([*words[:-1], str(tmp_path / "none.jsonl")])
    assert "(1 of 2 concepts)" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script.main(["--print", "--out", str(tmp_path / "nothing")])
    assert "found no such file: leave out --print to make it" in capsys.readouterr().err


def test_a_run_of_some_concepts_has_a_whole_board_beside_gold(pages, tmp_path, monkeypatch, capsys):
    script, rows = pages["canvas_table"], others("star", "house")
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(r) + "\n" for r in anew("cat", "neon")))
    monkeypatch.setattr(script, "benchmark", lambda plan, work, **_: [*rows, *anew("cat")])
    words = ["--concepts", "star,house", "--methods", "uce,random", "--out", str(tmp_path / "rows")]
    script.main([*words, "--gold", str(tmp_path / "gold.jsonl")])
    out = capsys.readouterr().out
    assert "2 concept(s): star, house." in out
    assert "retrained |" not in out.partition("# Leaderboard")[2].partition("|---")[2]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == len(rows), "of the methods alone"


def test_the_other_tables_have_the_gap_too(pages, tmp_path, monkeypatch):
    gold = anew("cat")
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(r) + "\n" for r in gold))
    left = 100 - gold[0]["scores"]["ua"]["value"]
    rows = [cell(c, swaps(c)) for c in ("cat", "neon")]
    for name in ("sfd_table", "salun_masks"):
        monkeypatch.setattr(pages[name], "GOLD_ROWS", tmp_path / "gold.jsonl")
    masks = pages["salun_masks"].scores({("delta", "none"): rows}).splitlines()
    rates = {"base": 1.0, "one step": 2.0, "eraser": 3.0}
    for r in rows:
        r["scores"]["kid"] = {"value": 1.0, "control": 1.0, "change": 0.0}
        r |= {"method": "sfd", "one step, beside the base": r["scores"], "rates": rates}
    fast = pages["sfd_table"].markdown(rows).splitlines()
    for lines, each in ((masks, 1), (fast, 3)):
        cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
        assert len({len(c) for c in cells}) == 1
        at = cells[0].index("gap to retrained (UA, IRA, CRA)")
        assert [c[at] for c in cells[2:]][each - 1] == f"{left:+.1f}, +0.0, +0.0"
        assert [c[at] for c in cells[2 + each :]] == ["-"] * each
    assert "| cat | base | itself |" in fast[2]
    assert f"{left - 100:+.1f}, +0.0, +0.0" in fast[2], "the base forgets nothing"


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
