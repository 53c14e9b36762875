"""Erasers made on top of others: sequential unlearning."""

import json

import pytest
import torch
from test_cli import run

import tiny
from erasers.erase import Eraser, erase
from erasers.erase._erase import prepared
from erasers.eval._sequence import made_on_top
from erasers.pipelines import wrap
from erasers.prompts import InputError
from erasers.prompts import canvas as words

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
    other = erase("moon", wrap(tiny.sd(seed=1), "another"))
    with pytest.raises(InputError, match="was made for 'another'; the weights of 'tiny-sd' differ"):
        erase("star", sd, on=[other])
    delta.attach(sd)
    with pytest.raises(InputError, match="cannot erase on top of others while adapters are attached"):
        erase("star", sd, on=[lora])


def test_which_were_made_on_top(sd):
    moon, cat = (erase(n, sd, method="random", seed=k) for k, n in enumerate(("moon", "cat")))
    star = erase("star", sd, on=[moon])
    ring = erase("ring", sd, on=[moon, star])
    assert made_on_top([moon, star, ring])
    assert not made_on_top([moon, cat])
    assert not made_on_top([moon, star, cat])
    for wrong in ([cat, star], [star, moon], [moon, cat, star], [moon, ring], [star, ring]):
        with pytest.raises(InputError, match="was made on top of those of moon"):
            made_on_top(wrong)


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
    pair = ("--eraser", tmp_path / "moon", "--eraser", tmp_path / "star")
    code, _, err = run("evaluate", "--sequential", *pair[2:], *pair[:2], "--steps", 1)
    assert code == 2
    assert "was made on top of those of moon" in err
    assert star.recipe.base["on"][0]["concepts"] == ["moon"]
