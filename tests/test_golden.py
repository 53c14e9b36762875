"""Erasers as earlier releases wrote them (tests/golden): today's code reads each and does with it what it did then."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from golden import plain
from safetensors.torch import load_file

from erasers.erase import Eraser, describe
from erasers.erase._eraser import KINDS
from erasers.erase._recipe import SCHEMA

ERASERS = plain.WORLD["erasers"]
FILES = [(e, f) for e in ERASERS if e["kind"] != "delta" for f in e["files"]]


def expected(spec):
    tensors = load_file(plain.HERE / spec["name"] / "expected.safetensors")
    return tensors, tensors["out.base"], tensors["out.erased"]


@pytest.mark.parametrize("spec", ERASERS, ids=lambda e: e["name"])
def test_it_does_what_it_did(spec):
    tensors, base, want = expected(spec)
    eraser = Eraser.from_pretrained(plain.HERE / spec["name"])
    pipe = plain.pipeline(spec["base"])
    if eraser.drawing:  # its control was drawn with its own scheduler too
        with eraser.attached(pipe):
            scheduler = pipe.scheduler
        pipe.scheduler = scheduler
    bare = plain.answer(pipe, spec, tensors)
    assert plain.away(bare, base, want) < plain.TOLERANCE
    with eraser.attached(pipe) as handle:
        assert handle.is_active()
        assert plain.away(plain.answer(pipe, spec, tensors), want, base) < plain.TOLERANCE
    assert torch.equal(plain.answer(pipe, spec, tensors), bare)
    if spec["kind"] != "hyper":
        eraser.bake(pipe)
        assert plain.away(plain.answer(pipe, spec, tensors), want, base) < plain.TOLERANCE


@pytest.mark.parametrize(("spec", "file"), FILES, ids=lambda x: x["name"] if isinstance(x, dict) else x)
def test_plain_diffusers(spec, file):
    """What `make compat` asks of other releases, asked of this one."""
    found = plain.check(spec, file)
    assert found["base"] < plain.TOLERANCE
    assert found["erased"] < plain.TOLERANCE


@pytest.mark.parametrize("spec", ERASERS, ids=lambda e: e["name"])
def test_written_again_it_is_the_same(spec, tmp_path):
    folder = plain.HERE / spec["name"]
    record = json.loads((folder / "eraser_config.json").read_text())
    eraser = Eraser.from_pretrained(folder)
    assert record["schema"] <= SCHEMA
    assert record["kind"] == eraser.recipe.kind == spec["kind"]
    assert describe(folder)["concepts"] == ["moon"]
    again = eraser.save_pretrained(tmp_path / "again")
    assert Eraser.from_pretrained(again).recipe == eraser.recipe
    for file in spec["files"]:
        if (again / file).exists():
            old, new = load_file(folder / file), load_file(again / file)
            assert old.keys() == new.keys()
            assert all(torch.equal(old[k], new[k]) for k in old)


@pytest.mark.parametrize("spec", ERASERS, ids=lambda e: e["name"])
def test_scores_go_into_an_eraser_of_every_kind(spec, tmp_path):
    """Twice, as after a second evaluation; weights and whatever else lies there stay."""
    folder = shutil.copytree(plain.HERE / spec["name"], tmp_path / "eraser", ignore=shutil.ignore_patterns("__py*"))
    before = Eraser.from_pretrained(folder)
    weights = {p: load_file(p) for p in folder.rglob("*.safetensors")}
    for value in (50.0, 98.0):
        ua = {"value": value, "low": 40.0, "high": 99.6, "n": 50, "control": 0.0, "unit": "%"}
        scores = {"ua": ua, "settings": {"model": spec["base"], "steps": 12}}
        Eraser.record_scores(folder, scores)
    after = Eraser.from_pretrained(folder)
    assert after.recipe == replace(before.recipe, scores=scores)
    assert "| ua | 98.0 % (40.0 .. 99.6) | 0.0 | 50 |" in (folder / "README.md").read_text()
    for path, old in weights.items():
        new = load_file(path)
        assert new.keys() == old.keys()
        assert all(torch.equal(new[k], old[k]) for k in old), path


def test_there_is_one_of_each_kind_and_they_are_small():
    assert {e["kind"] for e in ERASERS} == set(KINDS)
    assert {p.name for p in plain.HERE.iterdir() if p.is_dir() and p.name[0] not in "._"} == {
        e["name"] for e in ERASERS
    }
    assert sum(p.stat().st_size for p in plain.HERE.rglob("*.*") if "cache" not in str(p) and p.is_file()) < 1.1e6
