"""bench/real: every published row, rehearsed on canvas-sd by the same lines; and what its page says."""

import importlib.util
import json
import math
import re
import runpy
import sys
from pathlib import Path

import pytest
from families import build

from erasers.erase import configure, settings_of
from erasers.eval import Score
from erasers.prompts import UNLEARN_CANVAS, InputError

FOLDER = Path(__file__).parent.parent / "bench/real"
PAGE = (FOLDER / "README.md").read_text()


def driver():
    spec = importlib.util.spec_from_file_location("real_rows", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_rows"] = module
    spec.loader.exec_module(module)
    return module


real = driver()
ROWS = {name: real.Row.read(path) for name, path in real.rows().items()}


def sure(value, n=10):
    return Score(value, n, value, value, value, 0.0, 0.0, 0.0)


def test_every_row_that_was_asked_for():
    kinds = {f"{m}-{d}" for m in ("esd", "uce", "salun") for d in ("style", "object")}
    assert set(ROWS) == kinds | {"unhype-cifar10"}


ESD = {"train": "cross", "dense": True, "steps": 1000, "batch": 1, "lr": 1e-5, "eta": 1.0, "guidance": 3.0, "keep": 0}
SALUN = {"train": "cross", "dense": True, "mask": "none", "batch": 4, "lr": 1e-5, "alpha": 1.0, "retain": "images"}
UCE = {"preserve_scale": 0.1, "contexts": 6, "tokens": "all"}
PUBLISHED = {
    "esd-style": {**ESD, "sampler_steps": 50},
    "esd-object": {**ESD, "sampler_steps": 50},
    "salun-style": SALUN,
    "salun-object": SALUN,
    "uce-style": {**UCE, "erase_scale": 0.05, "ridge": 1.0},
    "uce-object": {**UCE, "erase_scale": 0.01, "ridge": 10.0},
    "unhype-cifar10": {"objective": "both", "steps": 4000, "gamma": 2.0, "retained": 300},
}
"""As each row's `settings_source` has them, whatever is written into presets and rows."""


@pytest.mark.parametrize("name", ROWS)
def test_settings_that_are_run_are_the_published_ones(name):
    row, world = ROWS[name], UNLEARN_CANVAS
    used = settings_of(configure(row.method, row.preset, dict(row.settings)))
    assert {k: used[k] for k in PUBLISHED[name]} == PUBLISHED[name]
    assert row.notes
    assert row.source
    if row.method == "salun":  # three images of each concept of the other domain, twice, in batches of 4
        others = world.names({"style": "object", "object": "style"}[row.domain])
        assert used["images"] == 3 * len(others)
        assert used["steps"] == 2 * math.ceil(used["images"] / 4)


@pytest.mark.parametrize("name", [n for n in ROWS if n != "unhype-cifar10"])
def test_anchors_of_unlearncanvas(name):
    """Nothing for ESD; photographs for styles; for objects another one, of UCE one that the data set does not have."""
    row, world = ROWS[name], UNLEARN_CANVAS
    assert [e.score for e in row.expected] == ["ua", "ira", "cra"]
    own = [n for n in world.names(row.domain) if n != world.photo]
    for target in own:
        anchor = row.anchor(target)
        assert anchor != target
        if row.method == "esd" or row.domain == "style":
            assert anchor == ("" if row.method == "esd" else "Photo")
        else:
            assert (anchor in own) == (row.method == "salun")
    assert row.preserve == ("others" if row.method == "uce" else "none")


def test_the_page_has_every_figure_and_command():
    told = {n: (figures.split(" / "), float(tolerance)) for n, figures, tolerance in re.findall(
        r"^\| `([\w-]+)` \|[^|]*\| ([\d./ ]+) \| (\d+) \|", PAGE, re.M
    )}  # fmt: skip
    assert set(told) == set(ROWS)
    for name, row in ROWS.items():
        assert [float(v) for v in told[name][0]] == [e.value for e in row.expected]
        assert {e.tolerance for e in row.expected} == {told[name][1]}
        command = re.search(rf"^python bench/real/run.py {name} (--model .*)$", PAGE, re.M)
        assert ("--data" in command[1], "--judges" in command[1]) == (row.needs_data, row.protocol == "unlearncanvas")


class TestReport:
    def report(self, **figures):
        row = ROWS["esd-style"]
        stage = real.Stage(real.load("canvas-sd"), Path("nowhere"), targets=("Van Gogh",))
        return real.judged(row, stage, {"Van Gogh": {n: sure(v) for n, v in figures.items()}})

    def test_met_and_not_met(self):
        report = self.report(ua=98.58 - 5, ira=80.97 + 5.01, cra=93.96)
        assert [e["met"] for e in report["figures"]] == [True, False, True]
        assert [e["n"] for e in report["figures"]] == [10] * 3
        assert not report["whole"]
        page = real.markdown(report)
        assert "**no**" in page
        assert "Not the whole row" in page

    def test_a_target_that_was_not_run_is_neither(self):
        row = ROWS["unhype-cifar10"]
        stage = real.Stage(real.load("canvas-sd"), Path("nowhere"), targets=("ship",))
        figures = real.judged(row, stage, {"ship": {"h_o": sure(94.0)}})["figures"]
        assert {e["target"]: e["met"] for e in figures} == {"": True, "airplane": None, "ship": True, "bird": None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["esd-stile"], "unknown row 'esd-stile': did you mean 'esd-style'"),
        (["esd-style"], "name the model that esd-style was published on"),
        (["esd-style", "--model", "canvas-sd"], "needs UnlearnCanvas' judges"),
        (["salun-style", "--model", "canvas-sd", "--judges", "j"], "--data DIR"),
        (["unhype-cifar10", "--model", "canvas-sd", "--seed-list", "one"], "different whole numbers"),
        (["nowhere.toml", "--dry-run"], r"cannot read the row nowhere\.toml .* No such file"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(words, message):
    with pytest.raises(InputError, match=message):
        real.main(words)


def rehearse(name, out):
    assert real.main([name, "--dry-run", "--out", str(out)]) == 0
    return json.loads((out / name / "report.json").read_text())


def test_dry_run(tmp_path, capsys):
    """Every line of the driver; a second call makes nothing anew; another run's folder is refused."""
    name = "uce-style"
    report = rehearse(name, tmp_path)
    assert report["dry_run"]
    assert not report["whole"]
    assert len(report["targets"]) == 2
    for figure in report["figures"]:
        assert 0 <= figure["figure"] <= 100
        assert figure["n"] > 0
        assert figure["met"] is None, "a rehearsal meets nothing"
    assert "the figures mean nothing" in capsys.readouterr().out
    erasers = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    assert len(erasers) >= len(report["targets"])
    assert rehearse(name, tmp_path) == report
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == erasers
    record = tmp_path / name / "run.json"
    told = json.loads(record.read_text())
    assert set(told["judges"]) == {"object", "style"}
    record.write_text(json.dumps({**told, "loaded": {"precision": "float16 on cpu"}}))
    with pytest.raises(InputError, match="with another loaded:"):
        rehearse(name, tmp_path)
    record.write_text("{}")
    with pytest.raises(InputError, match="another model, settings"):
        rehearse(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ROWS) - {"uce-style"}))
def test_dry_run_of_every_other_row(name, tmp_path):
    report = rehearse(name, tmp_path)
    assert len(report["targets"]) == (3 if name == "unhype-cifar10" else 2)
    assert all(0 <= e["figure"] <= 100 for e in report["figures"])
    assert report["settings"].get("steps", 2) == 2


def test_as_a_program(monkeypatch, capsys):
    """What the shell sees: the list, and a mistake in one line with exit code 2."""
    for word, code in (("list", 0), ("esd", 2)):
        monkeypatch.setattr(sys, "argv", ["run.py", word])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(FOLDER / "run.py"), run_name="__main__")
        assert left.value.code == code
    told = capsys.readouterr()
    assert told.out.count("\n") == len(ROWS)
    assert told.err.startswith("run.py: unknown row 'esd'")


ROW = """
title = "a row of the reader's own"
source = "nowhere"
settings_source = "nowhere"
protocol = "classes"
method = "uce"
preset = "paper"
preserve = "others"
targets = ["cat", "dog"]
sentence = "a picture of the {x}"
images = 2
clip = "canvas-clip"

[settings]
ridge = 0.1

[sampling]
steps = 2

[classes]
cat = ["kitten"]
dog = ["hound"]
house = ["barn"]

[[expected]]
score = "h_o"
value = 200.0
tolerance = 5.0

[[expected]]
score = "h_o"
target = "dog"
value = 50.0
tolerance = 50.0
"""


def test_a_row_of_ones_own_on_a_model_of_ones_own(tmp_path, capsys):
    """The way without a rehearsal: the row's own lengths, part of its targets first, and the exit code."""
    build("sd").pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "mine.toml").write_text(ROW)
    words = [str(tmp_path / "mine.toml"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert real.main([*words, "--targets", "cat"]) == 1, "H_o is no 200"
    part = json.loads((tmp_path / "out/mine/report.json").read_text())
    assert [(e["targets"] if e["met"] is not None else 0, e["met"]) for e in part["figures"]] == [(1, False), (0, None)]
    assert real.main(words) == 1
    report = json.loads((tmp_path / "out/mine/report.json").read_text())
    assert (part["whole"], report["whole"]) == (False, True)
    assert [e["met"] for e in report["figures"]] == [False, True]
    assert [e["n"] for e in report["figures"]] == [2 * 8, 8], "of each target 2 + 4 + 2 images"
    assert report["settings"]["ridge"] == 0.1
    assert not list(tmp_path.rglob("images")), "judged and deleted"
    assert "**no**" in capsys.readouterr().out
