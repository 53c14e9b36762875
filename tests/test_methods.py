"""The contract that every method in the folder keeps, on every family."""

import copy
import importlib
from dataclasses import FrozenInstanceError, asdict, fields

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

import tiny
from erasers.erase import Eraser, Method, configure, erase, find, methods, options
from erasers.erase._files import one_rank
from erasers.pipelines import load, wrap
from erasers.prompts import Concept, InputError

CASES = [(m, f) for m in methods() for f in [*tiny.FAMILIES, "canvas-sd"]]


@pytest.fixture
def made(request):
    """(method, backbone) of one case."""
    method, family = request.param
    return method, load(family) if family == "canvas-sd" else wrap(tiny.FAMILIES[family](), family)


each = pytest.mark.parametrize("made", CASES, indirect=True, ids=["-".join(c) for c in CASES])


def test_both_published_and_control_are_there():
    assert {"uce", "random"} <= set(methods())


@pytest.mark.parametrize("name", methods())
def test_settings_are_frozen_documented_and_complete(name):
    cls = find(name)
    tool = configure(name, "paper", {})
    assert isinstance(tool, Method)
    assert cls.paper
    assert cls.__doc__
    assert importlib.import_module(cls.__module__).__doc__
    assert {"paper", "sd", "canvas"} <= set(cls.presets)
    for one in options(cls):
        assert one.help, f"{name}.{one.name} has no help"
        assert one.default is None or isinstance(one.default, one.type)
    with pytest.raises(FrozenInstanceError):
        setattr(tool, fields(cls)[0].name, None)
    for preset in cls.presets:
        assert configure(name, preset, {})


@each
def test_base_untouched_same_seed_same_bytes(made, tmp_path):
    method, backbone = made
    before = copy.deepcopy(backbone.denoiser.state_dict())
    one, two = (erase("moon", backbone, method=method, seed=3) for _ in range(2))
    assert all(torch.equal(v, before[k]) for k, v in backbone.denoiser.state_dict().items())
    a, b = (e.save_pretrained(tmp_path / n) for e, n in ((one, "a"), (two, "b")))
    for file in a.iterdir():
        assert file.read_bytes() == (b / file.name).read_bytes(), file.name
    assert one.recipe.settings == asdict(configure(method, backbone.preset, {}))


@each
def test_file_round_trip_is_exact(made, tmp_path):
    method, backbone = made
    eraser = erase("moon", backbone, method=method)
    folder = eraser.save_pretrained(tmp_path / "e", verify=backbone)
    for source in (folder, folder / "pytorch_lora_weights.safetensors"):
        again = Eraser.from_pretrained(source)
        assert again.recipe == eraser.recipe
        assert set(again.factors) == set(eraser.factors)
        for name, pair in one_rank(eraser.factors).items():
            assert all(torch.equal(x, y) for x, y in zip(pair, again.factors[name], strict=True))


@each
def test_attach_changes_detach_restores_scale_zero_is_the_identity(made):
    method, backbone = made
    eraser = erase("moon", backbone, method=method)
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([500]), backbone.encode(["a moon"])
    names = [n for n, _ in backbone.denoiser.named_modules()]
    with torch.no_grad():
        before = backbone.denoise(x, t, cond)
        handle = eraser.attach(backbone.pipe)
        assert handle.is_active()
        after = backbone.denoise(x, t, cond)
        with backbone.using(None):
            assert torch.equal(before, backbone.denoise(x, t, cond))
        with backbone.using(handle.name):
            assert torch.equal(after, backbone.denoise(x, t, cond))
        handle.detach()
        assert not handle.is_active()
        assert torch.equal(before, backbone.denoise(x, t, cond))
        with eraser.attached(backbone, 0.0) as off:
            assert not off.is_active()
            assert torch.equal(before, backbone.denoise(x, t, cond))
    assert not torch.equal(before, after)
    assert names == [n for n, _ in backbone.denoiser.named_modules()]


@each
def test_two_erasers_coexist(made):
    method, backbone = made
    one, two = (erase(c, backbone, method=method) for c in ("moon", "star"))
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([500]), backbone.encode(["a moon and a star"])
    with torch.no_grad():
        base = backbone.denoise(x, t, cond)
        first = one.attach(backbone)
        alone = backbone.denoise(x, t, cond)
        second = two.attach(backbone)
        assert first.is_active()
        assert second.is_active()
        both = backbone.denoise(x, t, cond)
        assert not torch.equal(alone, both)
        second.detach()
        assert first.is_active()
        torch.testing.assert_close(backbone.denoise(x, t, cond), alone, atol=0, rtol=0)
        first.detach()
        assert torch.equal(backbone.denoise(x, t, cond), base)


@each
def test_baking_is_attaching_for_good(made):
    method, backbone = made
    eraser = erase("moon", backbone, method=method)
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([500]), backbone.encode(["a moon"])
    with torch.no_grad():
        base = backbone.denoise(x, t, cond)
        with eraser.attached(backbone):
            want = backbone.denoise(x, t, cond)
        eraser.bake(backbone)
        have = backbone.denoise(x, t, cond)
    torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-3)
    assert (have - want).norm() < 1e-3 * (base - want).norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("family", list(tiny.FAMILIES))
@pytest.mark.parametrize("method", methods())
def test_half_precision_bases(method, family, dtype, tmp_path):
    """Erase, save and verify, attach, detach and bake on a base in half precision."""
    backbone = wrap(tiny.FAMILIES[family]().to(dtype), family)
    # random weights are small: a strong edit stands out against the rounding of half precision
    eraser = erase("moon", backbone, method=(method, {"ridge": 0.01} if method == "uce" else {"strength": 20.0}))
    eraser.save_pretrained(tmp_path / "e", verify=backbone)
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([500]), backbone.encode(["moon"])
    with torch.no_grad():
        before = backbone.denoise(x, t, cond)
        handle = eraser.attach(backbone)
        after = backbone.denoise(x, t, cond)
        handle.detach()
        assert torch.equal(backbone.denoise(x, t, cond), before)
        eraser.bake(backbone)
        baked = backbone.denoise(x, t, cond)
    assert not torch.equal(before, after)
    assert (baked - after).float().norm() < 0.5 * (after - before).float().norm()


class TestFinding:
    """Names, and what is wrong with them."""

    def test_unknown_method(self):
        with pytest.raises(InputError, match="unknown method 'ucee': did you mean 'uce'"):
            find("ucee")

    def test_outside_method(self, tmp_path, monkeypatch, sd):
        (tmp_path / "my_lab.py").write_text(
            "from dataclasses import dataclass\n"
            "from typing import ClassVar\n"
            "from erasers.erase import configure\n"
            "@dataclass(frozen=True)\n"
            "class Half:\n"
            "    share: float = 0.5\n"
            "    paper: ClassVar[str] = 'my lab'\n"
            "    presets: ClassVar[dict] = {'sd': {}}\n"
            "    def run(self, backbone, task):\n"
            "        whole = configure('uce', 'sd', {}).run(backbone, task)\n"
            "        return {n: (a, self.share * b) for n, (a, b) in whole.items()}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        eraser = erase("moon", sd, method=("my_lab:Half", {"share": 0.25}))
        assert eraser.recipe.method == "my_lab:Half"
        assert eraser.recipe.settings == {"share": 0.25}

    @pytest.mark.parametrize("name", ["nowhere:Thing", "json:nothing", "json:JSONDecoder"])
    def test_outside_nonsense(self, name):
        with pytest.raises(InputError, match=r"cannot import method|is no method"):
            find(name)

    def test_preset(self):
        with pytest.raises(InputError, match="unknown preset of uce 'canva': did you mean 'canvas'"):
            configure("uce", "canva", {})


def test_random_has_the_norm_of_what_it_imitates_and_nothing_else(sd):
    model = erase("moon", sd, method="uce")
    for rank in (None, 1, 5):
        noise = erase("moon", sd, method=("random", {"rank": rank}))
        for name, (a, b) in model.factors.items():
            x, y = noise.factors[name]
            assert x.shape[0] == (rank or a.shape[0])
            torch.testing.assert_close((y @ x).norm(), (b @ a).norm(), rtol=1e-4, atol=0)
            cosine = ((y @ x) * (b @ a)).sum() / (y @ x).norm() / (b @ a).norm()
            assert abs(cosine) < 0.2
    with pytest.raises(InputError, match="rank: expected at least 1, got 0"):
        configure("random", "sd", {"rank": 0})


class TestErase:
    """What the verb refuses."""

    def test_no_concept(self, sd):
        with pytest.raises(InputError, match="at least one concept"):
            erase([], sd)

    @pytest.mark.parametrize("name", ["", "  "])
    def test_empty_concept(self, sd, name):
        with pytest.raises(InputError, match="expected a concept name"):
            erase(name, sd)

    def test_anchor_that_is_erased_too(self, sd, canvas):
        eraser = erase(["house", "barn", "moon", "circle"], canvas)
        gone = set(eraser.recipe.names)
        assert not gone & {c["anchor"] for c in eraser.recipe.concepts}
        assert erase("house", canvas).recipe.concepts[0]["anchor"] == "barn"
        with pytest.raises(InputError, match="'star' of 'moon' is being erased too"):
            erase([Concept("moon", "star"), Concept("star")], sd)

    @pytest.mark.parametrize(
        ("method", "settings"), [("uce", {"ridge": 1e-300, "preserve_scale": 0.0}), ("random", {"strength": 1e39})]
    )
    def test_numbers_that_overflow(self, sd, method, settings):
        with pytest.raises(InputError, match=r"too small to solve|not finite"):
            erase("moon", sd, method=(method, settings))

    def test_blank_anchor_is_no_anchor(self, sd):
        assert erase(Concept(" moon ", "  "), sd).recipe.concepts[0]["anchor"] == ""

    def test_image_to_image_pipelines_take_erasers_but_are_not_erased_from(self, sd):
        other = StableDiffusionImg2ImgPipeline(**sd.pipe.components, requires_safety_checker=False)
        with pytest.raises(InputError, match="is a StableDiffusionImg2ImgPipeline: erasing needs a text-to-image"):
            erase("moon", wrap(other, "i2i"))
        erase("moon", sd).attach(other).detach()

    def test_erased_and_preserved(self, sd):
        with pytest.raises(InputError, match="moon cannot be erased and preserved at once"):
            erase("moon", sd, preserve=["moon"])
