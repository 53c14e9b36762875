"""The artefact: its files, what loads them, and what it refuses."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from families import EVERY, build
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny
from erasers.erase import Eraser, Lora, describe, erase
from erasers.erase._files import check_target, one_rank, peft_keys, write_folder
from erasers.erase._kohya import kohya_keys
from erasers.pipelines import Backbone, load, models, plug, wrap
from erasers.prompts import InputError


def output(backbone, prompt="a moon"):
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.denoise(x, torch.tensor([500]), backbone.encode([prompt]))


@pytest.fixture
def saved(sd, tmp_path):
    """(backbone, eraser, folder)"""
    eraser = erase("moon", sd)
    return sd, eraser, eraser.save_pretrained(tmp_path / "eraser", verify=sd)


def test_folder_holds_what_it_promises(saved):
    _, _, folder = saved
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "eraser_config.json",
        "eraser_kohya.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    record = json.loads((folder / "eraser_config.json").read_text())
    assert record["concepts"][0]["name"] == "moon"
    assert record["method"] == "uce"
    assert record["settings"]["ridge"] == 0.5
    assert {"torch", "diffusers", "peft", "erasers"} <= set(record["versions"])
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as f:
        assert json.loads(f.metadata()["erasers"]) == record
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n")
    for word in ("concept-erasure", "template:sd-lora", "load_lora_weights", "moon", "suppresses"):
        assert word in text


def test_scores_are_written_into_the_eraser_and_nothing_else_of_it_changes(saved, tmp_path):
    sd, eraser, folder = saved
    scores = {
        "ua": {"value": 98.0, "low": 91.5, "high": 99.6, "n": 50, "control": 0.0, "unit": "%"},
        "settings": {"model": "tiny", "steps": 12},
    }
    file = eraser.export(tmp_path / "lora.safetensors")
    (folder / "notes.txt").write_text("mine")
    for place, name in ((folder, "pytorch_lora_weights.safetensors"), (file, None)):
        weights = load_file(place / name if name else place)
        Eraser.record_scores(place, scores)
        after = load_file(place / name if name else place)
        assert all(torch.equal(after[k], v) for k, v in weights.items())
        assert len(after) == len(weights)
        again = Eraser.from_pretrained(place)
        assert again.recipe == replace(eraser.recipe, scores=scores)
        assert describe(place)["scores"] == scores
    assert (folder / "notes.txt").read_text() == "mine"
    assert "| ua | 98.0 % (91.5 .. 99.6) | 0.0 | 50 |" in (folder / "README.md").read_text()
    assert again.check_base(sd) is None
    with pytest.raises(InputError, match="on this computer"):
        Eraser.record_scores("somebody/eraser", scores)


def test_ranks_are_padded_to_one_and_change_nothing():
    g = torch.Generator().manual_seed(0)
    pairs = {
        "unet.a": (torch.randn(1, 4, generator=g), torch.randn(5, 1, generator=g)),
        "unet.b": (torch.randn(3, 4, generator=g), torch.randn(6, 3, generator=g)),
    }
    padded = one_rank(pairs)
    assert {a.shape[0] for a, _ in padded.values()} == {3}
    for name, (a, b) in pairs.items():
        u, v = padded[name]
        torch.testing.assert_close(v @ u, b @ a)


@pytest.mark.parametrize(
    ("layout", "family"),
    [
        *(("peft", f) for f in EVERY if "pixart" not in f and f != "hidream"),
        *(("kohya", f) for f in ("sd", "sd2", "sdxl")),
    ],
)
def test_diffusers_own_loader_reads_both_layouts(family, layout, tmp_path):
    backbone = build(family)
    eraser = erase("moon", backbone)
    with eraser.attached(backbone):
        want = output(backbone)
    backbone.pipe.load_lora_weights(str(eraser.export(tmp_path / "x.safetensors", layout)), adapter_name="x")
    have = output(backbone)
    backbone.pipe.unload_lora_weights()
    if layout == "peft":
        assert torch.equal(have, want)
    else:
        torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-4)
    assert not torch.equal(output(backbone), want)


def test_kohya_keys():
    factors = {"unet.mid_block.attentions.0.attn2.to_k": (torch.zeros(2, 4), torch.zeros(5, 2))}
    keys = kohya_keys(factors)
    stem = "lora_unet_mid_block_attentions_0_attn2_to_k"
    assert set(keys) == {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"}
    assert keys[f"{stem}.alpha"].item() == 2
    with pytest.raises(InputError, match="export to peft"):
        kohya_keys({"transformer.x": factors["unet.mid_block.attentions.0.attn2.to_k"]})


PLAIN = """
import sys
sys.modules["erasers"] = None  # whoever imports it now fails
try:
    import erasers
    raise SystemExit("erasers is importable")
except ImportError:
    pass
import torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({base!r}, safety_checker=None)
pipe.load_lora_weights({eraser!r})
pipe.set_progress_bar_config(disable=True)
for k, seed in enumerate((1, 2)):
    g = torch.Generator().manual_seed(seed)
    pipe("a moon", num_inference_steps=4, generator=g).images[0].save({out!r} + f"/{{k}}.png")
"""


PEFT = """
import json, sys
sys.modules["erasers"] = None  # whoever imports it now fails
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({base!r})
{snippet}
pipe.set_progress_bar_config(disable=True)
g = torch.Generator().manual_seed(1)
pipe("a moon", num_inference_steps=4, generator=g, **json.loads({call!r})).images[0].save({out!r})
"""


def test_a_family_without_a_loader_takes_erasers_through_peft(tmp_path):
    """PixArt's pipelines have no `load_lora_weights`: the same file, by the lines of its own card, draws the same
    pixels.
    """
    backbone = build("pixart")
    backbone.pipe.save_pretrained(tmp_path / "base")
    eraser = erase("moon", backbone)
    folder = eraser.save_pretrained(tmp_path / "eraser", verify=backbone)
    before = [(n, type(m)) for n, m in backbone.denoiser.named_modules()]
    with eraser.attached(backbone):
        want = backbone.draw(["a moon"], [1], steps=4, guidance=4.5)[0]
    assert [(n, type(m)) for n, m in backbone.denoiser.named_modules()] == before
    blocks = [b.split("```")[0] for b in (folder / "README.md").read_text().split("```python\n")]
    (snippet,) = [b for b in blocks if "set_peft_model_state_dict" in b]
    code = PEFT.format(
        base=str(tmp_path / "base"),
        snippet=snippet.replace("this-folder", str(folder)),
        call=json.dumps(backbone.call),
        out=str(tmp_path / "x.png"),
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    assert np.array_equal(Image.open(tmp_path / "x.png"), want)
    assert not np.array_equal(backbone.draw(["a moon"], [1], steps=4, guidance=4.5)[0], want)


@pytest.mark.parametrize("world", ["tiny", "canvas"])
def test_plain_diffusers_draws_the_same_pixels(world, tmp_path, request):
    """Loaded by `load_lora_weights` in a process where our package cannot be imported."""
    if world == "tiny":
        tiny.sd().save_pretrained(tmp_path / "base")
        base = str(tmp_path / "base")
        backbone = load(base)
    else:
        backbone = request.getfixturevalue("canvas")
        base = next(m.path for m in models() if m.id == "canvas-sd")
    folder = erase("moon", backbone).save_pretrained(tmp_path / "eraser")
    code = PLAIN.format(base=base, eraser=str(folder), out=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    bare = [backbone.draw(["a moon"], [s], steps=4)[0] for s in (1, 2)]
    with Eraser.from_pretrained(folder).attached(backbone):
        ours = [backbone.draw(["a moon"], [s], steps=4)[0] for s in (1, 2)]
    for k, (image, without) in enumerate(zip(ours, bare, strict=True)):
        theirs = np.asarray(Image.open(tmp_path / f"{k}.png"))
        assert np.array_equal(theirs, np.asarray(image))
        assert not np.array_equal(theirs, np.asarray(without))


class TestBesideOtherAdapters:
    """An app's own LoRA, loaded before or after ours."""

    @staticmethod
    def other(backbone, seed=0):
        g = torch.Generator().manual_seed(seed)
        return {
            f"{n}.lora_{s}.weight": 0.05
            * torch.randn((2, m.in_features) if s == "A" else (m.out_features, 2), generator=g)
            for n, m in backbone.modules("self").items()
            for s in "AB"
        }

    def test_one_that_was_on_stays_on_at_its_weight(self, sd):
        sd.pipe.load_lora_weights(self.other(sd), adapter_name="style")
        sd.pipe.set_adapters(["style"], [0.3])
        before = output(sd)
        handle = erase("moon", sd).attach(sd)
        assert sorted(sd.pipe.get_active_adapters()) == sorted(["style", handle.name])
        both = output(sd)
        handle.detach()
        assert torch.equal(output(sd), before)
        assert not torch.equal(both, before)

    def test_loading_another_switches_ours_off_and_is_active_says_so(self, sd):
        handle = erase("moon", sd).attach(sd)
        assert handle.is_active()
        sd.pipe.load_lora_weights(self.other(sd), adapter_name="style")
        assert not handle.is_active()
        sd.pipe.set_adapters(["style", handle.name])
        assert handle.is_active()
        sd.pipe.disable_lora()
        assert not handle.is_active()
        sd.pipe.enable_lora()
        handle.detach()
        assert sd.pipe.get_active_adapters() == ["style"]

    def test_fused_counts_as_active(self, sd):
        handle = erase("moon", sd).attach(sd)
        plain = output(sd)
        sd.pipe.fuse_lora(adapter_names=[handle.name])
        assert handle.is_active()
        with pytest.raises(InputError, match="is fused into the weights"):
            handle.detach()
        sd.pipe.unfuse_lora()
        torch.testing.assert_close(output(sd), plain, atol=1e-4, rtol=1e-3)
        handle.detach()
        assert not handle.is_active()

    def test_one_that_was_switched_off_stays_silent(self, sd):
        plain = output(sd)
        eraser = erase("moon", sd)
        with eraser.attached(sd):
            want = output(sd)
        sd.pipe.load_lora_weights(self.other(sd), adapter_name="style")
        sd.pipe.disable_lora()
        handle = eraser.attach(sd)
        assert torch.equal(output(sd), want)
        handle.detach()
        assert torch.equal(output(sd), plain)
        sd.pipe.enable_lora()
        assert not torch.equal(output(sd), plain), "the user's own adapter can be switched on again"

    def test_scale_survives_set_adapters(self, sd):
        eraser = erase("moon", sd)
        handle = eraser.attach(sd, 0.5)
        half = output(sd)
        sd.pipe.load_lora_weights(self.other(sd), adapter_name="style")
        sd.pipe.set_adapters([handle.name])
        torch.testing.assert_close(output(sd), half, atol=0, rtol=0)

    def test_same_concept_twice_gets_two_names(self, sd):
        eraser = erase("moon", sd)
        one, two = eraser.attach(sd), eraser.attach(sd)
        assert (one.name, two.name) == ("erase-moon", "erase-moon-2")
        with pytest.raises(InputError, match="attached already"):
            eraser.attach(sd, name="erase-moon")


@pytest.mark.parametrize("act", ["attach", "bake"])
def test_a_pipeline_is_not_asked_for_the_names_of_a_backbone(sd, monkeypatch, act):
    """Python looks for a protocol's names in an order that changes from process to process, until one is missing; a
    pipeline raises at `values`. Here it raises at every name of the protocol that it lacks.
    """
    eraser, pipe = erase("moon", sd), sd.pipe
    lacks = {n for n in dir(Backbone) if not n.startswith("_") and not hasattr(type(pipe), n) and n not in vars(pipe)}
    assert {"denoise", "values"} <= lacks
    found = type(pipe).__getattr__

    def strict(self, name):
        if name in lacks:
            raise KeyError(name)
        return found(self, name)

    monkeypatch.setattr(DiffusionPipeline, "__getattr__", strict)
    plain = output(sd)
    getattr(eraser, act)(pipe)
    assert not torch.equal(output(sd), plain)


class TestBase:
    """An eraser goes on the base it was made for."""

    def test_same_weights_in_another_precision(self, saved):
        sd, eraser, _ = saved
        for dtype in (torch.float16, torch.bfloat16):
            sd.pipe.to(dtype)
            with eraser.attached(sd) as handle:
                assert handle.is_active()

    def test_other_weights(self, saved):
        _, eraser, _ = saved
        stranger = wrap(tiny.sd(seed=1), "stranger")
        with pytest.raises(InputError, match="made for 'tiny-sd'; the weights of 'stranger' differ by"):
            eraser.attach(stranger)
        eraser.attach(stranger, force=True).detach()

    def test_other_family(self, saved):
        _, eraser, _ = saved
        with pytest.raises(InputError, match=r"family sd\), got 'xl' \(sdxl\)"):
            eraser.attach(wrap(tiny.sdxl(), "xl"))

    def test_other_shape(self, saved, canvas):
        _, eraser, _ = saved
        with pytest.raises(InputError, match=r"should be .* it is"):
            eraser.attach(canvas, force=True)

    def test_attached_base_is_still_recognised(self, saved):
        sd, eraser, _ = saved
        with eraser.attached(sd):
            eraser.check_base(sd)
            erase("star", sd).check_base(sd)


class TestRefusals:
    """One clear line each."""

    def test_pickle(self, tmp_path):
        (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"\x80\x04.")
        with pytest.raises(InputError, match="is a pickle"):
            Eraser.from_pretrained(tmp_path / "pytorch_lora_weights.bin")

    def test_truncated(self, saved):
        _, _, folder = saved
        file = folder / "pytorch_lora_weights.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(InputError, match="no whole safetensors file"):
            Eraser.from_pretrained(folder)
        with pytest.raises(InputError, match="no whole safetensors file"):
            describe(file)

    def test_half_a_pair(self, saved):
        _, _, folder = saved
        file = folder / "pytorch_lora_weights.safetensors"
        tensors = load_file(file)
        tensors.pop(next(k for k in tensors if "lora_B" in k))
        save_file(tensors, file)
        with pytest.raises(InputError, match="is missing"):
            Eraser.from_pretrained(folder)

    def test_no_eraser(self, tmp_path):
        with pytest.raises(InputError, match=r"expected eraser_config\.json"):
            Eraser.from_pretrained(tmp_path)
        with pytest.raises(InputError, match=r"expected a folder, a \.safetensors file or a Hub id"):
            Eraser.from_pretrained(tmp_path / "nothing")
        save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
        with pytest.raises(InputError, match="but no eraser"):
            Eraser.from_pretrained(tmp_path / "x.safetensors")
        with pytest.raises(InputError, match="holds no LoRA pairs"):
            describe(tmp_path / "x.safetensors")

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 99}', '{"schema": "1"}', '{"schema": 1}'])
    def test_damaged_record(self, saved, text):
        _, _, folder = saved
        (folder / "eraser_config.json").write_text(text)
        with pytest.raises(InputError, match=r"eraser_config\.json"):
            Eraser.from_pretrained(folder)

    @pytest.mark.parametrize("header", ["{", "[]", '{"schema": 1, "method": "x"}'])
    def test_damaged_header(self, saved, tmp_path, header):
        save_file(
            {"unet.x.lora_A.weight": torch.ones(1, 2), "unet.x.lora_B.weight": torch.ones(3, 1)},
            tmp_path / "l.safetensors",
            {"erasers": header},
        )
        for read in (Eraser.from_pretrained, describe):
            with pytest.raises(InputError, match=r"l\.safetensors"):
                read(tmp_path / "l.safetensors")

    def test_nan_weights_are_another_base(self, saved):
        sd, eraser, _ = saved
        with torch.no_grad():
            next(iter(sd.modules("text-kv").values())).weight.fill_(float("nan"))
        with pytest.raises(InputError, match="differ by nan"):
            eraser.attach(sd)

    def test_existing_output(self, saved):
        sd, eraser, folder = saved
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        with pytest.raises(InputError, match="exists already: add --force"):
            eraser.save_pretrained(folder)
        assert before == {p.name: p.read_bytes() for p in folder.iterdir()}
        eraser.save_pretrained(folder, force=True, verify=sd)
        (folder.parent / "mine").mkdir()
        (folder.parent / "mine/thesis.txt").write_text("precious")
        with pytest.raises(InputError, match=r"holds no eraser_config\.json, so it is not ours"):
            eraser.save_pretrained(folder.parent / "mine", force=True)

    def test_export_names(self, saved, tmp_path):
        _, eraser, _ = saved
        with pytest.raises(InputError, match=r"ending in \.safetensors"):
            eraser.export(tmp_path / "x.bin")
        with pytest.raises(InputError, match="did you mean 'kohya'"):
            eraser.export(tmp_path / "x.safetensors", "koya")

    def test_unwritable(self, saved, tmp_path):
        (tmp_path / "file").write_text("")
        for place in (tmp_path / "file/x", "/proc/nowhere/x"):
            with pytest.raises(InputError, match="cannot write"):
                saved[1].save_pretrained(place)

    def test_failure_leaves_nothing(self, tmp_path):
        def fill(folder):
            (folder / "half").write_text("x")
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            write_folder(tmp_path / "a/b/c", fill)
        assert list(tmp_path.iterdir()) == []
        check_target(tmp_path / "a/b/c", force=False)

    def test_verify(self, saved, tmp_path, monkeypatch):
        """An update too small to act or too large to compute, a write that goes wrong, and keys that find no module."""
        sd, eraser, _ = saved
        flat = {n: (a, torch.zeros_like(b)) for n, (a, b) in eraser.payload.factors.items()}
        replace(eraser, payload=Lora(flat)).save_pretrained(tmp_path / "zero", verify=sd)  # zero on purpose
        tiny_update = {n: (1e-12 * a, 1e-12 * b) for n, (a, b) in eraser.payload.factors.items()}
        with pytest.raises(InputError, match="loads but does not change the output"):
            replace(eraser, payload=Lora(tiny_update)).save_pretrained(tmp_path / "e", verify=sd)
        wild = {n: (1e25 * a, 1e25 * b) for n, (a, b) in eraser.payload.factors.items()}
        with pytest.raises(InputError, match=r"out of all bounds in float32.*a lower learning rate"):
            replace(eraser, payload=Lora(wild)).save_pretrained(tmp_path / "e", verify=sd)
        assert not (tmp_path / "e").exists()
        lost = {k.replace("attn2", "attn9"): v for k, v in peft_keys(eraser.payload.factors).items()}
        with pytest.raises((RuntimeError, ValueError)):
            plug(sd.pipe, lost, "lost")

    def test_what_is_there_is_not_replaced_by_something_else(self, saved, tmp_path):
        _, eraser, folder = saved
        (tmp_path / "thesis.docx").write_text("precious")
        with pytest.raises(InputError, match="is a file and a folder would be written"):
            eraser.save_pretrained(tmp_path / "thesis.docx", force=True)
        with pytest.raises(InputError, match="is a folder and a file would be written"):
            check_target(folder, force=True)
        (tmp_path / "link").symlink_to(folder)
        with pytest.raises(InputError, match="is a link"):
            eraser.save_pretrained(tmp_path / "link", force=True)
        with pytest.raises(InputError, match="cannot write"):
            check_target(tmp_path / ("x" * 300), force=False)
        assert (tmp_path / "thesis.docx").read_text() == "precious"


def test_export_in_half_precision(saved, tmp_path):
    _, eraser, _ = saved
    half = eraser.export(tmp_path / "h.safetensors", dtype=torch.float16)
    whole = eraser.export(tmp_path / "w.safetensors")
    assert half.stat().st_size < whole.stat().st_size
    assert {v.dtype for v in load_file(half).values()} == {torch.float16}
    assert Eraser.from_pretrained(half).recipe == eraser.recipe


def test_describe(saved, tmp_path):
    _, eraser, folder = saved
    found = describe(folder)
    assert found["concepts"] == ["moon"]
    assert found["rank"] == eraser.payload.rank
    assert found["layers"] == len(eraser.payload.factors)
    total = sum((b @ a).square().sum().item() for a, b in eraser.payload.factors.values()) ** 0.5
    assert found["norm"] == pytest.approx(total, rel=1e-3)
    kohya = describe(folder / "eraser_kohya.safetensors")
    assert kohya["norm"] == pytest.approx(total, rel=1e-3)
    save_file(
        {"unet.x.lora_A.weight": torch.ones(1, 2), "unet.x.lora_B.weight": torch.ones(3, 1)}, tmp_path / "l.safetensors"
    )
    assert "not erasers" in describe(tmp_path / "l.safetensors")["made by"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_that_any_new_file_has(saved, tmp_path, mask):
    """Weights are as open as the record beside them, and so are the folders."""
    old = os.umask(mask)
    try:
        folder = saved[1].save_pretrained(tmp_path / "again")
    finally:
        os.umask(old)
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path.name
