"""Galleries: drawn, written, read back, refused."""

import json

import pytest
import torch
from PIL import Image

from erasers.erase import erase
from erasers.eval import Control, Gallery, Sampling, draw, evaluate, sampling
from erasers.prompts import InputError, Prompt, canvas_plan
from erasers.prompts import canvas as words

PROMPTS = [Prompt("a moon", 3, "moon"), Prompt("a cat/dog: ünïcode", 4), Prompt("", 5)]
HOW = Sampling(steps=2, guidance=3.0, batch=2)


@pytest.fixture
def gallery(sd):
    return draw(sd, PROMPTS, how=HOW)


def test_round_trip(gallery, tmp_path):
    folder = gallery.save(tmp_path / "g")
    assert sorted(p.name for p in folder.glob("*.png")) == [
        "0000_moon_seed3.png",
        "0001_prompt_seed4.png",
        "0002_prompt_seed5.png",
    ]
    again = Gallery.load(folder)
    assert again.prompts == gallery.prompts
    assert [i.tobytes() for i in again.images] == [i.tobytes() for i in gallery.images]
    assert again.manifest == gallery.manifest


def test_paired_with_its_control(sd):
    """Same prompts and seeds: nothing but the eraser differs, and with scale 0 nothing does."""
    eraser = erase("moon", sd)
    plain = draw(sd, PROMPTS, how=HOW)
    erased = draw(sd, PROMPTS, [eraser], how=HOW)
    again = draw(sd, PROMPTS, how=HOW)
    assert [i.tobytes() for i in plain.images] == [i.tobytes() for i in again.images]
    assert plain.images[0].tobytes() != erased.images[0].tobytes()
    assert erased.manifest["erasers"][0]["concepts"][0]["name"] == "moon"
    assert not sd.pipe.unet.peft_config if hasattr(sd.pipe.unet, "peft_config") else True


@pytest.mark.parametrize("damage", ["missing", "unreadable", "swapped", "no manifest"])
def test_damage_is_named(gallery, tmp_path, damage):
    folder = gallery.save(tmp_path / "g")
    first = folder / "0000_moon_seed3.png"
    if damage == "missing":
        first.unlink()
    elif damage == "unreadable":
        first.write_bytes(b"not an image")
    elif damage == "swapped":
        Image.new("RGB", (32, 32)).save(first)
    else:
        (folder / "manifest.json").write_text(json.dumps({"model": "x"}))
    with pytest.raises(InputError, match=r"0000_moon_seed3\.png" if damage != "no manifest" else "is no gallery"):
        Gallery.load(folder)


def test_existing_folder(gallery, tmp_path):
    folder = gallery.save(tmp_path / "g")
    with pytest.raises(InputError, match="exists already"):
        gallery.save(folder)
    gallery.save(folder, force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x").write_text("")
    with pytest.raises(InputError, match=r"holds no manifest\.json, so it is not ours"):
        gallery.save(tmp_path / "mine", force=True)


def test_refusals(sd):
    with pytest.raises(InputError, match="at least one prompt"):
        draw(sd, [])
    with pytest.raises(InputError, match="steps: expected 1 to 1000"):
        Sampling(steps=0)
    with pytest.raises(InputError, match="no judges for 'tiny-sd'"):
        evaluate(erase("moon", sd), sd)


def test_control_is_drawn_once_and_neutral_on_a_zero_eraser(canvas):
    """An eraser of strength 0 changes no score: value equals control, change is 0, for every evaluator."""
    from dataclasses import replace

    eraser = erase("moon", canvas)
    nothing = replace(eraser, recipe=replace(eraser.recipe, scale=0.0))
    control = Control(canvas, Sampling(steps=1, guidance=1.0, sampler="dpm++", batch=60))
    report = evaluate(nothing, canvas, control=control)
    assert set(report.scores) == set(report.by_concept["moon"])
    for name, score in report.scores.items():
        assert score.value == score.control, name
        assert (score.change, score.change_low, score.change_high) == (0, 0, 0), name
        assert (score.control_low, score.control_high) == (score.low, score.high), name
    drawn = dict(control._done)
    control.side(canvas_plan(words.find("moon")), pictures=False)
    assert control._done == drawn


def test_sampling_follows_the_pipeline(canvas, sd):
    assert sampling(canvas) != sampling(sd)


def test_a_stack_is_scored_like_one_eraser(canvas):
    """Two erasers act together on every image, and neither's cells count as kept for the other."""
    stack = [erase(name, canvas) for name in ("moon", "ink")]
    before = [p.detach().clone() for p in canvas.denoiser.parameters()]
    control = Control(canvas, Sampling(steps=1, guidance=1.0, sampler="dpm++", batch=60))
    report = evaluate(stack, canvas, only=["ua", "ira", "cra"], control=control)
    assert list(report.by_concept) == ["moon", "ink"]
    assert [e["concepts"] for e in report.settings["erasers"]] == [["moon"], ["ink"]]
    alone = evaluate(stack[:1], canvas, only=["ua", "ira", "cra"], control=control)
    moon = report.by_concept["moon"]
    assert moon["ua"].n == alone.scores["ua"].n - 5, "a moon in ink asks for two erased concepts: nobody's image"
    assert moon["ira"].n == alone.scores["ira"].n - 11, "eleven other objects in ink are no longer kept"
    assert all(torch.equal(p, q) for p, q in zip(canvas.denoiser.parameters(), before, strict=True))
