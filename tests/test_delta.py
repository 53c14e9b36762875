"""Kind `delta`: exact values, a bitmap, other scales, files, life beside LoRAs. Overlap of erasers, and the trap."""

import math
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny
from erasers.erase import Change, Delta, Eraser, Lora, describe, erase, overlap
from erasers.erase._convert import split
from erasers.erase._delta import pack, unpack
from erasers.erase._overlap import inner, shared, spans
from erasers.pipelines import load, wrap
from erasers.prompts import InputError

DENSE = ("esd", {"dense": True, "steps": 2, "batch": 2, "sampler_steps": 2, "lr": 1e-2})


def output(backbone, prompt="a moon"):
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.denoise(x, torch.tensor([500]), backbone.encode([prompt]))


def other_lora(backbone):
    g = torch.Generator().manual_seed(0)
    return {
        f"{n}.lora_{s}.weight": 0.05 * torch.randn((2, m.in_features) if s == "A" else (m.out_features, 2), generator=g)
        for n, m in backbone.modules("cross").items()
        for s in "AB"
    }


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 3, 3), (8,), (1,)])
def test_bits(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4
    bits = pack(mask)
    assert bits.dtype == torch.uint8
    assert len(bits) == math.ceil(mask.numel() / 8), "an eighth of a byte a weight"
    assert torch.equal(unpack(bits, shape), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_change_is_exact(dtype):
    g = torch.Generator().manual_seed(0)
    base = torch.randn(6, 7, generator=g).to(dtype)
    new = torch.where(torch.rand(6, 7, generator=g) < 0.3, torch.randn(6, 7, generator=g).to(dtype) * 1e-3, base)
    change = Change.between(base, new)
    assert torch.equal(change.applied(base), new)
    assert torch.equal(change.applied(base, 0.0), base)
    assert torch.equal(change.mask, base != new)
    half = change.applied(base, 0.5).float()
    torch.testing.assert_close(half, (base.float() + new.float()) / 2, atol=2e-3, rtol=1e-2)
    assert change.norm == pytest.approx((new.float() - base.float()).norm().item(), rel=1e-5)


@pytest.fixture
def made(sd, tmp_path):
    """(backbone, eraser, folder)"""
    eraser = erase("moon", sd, method=DENSE)
    return sd, eraser, eraser.save_pretrained(tmp_path / "e", verify=sd)


def test_folder(made):
    _, eraser, folder = made
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "delta.safetensors", "eraser_config.json"]
    text = (folder / "README.md").read_text()
    assert "erasers export this-folder --to component" in text
    assert "load_lora_weights" not in text
    assert "lora" not in text.split("---")[1]
    found = describe(folder)
    assert found["kind"] == "delta"
    assert found["weights changed"] == sum(len(c.values) for c in eraser.payload.changes.values())
    assert found["norm"] == pytest.approx(sum(c.norm**2 for c in eraser.payload.changes.values()) ** 0.5, rel=1e-3)


def test_values_are_in_place_bit_for_bit(made):
    sd, eraser, _ = made
    before = {n: p.detach().clone() for n, p in sd.parameters("all").items()}
    with eraser.attached(sd) as handle:
        assert handle.is_active()
        for n, p in sd.parameters("all").items():
            change = eraser.payload.changes.get(n)
            assert torch.equal(p.data, change.applied(before[n]) if change else before[n])
        eraser.check_base(sd)  # recognised under its own cover
    assert all(torch.equal(p, before[n]) for n, p in sd.parameters("all").items())


def test_two_that_change_the_same_weights_add_up(made):
    sd, one, _ = made
    two = erase("star", sd, method=DENSE)
    name = next(iter(one.payload.changes))
    base = sd.parameters("all")[name].detach().clone()
    a, b = (e.payload.changes[name].applied(base) for e in (one, two))
    with one.attached(sd), two.attached(sd):
        torch.testing.assert_close(sd.parameters("all")[name].data, base + (a - base) + (b - base))
    assert torch.equal(sd.parameters("all")[name], base)


class TestBesideLoras:
    """A delta changes the weights under a LoRA."""

    def test_before_and_after(self, made):
        sd, eraser, _ = made
        base = output(sd)
        handle = eraser.attach(sd)
        alone = output(sd)
        sd.pipe.load_lora_weights(other_lora(sd), adapter_name="style")
        assert handle.is_active(), "loading a LoRA does not switch a delta off"
        both = output(sd)
        handle.detach()
        with_style = output(sd)
        again = eraser.attach(sd)
        assert torch.equal(output(sd), both)
        sd.pipe.unload_lora_weights()
        assert torch.equal(output(sd), alone)
        again.detach()
        assert torch.equal(output(sd), base)
        assert not torch.equal(with_style, both)

    def test_fused(self, made):
        sd, eraser, _ = made
        sd.pipe.load_lora_weights(other_lora(sd), adapter_name="style")
        handle = eraser.attach(sd)
        sd.pipe.fuse_lora()
        with pytest.raises(InputError, match="a LoRA is fused into the weights"):
            handle.detach()
        sd.pipe.unfuse_lora()
        handle.detach()
        sd.pipe.fuse_lora()
        with pytest.raises(InputError, match="cannot attach 'erase-moon': a LoRA is fused"):
            eraser.attach(sd, force=True)
        fused = {n: (p.detach().clone(), p.requires_grad) for n, p in sd.denoiser.named_parameters()}
        for method in (DENSE, ("esd", {**DENSE[1], "dense": False})):
            with pytest.raises(InputError, match="cannot erase: a LoRA is fused into the weights"):
                erase("moon", sd, method=method)
        for n, p in sd.denoiser.named_parameters():
            assert torch.equal(p, fused[n][0])
            assert p.requires_grad == fused[n][1], n

    def test_training_beside_an_attached_delta(self, made):
        """The teacher is the bare base, whatever is attached."""
        sd, eraser, _ = made
        plain, bare = erase("star", sd, method=DENSE), output(sd)
        with eraser.attached(sd):
            again = erase("star", sd, method=DENSE)
            assert not torch.equal(output(sd), bare)
        for n, c in plain.payload.changes.items():
            assert torch.equal(c.values, again.payload.changes[n].values)


def test_another_precision(made):
    sd, eraser, _ = made
    handle = eraser.attach(sd)
    sd.pipe.to(torch.float16)
    assert handle.is_active()
    handle.detach()
    fresh = tiny.sd().to(torch.float16)
    for p, q in zip(sd.denoiser.parameters(), fresh.unet.parameters(), strict=True):
        assert torch.equal(p, q)


PLAIN = """
import sys
sys.modules["erasers"] = None
import torch
from diffusers import AutoModel, DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({base!r}, unet=AutoModel.from_pretrained({unet!r}), safety_checker=None)
pipe.set_progress_bar_config(disable=True)
g = torch.Generator().manual_seed(1)
pipe("a moon", num_inference_steps=3, generator=g).images[0].save({out!r})
"""


@pytest.mark.parametrize("kind", ["delta", "lora"])
def test_component_loads_in_plain_diffusers(kind, tmp_path):
    tiny.sd().save_pretrained(tmp_path / "base")
    sd = load(str(tmp_path / "base"))
    eraser = erase("moon", sd, method=DENSE if kind == "delta" else "uce")
    before = output(sd)
    folder = eraser.export(tmp_path / "unet", "component", base=sd)
    assert torch.equal(output(sd), before), "the base is as it was"
    code = PLAIN.format(unet=str(folder), base=str(tmp_path / "base"), out=str(tmp_path / "x.png"))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    with eraser.attached(sd):
        want = np.asarray(sd.draw(["a moon"], [1], steps=3)[0]).astype(int)
    have = np.asarray(Image.open(tmp_path / "x.png")).astype(int)
    assert np.abs(have - want).max() <= (0 if kind == "delta" else 1)
    assert not np.array_equal(want, np.asarray(sd.draw(["a moon"], [1], steps=3)[0]))


class TestRefusals:
    """One clear line each."""

    def test_layouts(self, made, tmp_path):
        sd, eraser, _ = made
        with pytest.raises(InputError, match="a delta is no LoRA: make one of it with --rank or --energy"):
            eraser.export(tmp_path / "x.safetensors")
        with pytest.raises(InputError, match="name the base model with --model"):
            eraser.export(tmp_path / "x", "component")
        with erase("star", sd).attached(sd), pytest.raises(InputError, match="cannot export while adapters"):
            eraser.export(tmp_path / "x", "component", base=sd)
        with eraser.attached(sd), pytest.raises(InputError, match="cannot bake while adapters are attached"):
            eraser.bake(sd)

    @pytest.mark.parametrize("part", ["values", "bitmap", "shape"])
    def test_damage(self, made, part):
        _, _, folder = made
        file = folder / "delta.safetensors"
        tensors = load_file(file)
        key = next(k for k in tensors if k.endswith(f".{part}"))
        short = {**tensors, key: tensors[key][:-1].clone()}
        save_file(short, file)
        with pytest.raises(InputError, match=r"do not belong together"):
            Eraser.from_pretrained(folder)
        del tensors[key]
        save_file(tensors, file)
        with pytest.raises(InputError, match=f"lacks {part}"):
            Eraser.from_pretrained(folder)

    def test_kind_of_the_future(self, made):
        _, _, folder = made
        file = folder / "eraser_config.json"
        file.write_text(file.read_text().replace('"kind": "delta"', '"kind": "omega"'))
        with pytest.raises(InputError, match="knows the kinds lora, delta, hyper, got 'omega'"):
            Eraser.from_pretrained(folder)

    def test_other_base(self, made):
        _, eraser, _ = made
        with pytest.raises(InputError, match="the weights of 'stranger' differ by"):
            eraser.attach(wrap(tiny.sd(seed=1), "stranger"))
        with pytest.raises(InputError, match=r"family sd\), got 'xl'"):
            eraser.attach(wrap(tiny.sdxl(), "xl"))


class TestOverlap:
    """Subspaces and sums, against full matrices."""

    @staticmethod
    def pairs(seed, rank=2):
        g = torch.Generator().manual_seed(seed)
        make = {"dtype": torch.float64, "generator": g}
        return {f"unet.{k}": (torch.randn(rank, 9, **make), torch.randn(7, rank, **make)) for k in "ab"}

    def eraser(self, sd, factors):
        made = erase("moon", sd)
        return Eraser(made.recipe, Lora(factors))

    def test_against_full_matrices(self, sd):
        one, two = self.pairs(0), self.pairs(1)
        found = overlap(self.eraser(sd, one), self.eraser(sd, two))
        a, b = (torch.stack([q @ p for p, q in x.values()]) for x in (one, two))
        assert found["norms"] == pytest.approx([a.norm().item(), b.norm().item()], rel=1e-4)
        assert found["norm of the sum"] == pytest.approx((a + b).norm().item(), rel=1e-4)
        assert found["norm if orthogonal"] == pytest.approx((a.norm() ** 2 + b.norm() ** 2).sqrt().item(), rel=1e-4)
        assert found["cosine"] == pytest.approx(((a * b).sum() / a.norm() / b.norm()).item(), abs=1e-4)

    def test_angles_are_scipys(self):
        g = torch.Generator().manual_seed(0)
        a, b = torch.randn(3, 9, generator=g).double(), torch.randn(7, 3, generator=g).double()
        c, d = torch.randn(2, 9, generator=g).double(), torch.randn(7, 2, generator=g).double()
        (read, write), (other, _) = spans(a, b), spans(c, d)
        torch.testing.assert_close(read.T @ read, torch.eye(3).double())
        torch.testing.assert_close(read @ read.T @ a.T, a.T)
        torch.testing.assert_close(write @ write.T @ b, b)
        from scipy.linalg import subspace_angles

        angles = subspace_angles(a.T.numpy(), c.T.numpy())
        share, smallest = shared(read, other)
        assert share == pytest.approx(np.mean(np.cos(angles) ** 2), rel=1e-6)
        assert smallest == pytest.approx(np.degrees(angles.min()), rel=1e-5)
        assert inner((a, b), (c, d)) == pytest.approx(((b @ a) * (d @ c)).sum().item())

    def test_padded_ranks_span_nothing_more(self):
        a, b = torch.randn(1, 9).double(), torch.randn(7, 1).double()
        pad = torch.nn.functional.pad
        read, write = spans(pad(a, (0, 0, 0, 3)), pad(b, (0, 3)))
        assert (read.shape, write.shape) == ((9, 1), (7, 1))
        assert spans(0 * a, b)[0].shape == (9, 0)
        assert shared(read, read[:, :0]) == (0.0, 90.0)

    def test_with_itself_and_with_its_opposite(self, sd):
        one = self.pairs(0)
        same = overlap(self.eraser(sd, one), self.eraser(sd, one))
        assert (same["cosine"], same["reads"], same["writes"]) == (1.0, 1.0, 1.0)
        assert same["ratio"] == pytest.approx(2**0.5, abs=1e-3)
        minus = overlap(self.eraser(sd, one), self.eraser(sd, {n: (a, -b) for n, (a, b) in one.items()}))
        assert (minus["cosine"], minus["ratio"]) == (-1.0, 0.0)

    def test_deltas(self, made):
        sd, eraser, folder = made
        found = overlap(folder, folder)
        assert found["share of the smaller"] == 1.0
        change = Change.between(torch.zeros(8), torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0]))
        other = Change.between(torch.zeros(8), torch.tensor([0.0, 1, 1, 1, 1, 0, 0, 0]))
        pair = [Eraser(eraser.recipe, Delta({"unet.x": c})) for c in (change, other)]
        found = overlap(*pair)
        assert (found["weights changed"], found["changed by both"]) == ([3, 4], 2)
        assert found["share of the smaller"] == pytest.approx(2 / 3, abs=1e-4)
        with pytest.raises(InputError, match=r"kind delta\) with .*kind lora"):
            overlap(eraser, erase("moon", sd))


class TestTheTrap:
    """Another LoRA switches an eraser off: it is told at the next image, once, and undone by `activate`."""

    def test_told_once_and_activated(self, sd):
        handle = erase("moon", sd).attach(sd)
        want = output(sd)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            output(sd)
        sd.pipe.load_lora_weights(other_lora(sd), adapter_name="style")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with sd.using(None):
                output(sd)  # off on purpose
        with pytest.warns(UserWarning, match=r"the eraser of moon no longer acts.*handle\.activate\(\)") as told:
            sd.draw(["a moon"], [0], steps=3)
        assert len(told) == 1
        style = output(sd)
        handle.activate()
        assert handle.is_active()
        assert set(sd.pipe.get_active_adapters()) == {"style", handle.name}
        both = output(sd)
        assert not torch.equal(both, style)
        sd.pipe.set_adapters([handle.name])
        assert torch.equal(output(sd), want)
        sd.pipe.set_adapters(["style"])
        with pytest.warns(UserWarning, match="no longer acts"):  # told again, as it happened again
            output(sd)
        handle.detach()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            output(sd)

    def test_what_is_gone_cannot_be_switched_on(self, sd):
        handle = erase("moon", sd).attach(sd)
        sd.pipe.unload_lora_weights()
        with pytest.raises(InputError, match=r"no longer in the pipeline .* attach it again"):
            handle.activate()
        made = erase("moon", sd, method=DENSE).attach(sd)
        made.activate()  # a delta is not switched by adapters
        made.detach()

    def test_switched_off_by_hand_is_no_accident(self, sd):
        handle = erase("moon", sd).attach(sd)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sd.pipe.disable_lora()
            bare = output(sd)
            assert not handle.is_active()
            sd.pipe.enable_lora()
            assert not torch.equal(output(sd), bare)
            assert handle.is_active()
        handle.detach()

    def test_no_hook_is_left(self, sd):
        before = len(sd.denoiser._forward_pre_hooks)
        with erase("moon", sd).attached(sd):
            assert len(sd.denoiser._forward_pre_hooks) == before + 1
        assert len(sd.denoiser._forward_pre_hooks) == before


# ---------------------------------------------------------------- in other shapes


@pytest.mark.parametrize("shape", [(9, 7), (6, 5, 3, 3)])
def test_split_is_the_closest_of_its_rank(shape):
    change = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = np.linalg.svd(change.flatten(1).double().numpy(), compute_uv=False) ** 2
    for rank in (1, 3, 99):
        a, b, held = split(change, rank=rank, energy=None)
        r = min(rank, *change.flatten(1).shape)
        assert a.shape == (r, *shape[1:])
        assert b.shape == (shape[0], r, *(1 for _ in shape[2:]))
        away = (b.flatten(1) @ a.flatten(1) - change.flatten(1)).double().square().sum().item()
        assert held == pytest.approx(values[:r].sum(), rel=1e-5)
        assert away == pytest.approx(values[r:].sum(), abs=1e-4)
    for energy in (0.2, 0.5, 0.9, 1.0):
        a, _, held = split(change, rank=None, energy=energy)
        assert held >= energy * values.sum() * (1 - 1e-9)
        assert values[: len(a) - 1].sum() < energy * values.sum()


@pytest.fixture
def whole(sd):
    """An eraser that changes every parameter: convolutions, norms and biases too."""
    return sd, erase("moon", sd, method=("esd", {**DENSE[1], "train": "all", "lr": 1e-3}))


def test_a_lora_of_a_delta(whole, tmp_path):
    sd, eraser = whole
    base = output(sd)
    with eraser.attached(sd):
        exact = output(sd)
    away = []
    eraser = replace(eraser, recipe=replace(eraser.recipe, scores={"ua": {"value": 100.0}}))
    for rank in (1, 2, 4):
        lora = eraser.to_lora(sd, rank=rank)
        assert isinstance(lora.payload, Lora)
        assert {b.ndim for _, b in lora.payload.factors.values()} == {2, 4}
        with lora.attached(sd) as handle:
            assert handle.is_active()
            away.append((output(sd) - exact).norm().item())
        assert torch.equal(output(sd), base)
        again = Eraser.from_pretrained(lora.export(tmp_path / f"{rank}.safetensors"))
        assert again.recipe == lora.recipe
        assert again.recipe.derived["from"] == "delta"
        assert not again.recipe.scores  # those of the delta are not its own
        lora.save_pretrained(tmp_path / str(rank), verify=sd)
        held = lora.recipe.derived["captured energy"]
        # of the whole change, norms and biases included, computed once more
        total = inside = 0.0
        for n, c in eraser.payload.changes.items():
            old = sd.parameters("all")[n].detach()
            moved = (c.applied(old) - old).double()
            total += moved.square().sum().item()
            if n.removesuffix(".weight") in lora.payload.factors:
                s = torch.linalg.svdvals(moved.flatten(1))
                inside += s[:rank].square().sum().item()
        assert held == pytest.approx(inside / total, rel=1e-4)
        assert lora.recipe.derived["parameters left out"] > 0
    assert away[0] > away[1] > away[2] > 0
    other = wrap(tiny.sd())
    lora.bake(other)
    torch.testing.assert_close(output(other), output_with(lora, sd), atol=1e-4, rtol=1e-3)


def output_with(eraser, backbone):
    with eraser.attached(backbone):
        return output(backbone)


def test_a_lora_of_a_delta_in_plain_diffusers(whole, tmp_path):
    sd, eraser = whole
    lora = eraser.to_lora(sd, energy=0.9)
    lora.export(tmp_path / "peft.safetensors")
    lora.export(tmp_path / "kohya.safetensors", "kohya")
    want = output_with(lora, sd)
    for name in ("peft", "kohya"):
        other = wrap(tiny.sd())
        other.pipe.load_lora_weights(tmp_path / f"{name}.safetensors")
        torch.testing.assert_close(output(other), want, atol=1e-5, rtol=1e-4)


def test_lycoris_is_the_difference(whole, tmp_path):
    sd, eraser = whole
    path = eraser.export(tmp_path / "full.safetensors", "lycoris", base=sd)
    tensors = load_file(path)
    assert {k.rpartition(".")[2] for k in tensors} == {"diff", "diff_b", "w_norm", "b_norm"}
    net = sd.pipe.unet
    modules = {n.replace(".", "_"): m for n, m in net.named_modules()}
    modules["out_0"] = modules.pop("conv_norm_out")  # by its first name, the one that A1111 finds
    params = {n: p.detach().clone() for n, p in net.named_parameters()}
    with torch.no_grad():  # as the apps that read such files add them
        for key, value in tensors.items():
            layer, _, kind = key.removeprefix("lora_unet_").rpartition(".")
            module = modules[layer]
            assert isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)) == kind.endswith("norm")
            p = module.bias if kind in ("diff_b", "b_norm") else module.weight
            p.add_(value)
    have = output(sd)
    with torch.no_grad():
        for n, p in net.named_parameters():
            p.copy_(params[n])
    torch.testing.assert_close(have, output_with(eraser, sd), atol=1e-5, rtol=1e-4)


def test_conversions_say_what_they_need(whole, tmp_path):
    sd, eraser = whole
    lora = eraser.to_lora(sd, rank=1)
    target = tmp_path / "x.safetensors"
    for words, call in (
        ("name one of --rank and --energy", lambda: eraser.to_lora(sd)),
        ("name one of --rank and --energy", lambda: eraser.to_lora(sd, rank=1, energy=0.5)),
        ("rank: expected at least 1, got 0", lambda: eraser.to_lora(sd, rank=0)),
        ("energy: expected a share above 0 and at most 1, got 2.0", lambda: eraser.to_lora(sd, energy=2.0)),
        ("more than|the weights themselves", lambda: eraser.to_lora(sd, energy=1.0)),
        ("are for a delta", lambda: lora.to_lora(sd, rank=1)),
        ("name the base with --model", lambda: eraser.export(target, "lycoris")),
        ("export it to kohya", lambda: lora.export(target, "lycoris", base=sd)),
        ("make one of it with --rank or --energy", lambda: eraser.export(target, "peft")),
    ):
        with pytest.raises(InputError, match=words):
            call()
    assert not target.exists()
