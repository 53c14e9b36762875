"""Erasers made on top of others: sequential unlearning."""

import json
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from test_cli import run

import tiny
from erasers.erase import Eraser, Lora, erase, made_on_top, remember
from erasers.erase._erase import prepared
from erasers.eval import Sampling, draw
from erasers.pipelines import wrap
from erasers.prompts import Concept, InputError, Prompt
from erasers.prompts import canvas as words

FEW_STEPS = {"scheduler": {"_class_name": "DDIMScheduler"}, "steps": 1, "times": [999.0], "guidance": 1.0}
SHORT = {
    "uce": {},
    "random": {},
    "esd": {"steps": 2, "batch": 2, "sampler_steps": 2, "pool": 2},
    "concept_ablation": {"steps": 2, "batch": 2, "sampler_steps": 2, "images": 4},
}


def numbers(eraser):
    return {n: torch.cat([t.flatten() for t in pair]) for n, pair in eraser.payload.factors.items()}


@pytest.mark.parametrize("method", SHORT)
def test_made_as_on_a_model_with_the_others_baked_in(method):
    """Independently: the first is baked into a second copy of the model for good, and the next made of that."""
    here, baked = wrap(tiny.sd(), "tiny-sd"), wrap(tiny.sd(), "tiny-sd")
    before = {n: p.detach().clone() for n, p in here.denoiser.named_parameters()}
    first = erase("moon", here, method=("random", {"strength": 3.0}))
    alone, top = (erase("star", here, method=(method, SHORT[method]), on=below) for below in ([], [first]))
    assert all(torch.equal(p, before[n]) for n, p in here.denoiser.named_parameters()), "left as it was"
    first.bake(baked)
    want = numbers(erase("star", baked, method=(method, SHORT[method])))
    assert all(torch.equal(t, want[n]) for n, t in numbers(top).items())
    assert not all(torch.equal(t, want[n]) for n, t in numbers(alone).items()), "what lies below matters"
    assert top.recipe.base["fingerprint"] == alone.recipe.base["fingerprint"], "for use on the base itself"
    (below,) = top.recipe.base["on"]
    assert below == {"concepts": ["moon"], "method": "random", "scale": 1.0, "fingerprint": first.fingerprint}
    assert "on" not in alone.recipe.base


def test_both_attached_draw_as_one_on_top_of_the_other():
    here, baked = wrap(tiny.sd(), "tiny-sd"), wrap(tiny.sd(), "tiny-sd")
    first = erase("moon", here, method=("random", {"strength": 3.0}))
    second = erase("star", here, on=[first])
    pictures = []
    with first.attached(here), second.attached(here):
        pictures.append(here.draw(["a star"], [3], steps=2, guidance=2.0)[0])
    first.bake(baked)
    pictures.append(baked.draw(["a star"], [3], steps=2, guidance=2.0)[0])
    second.attach(baked, force=True)  # its base is the model that nothing is baked into
    pictures.append(baked.draw(["a star"], [3], steps=2, guidance=2.0)[0])
    both, one, want = (torch.tensor(list(p.tobytes())).float() for p in pictures)
    assert (both - want).abs().max() <= 1, "but for rounding"
    assert (one - want).abs().max() > 1, "the second does something"


def test_weights_come_back_after_a_failure(sd):
    first = erase("moon", sd)
    before = {n: p.detach().clone() for n, p in sd.denoiser.named_parameters()}

    class Broken:
        def run(self, backbone, _task):
            assert not all(torch.equal(p, before[n]) for n, p in backbone.denoiser.named_parameters())
            raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        erase("star", sd, method=Broken(), on=[first])
    assert all(torch.equal(p, before[n]) for n, p in sd.denoiser.named_parameters())


def test_what_is_gone_is_neither_preserved_nor_an_anchor(canvas):
    moon = words.find("moon")
    gone = (words.find(moon.anchor),)
    (wanted,), kept = prepared("moon", canvas, None, gone)
    assert wanted.anchor not in gone[0].names
    assert gone[0].name not in {c.name for c in kept}
    assert len(kept) == len(words.CONCEPTS) - 2
    with pytest.raises(InputError, match="moon is erased already by an eraser below"):
        prepared("moon", canvas, None, (moon,))


def test_refusals(sd):
    lora = erase("moon", sd)
    dense = ("esd", {**SHORT["esd"], "dense": True})
    with pytest.raises(InputError, match="esd trains the weights themselves and cannot lie on top"):
        erase("star", sd, method=dense, on=[lora])
    delta = erase("moon", sd, method=dense)
    with pytest.raises(InputError, match="the eraser of moon is a delta: what is to lie below another must be a LoRA"):
        erase("star", sd, on=[delta])
    fast = replace(lora, recipe=replace(lora.recipe, drawing=FEW_STEPS))
    with pytest.raises(InputError, match="the eraser of moon draws in few steps"):
        erase("star", sd, on=[fast])
    other = erase("moon", wrap(tiny.sd(seed=1), "another"))
    with pytest.raises(InputError, match="was made for 'another'; the weights of 'tiny-sd' differ"):
        erase("star", sd, on=[other])
    with pytest.raises(InputError, match="'moon' is erased by two of the erasers"):
        erase("star", sd, on=[lora, lora])
    star = erase("star", sd, on=lora)
    with pytest.raises(InputError, match="the eraser of star was made on top of those of moon: expected just them"):
        erase("ring", sd, on=star)
    for again in ("Moon", Concept("disc", synonyms=("MOON",))):
        with pytest.raises(InputError, match="is erased already by an eraser below"):
            erase(again, sd, on=lora)
    with pytest.raises(InputError, match="moon is erased by an eraser below and cannot be preserved"):
        erase("star", sd, preserve=["moon"], on=lora)
    delta.attach(sd)
    with pytest.raises(InputError, match="cannot erase on top of others while adapters are attached"):
        erase("star", sd, on=[lora])


def test_which_were_made_on_top(sd, tmp_path):
    moon, cat = (erase(n, sd, method="random", seed=k) for k, n in enumerate(("moon", "cat")))
    star = erase("star", sd, on=[moon])
    ring = erase("ring", sd, on=[moon, star])
    assert made_on_top([moon, star, ring]) == (True, True, True)
    assert made_on_top([moon, cat]) == (True, False)
    assert made_on_top([moon, star, cat]) == (True, True, False)
    for wrong in ([cat, star], [star, moon], [moon, cat, star], [moon, ring], [star, ring]):
        with pytest.raises(InputError, match="was made on top of those of moon"):
            made_on_top(wrong)
    record = json.loads(json.dumps(star.recipe.base)) | {"on": [{"concepts": ["moon"]}]}
    with pytest.raises(InputError, match="is no eraser's record"):
        type(star.recipe).read({**asdict(star.recipe), "base": record}, "x")


def test_the_fingerprint_is_that_of_the_file_too(canvas, tmp_path):
    """Layers of several ranks are padded to one when they are written."""
    whole = erase("moon", canvas)
    (first, (a, b)), *rest = whole.payload.factors.items()
    mixed = replace(whole, payload=Lora({first: (a[:1], b[:, :1]), **dict(rest)}))
    assert len({p[0].shape[0] for p in mixed.payload.factors.values()}) == 2
    for eraser in (whole, mixed):
        folder = eraser.save_pretrained(tmp_path / eraser.fingerprint)
        assert Eraser.from_pretrained(folder).fingerprint == eraser.fingerprint
    assert mixed.fingerprint != whole.fingerprint


def test_half_precision(tmp_path):
    """What lies below is added in one sum and rounded once; what rounding takes of it is said; all comes back."""
    half = wrap(tiny.sd().to(torch.bfloat16), "tiny-sd")
    before = {n: p.detach().clone() for n, p in half.denoiser.named_parameters()}
    strong, weak = (erase("moon", half, method=("random", {"strength": s})) for s in (300.0, 1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        erase("star", half, on=strong)
    with pytest.warns(UserWarning, match=r"\d+% of what the erasers below change is lost in tiny-sd's torch.bfloat16"):
        erase("star", half, on=weak)
    assert all(torch.equal(p, before[n]) for n, p in half.denoiser.named_parameters())


def test_alone_it_is_said(sd):
    moon = erase("moon", sd)
    star = erase("star", sd, on=moon)
    how, prompts = Sampling(steps=1, guidance=1.0), [Prompt("a star", 1)]
    draw(sd, prompts, [moon, star], how=how)
    with pytest.warns(
        UserWarning, match="the eraser of star was made on top of those of moon, which are not beside it"
    ):
        draw(sd, prompts, [star], how=how)


def test_prompts_of_a_run_are_remembered(canvas):
    """With another anchor, because the usual one is gone."""
    moon = words.find("moon")
    below = erase(moon.anchor, canvas)
    method = ("concept_ablation", SHORT["concept_ablation"])
    alone, top = (set(remember("moon", canvas, method=method, on=on).states) for on in ([], below))
    named = [t for t in alone - top if moon.anchor in t]
    assert named
    assert not [t for t in top if f" {moon.anchor} " in t]


def test_commands(tmp_path):
    """`erase --on`, what is told of it, and a sequence in another order."""
    for name, on in (("moon", []), ("star", ["moon"])):
        below = [w for n in on for w in ("--on", tmp_path / n)]
        code, out, err = run("erase", name, *below, "--out", tmp_path / name)
        assert code == 0, err
    assert f"next: erasers evaluate --sequential --model canvas-sd --eraser {tmp_path / 'moon'} --eraser" in out
    moon, star = (Eraser.from_pretrained(tmp_path / n) for n in ("moon", "star"))
    (told,) = json.loads(run("inspect", tmp_path / "star", "--json")[1])[0]["made on top of"]
    assert told["fingerprint"] == moon.fingerprint
    assert moon.fingerprint in (tmp_path / "star/README.md").read_text()
    assert "Made on top" not in (tmp_path / "moon/README.md").read_text()
    code, _, err = run("erase", "star", "--on", tmp_path / "moon", "--out", tmp_path / "moon", "--force")
    assert (code, "is an eraser to make this one on top of" in err) == (2, True)
    code, _, err = run("plan", "star", "--on", tmp_path / "moon")
    assert (code, "--on: what lies below is not counted" in err) == (2, True)
    pair = ("--eraser", tmp_path / "moon", "--eraser", tmp_path / "star")
    code, _, err = run("evaluate", "--sequential", *pair[2:], *pair[:2], "--steps", 1)
    assert code == 2
    assert "was made on top of those of moon" in err
    assert star.recipe.base["on"][0]["concepts"] == ["moon"]
