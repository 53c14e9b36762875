"""Loading as users load: files, variants, revisions, few bits, offloading, slices; and what goes wrong, in one line."""

import errno
import json
import os
import shutil
import sys
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

import accelerate
import diffusers
import numpy as np
import pytest
import single_file
import torch
from families import build
from safetensors.torch import load_file
from test_cli import run

import tiny
from erasers.app._loading import FLAGS
from erasers.app._spare import spares
from erasers.erase import Eraser, Loop, _train, erase
from erasers.eval import Cells, Gallery, Plan, _benchmark
from erasers.pipelines import Embeddings, Loading, blueprint, fingerprint, load, wrap
from erasers.pipelines._held import bits, execution_device, offloaded
from erasers.prompts import InputError, out_of_memory

FEW = {"steps": 2, "batch": 2, "pool": 0, "sampler_steps": 2, "lr": 0.01}
PROMPTS = ["a moon", "a star"]


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed")


def refused(*words: str, **call: object) -> str:
    """The one line with which loading is refused; it names every one of the words."""
    source = call.pop("source", "canvas-sd")
    with pytest.raises(InputError) as caught:
        load(source, **call)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line
    return line


def configuration(pipe: object, folder: object) -> object:
    """A pipeline's folder without weights."""
    pipe.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return folder


def parts(pipe: object) -> dict[str, torch.Tensor]:
    """Every weight of a pipeline."""
    nets = {n: m for n, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    return {f"{n}.{k}": v for n, net in nets.items() for k, v in net.state_dict().items()}


def drawn(backbone: object, **how: object) -> np.ndarray:
    images = backbone.draw(PROMPTS, [0, 1], **{"steps": 2, "guidance": 3.0, **how})
    return np.stack([np.asarray(i, dtype=np.float64) for i in images])


class TestSingleFile:
    """One file in the original layout, with a configuration beside it."""

    @pytest.mark.parametrize("family", single_file.MAKERS)
    def test_every_weight_finds_its_place(self, family, tmp_path):
        pipe = single_file.MAKERS[family]()
        single_file.write(pipe, tmp_path / "model.safetensors")
        config = configuration(pipe, tmp_path / "config")
        backbone = load(tmp_path / "model.safetensors", how=Loading(config=str(config)))
        want, have = parts(pipe), parts(backbone.pipe)
        assert set(want) == set(have)
        assert not [n for n in want if not torch.equal(want[n], have[n])]
        assert np.array_equal(drawn(backbone), drawn(wrap(pipe)))
        assert backbone.provenance == {"config": str(config)}
        assert erase("moon", backbone, preserve=["star"]).recipe.base["config"] == "config", "its name, no path"

    @pytest.mark.parametrize(("family", "part"), [("sd", "unet"), ("sd3", "transformer"), ("flux", "transformer")])
    def test_a_denoiser_alone_takes_the_rest_from_its_pipeline(self, family, part, tmp_path):
        pipe = build(family).pipe
        pipe.save_pretrained(tmp_path / "m")
        inside = tmp_path / "m" / part / "diffusion_pytorch_model.safetensors"
        file = shutil.move(inside, tmp_path / "alone.safetensors")
        assert "--model-config" in refused("holds the denoiser alone", source=file)
        want, have = parts(pipe), parts(load(file, how=Loading(config=str(tmp_path / "m"))).pipe)
        assert set(want) == set(have)
        assert not [n for n in want if not torch.equal(want[n], have[n])]

    def test_what_is_no_model(self, tmp_path):
        single_file.write(tiny.sd(), tmp_path / "model.safetensors")
        looks = "looks like a checkpoint of 'stable-diffusion-v1-5/stable-diffusion-v1-5'"
        refused(looks, "--model-config", source=tmp_path / "model.safetensors")
        nowhere = Loading(config=str(tmp_path / "nowhere"))
        refused("--model-config", "nowhere", source=tmp_path / "model.safetensors", how=nowhere)
        for pickled in ("model.ckpt", "model.pkl"):
            refused("pickle", ".safetensors", source=tmp_path / pickled)
        refused("no such file", source=tmp_path / "missing.safetensors")
        (tmp_path / "notes.txt").write_text("no model")
        refused("expected one ending in .safetensors", source=tmp_path / "notes.txt")
        (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
        refused("no whole safetensors file", source=tmp_path / "cut.safetensors")
        erase("moon", wrap(tiny.sd()), preserve=[]).save_pretrained(tmp_path / "e")
        refused("a LoRA or an eraser", source=tmp_path / "e/pytorch_lora_weights.safetensors")
        refused("--model-revision", "on the Hub", source=tmp_path / "model.safetensors", how=Loading(revision="v2"))
        refused("--model-config", "single file", how=Loading(config="x"), source="a/b")

    def test_a_file_on_the_hub(self, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        pipe = tiny.sd()
        snapshot = in_cache(tmp_path / "hub", "you/files", {"main": "c" * 40})["main"]
        (snapshot / "sub").mkdir(parents=True)
        single_file.write(pipe, snapshot / "sub/model.safetensors")
        how = Loading(config=str(configuration(pipe, tmp_path / "config")))
        backbone = load("https://huggingface.co/you/files/blob/main/sub/model.safetensors", how=how)
        assert torch.equal(backbone.pipe.unet.conv_in.weight, pipe.unet.conv_in.weight)
        assert {k: backbone.provenance[k] for k in ("revision", "commit")} == {"revision": "main", "commit": "c" * 40}
        page = "https://huggingface.co/you/files/resolve/main/sub"
        assert load(f"{page}/model.safetensors?download=true", how=how).provenance == backbone.provenance
        refused("download from you/files (revision 'main'): HF_HUB_OFFLINE", source=f"{page}/other.gguf", how=how)

    @pytest.mark.parametrize(
        "name", ["https://hf.co/you/files/blob/main/m.safetensors", "missing.gguf", "m.safetensors"]
    )
    def test_a_blueprint_wants_the_pipeline_of_a_file(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("m.safetensors").write_bytes(b"")
        with pytest.raises(InputError, match=r"is a single file: .* --model-config"):
            blueprint(name)


def in_cache(hub, repo, revisions):
    """A repository as the Hub's client keeps it: revision -> its snapshot's folder."""
    root = hub / f"models--{repo.replace('/', '--')}"
    out = {}
    for name, commit in revisions.items():
        ref = root / "refs" / name
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
        out[name] = root / "snapshots" / commit
        out[name].mkdir(parents=True)
    return out


class TestVersions:
    """Which weights of a model."""

    def test_variant(self, tmp_path):
        pipe = tiny.sd()
        pipe.save_pretrained(tmp_path / "m", variant="fp16")
        refused("add --model-variant fp16", source=tmp_path / "m")
        refused("--model-variant bf16", "there: fp16", source=tmp_path / "m", how=Loading(variant="bf16"))
        backbone = load(tmp_path / "m", how=Loading(variant="fp16"))
        assert torch.equal(backbone.pipe.unet.conv_in.weight, pipe.unet.conv_in.weight)
        assert erase("moon", backbone, preserve=["star"]).recipe.base["variant"] == "fp16"
        refused("--model-variant", "comes with the package", how=Loading(variant="fp16"))

    def test_revision(self, tmp_path, monkeypatch):
        """From the Hub's cache, without network: the commit goes into the record."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        made = in_cache(tmp_path, "you/model", {"main": "a" * 40, "v2": "b" * 40})
        old, new = tiny.sd(seed=0), tiny.sd(seed=1)
        old.save_pretrained(made["main"])
        new.save_pretrained(made["v2"])
        plain, second = load("you/model"), load("you/model", how=Loading(revision="v2"))
        assert torch.equal(plain.pipe.unet.conv_in.weight, old.unet.conv_in.weight)
        assert torch.equal(second.pipe.unet.conv_in.weight, new.unet.conv_in.weight)
        assert plain.provenance == {"commit": "a" * 40}
        eraser = erase("moon", second, preserve=["star"])
        eraser.save_pretrained(tmp_path / "e")
        base = Eraser.from_pretrained(tmp_path / "e").recipe.base
        assert {k: base[k] for k in ("id", "revision", "commit")} == {
            "id": "you/model",
            "revision": "v2",
            "commit": "b" * 40,
        }
        assert f"revision v2, commit {'b' * 40}" in (tmp_path / "e/README.md").read_text()
        with pytest.raises(InputError, match="differ by"):
            eraser.check_base(plain)
        refused("you/model (revision 'v3')", "HF_HUB_OFFLINE", source="you/model", how=Loading(revision="v3"))
        refused("cannot fetch you/none: no folder or file here or in the cache, and HF_HUB_OFFLINE", source="you/none")
        made["main"].rename(tmp_path / "folder")
        refused("--model-revision", "is a folder", source=tmp_path / "folder", how=Loading(revision="v2"))


class TestSparing:
    """Slices, tiles and compiled drawing."""

    def test_slices_draw_the_same(self, tmp_path):
        tiny.sd().save_pretrained(tmp_path / "m")
        plain = load(tmp_path / "m")
        sliced = load(tmp_path / "m", how=Loading(vae_slicing=True, attention_slicing=True))
        assert sliced.pipe.vae.use_slicing
        kinds = {type(p).__name__ for p in sliced.pipe.unet.attn_processors.values()}
        assert kinds == {"SlicedAttnProcessor"}
        assert np.abs(drawn(sliced) - drawn(plain)).max() <= 1
        assert torch.equal(
            *(
                b.values("text-in")["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
                for b in (plain, sliced)
            )
        )

    @pytest.mark.usefixtures("larger")
    def test_tiles_draw_nearly_the_same(self, tmp_path):
        tiny.sd().save_pretrained(tmp_path / "m")
        plain, tiled = load(tmp_path / "m"), load(tmp_path / "m", how=Loading(vae_tiling=True))
        assert tiled.pipe.vae.use_tiling
        assert np.array_equal(drawn(tiled), drawn(plain)), "smaller than a tile"
        tiled.pipe.vae.tile_latent_min_size, tiled.pipe.vae.tile_sample_min_size = 8, 16
        away = np.abs(drawn(tiled) - drawn(plain))
        assert 0 < away.mean() < 0.25 * np.abs(drawn(plain) - drawn(plain)[::-1]).mean()

    def test_what_a_family_does_not_have(self):
        refused(
            "--attention-slicing", "SD3Transformer2DModel", source="canvas-flow", how=Loading(attention_slicing=True)
        )

    def test_compiled_drawing_follows_erasers(self, sd):
        plain, eraser = wrap(tiny.sd(), "tiny-sd"), erase("moon", sd, preserve=["star"])
        sd.compiler = "eager"
        torch._dynamo.reset()
        before = drawn(sd)
        assert np.abs(before - drawn(plain)).max() <= 1
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        with eraser.attached(sd), eraser.attached(plain):
            erased = drawn(sd)
            assert np.abs(erased - drawn(plain)).max() <= 1
        assert np.abs(erased - before).max() > 1
        assert np.array_equal(drawn(sd), before)
        delta = erase("moon", sd, preserve=[], method=("esd", {**FEW, "steps": 1, "dense": True}))
        with delta.attached(sd), delta.attached(plain):
            assert np.abs(drawn(sd) - drawn(plain)).max() <= 1
            assert np.abs(drawn(sd) - before).max() > 1
        assert np.array_equal(drawn(sd), before)
        assert "forward" not in vars(sd.pipe.unet)
        assert torch.equal(erase("moon", sd, preserve=["star"]).payload.factors[K][1], eraser.payload.factors[K][1])

    def test_a_pipeline_that_the_user_compiled(self):
        pipe, plain = tiny.sd(), erase("moon", wrap(tiny.sd()), preserve=["star"])
        pipe.unet.compile(backend="eager")
        backbone = wrap(pipe)
        made = erase("moon", backbone, preserve=["star"])
        assert torch.equal(made.payload.factors[K][1], plain.payload.factors[K][1])
        with pytest.raises(InputError, match="compile it afterwards"):
            erase("moon", backbone, preserve=[], method=("esd", FEW))
        pipe.unet = torch.compile(tiny.sd().unet, backend="eager")
        with pytest.raises(InputError, match="_orig_mod"):
            wrap(pipe)


K = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def away(how: str) -> diffusers.DiffusionPipeline:
    pipe = tiny.sd()
    getattr(pipe, f"enable_{how}_cpu_offload")(device="cpu:0")
    return pipe


class TestOffloaded:
    """Pipelines whose parts wait elsewhere: here on the CPU too, where what moves and what is read is the same."""

    @pytest.mark.parametrize("how", ["model", "sequential"])
    def test_closed_form_attach_and_draw(self, how, accelerator, tmp_path):
        plain, there = wrap(tiny.sd(), "tiny"), wrap(away(how), "tiny")
        assert offloaded(there.denoiser) == how
        assert execution_device(there.denoiser).type == there.device.type == "cpu"
        assert next(there.denoiser.parameters()).is_meta == (how == "sequential")
        assert fingerprint(there.values("all")) == fingerprint(plain.values("all"))
        want, have = (erase("moon", b, preserve=["star"]) for b in (plain, there))
        assert have.recipe.base["fingerprint"] == want.recipe.base["fingerprint"]
        for name, (a, b) in want.payload.factors.items():
            assert torch.equal(a, have.payload.factors[name][0])
            assert torch.equal(b, have.payload.factors[name][1])
        before = drawn(there)
        assert np.array_equal(before, drawn(plain))
        with want.attached(there) as handle, want.attached(plain):
            assert handle.is_active()
            assert np.array_equal(drawn(there), drawn(plain))
        assert np.array_equal(drawn(there), before)
        have.save_pretrained(tmp_path / "e", verify=there)
        (image,) = there.draw(["a moon"], [0], steps=1)
        assert torch.equal(there.latents([image]), plain.latents([image]))
        assert there.decode(there.latents([image]))[0].tobytes() == plain.decode(plain.latents([image]))[0].tobytes()

    def test_a_lora_is_trained_and_resumed_offloaded(self, accelerator, tmp_path):
        def train(backbone, steps, **loop):
            made = erase("moon", backbone, preserve=[], method=("esd", {**FEW, "steps": steps}), loop=Loop(**loop))
            return made.payload.factors

        want = train(wrap(tiny.sd(), "tiny"), 4)
        train(wrap(away("model"), "tiny"), 2, work=tmp_path / "w", checkpoint_every=2)
        have = train(wrap(away("model"), "tiny"), 4, work=tmp_path / "w", checkpoint_every=2, resume=True)
        assert all(torch.equal(x, y) for n in want for x, y in zip(want[n], have[n], strict=True))

    @pytest.mark.parametrize("method", ["esd", "unhype", "sfd", "salun"])
    def test_nothing_is_trained_layer_by_layer(self, method, accelerator):
        with pytest.raises(InputError, match="--offload"):
            erase("moon", wrap(away("sequential"), "tiny"), preserve=[], method=(method, {"steps": 1, "batch": 2}))

    def test_weights_that_are_written_stay_in_place(self, accelerator, tmp_path):
        backbone = wrap(away("model"), "tiny")
        for method in (("esd", {**FEW, "dense": True}), ("salun", {"steps": 1, "batch": 2, "images": 2})):
            with pytest.raises(InputError, match="leave out --offload"):
                erase("moon", backbone, preserve=[], method=method)
        dense = erase("moon", wrap(tiny.sd(), "tiny"), preserve=[], method=("esd", {**FEW, "dense": True}))
        for use in (lambda: dense.attach(backbone), lambda: dense.bake(backbone)):
            with pytest.raises(InputError, match="leave out --offload"):
                use()

    def test_a_device_map_is_no_offloading(self, tmp_path):
        """Hooks that only say where weights are: all that writes weights works, with the very same result."""
        tool = ("esd", {**FEW, "dense": True})
        want = erase("moon", wrap(tiny.sd(), "tiny"), preserve=[], method=tool)
        pipe, plain = tiny.sd(), wrap(tiny.sd(), "tiny")
        accelerate.dispatch_model(pipe.unet, {"": "cpu"}, force_hooks=True)
        assert hasattr(pipe.unet, "_hf_hook")
        there = wrap(pipe, "tiny")
        assert offloaded(there.denoiser) == ""
        have = erase("moon", there, preserve=[], method=tool)
        assert have.payload.weights(there).keys() == want.payload.weights(plain).keys()
        before = drawn(there)
        with have.attached(there), want.attached(plain):
            assert np.array_equal(drawn(there), drawn(plain))
            assert np.abs(drawn(there) - before).max() > 0
        assert np.array_equal(drawn(there), before)
        have.bake(there)
        want.bake(plain)
        assert np.array_equal(drawn(there), drawn(plain))

    def test_benchmark(self, accelerator, tmp_path):
        """A folder knows an offloaded model again, and refuses it in another precision or version."""
        plan = Plan(methods=("random",), concepts=("star",))

        def start(backbone):
            return _benchmark._start(plan, Cells(tmp_path), "canvas-sd", backbone, False)

        plain, there = load("canvas-sd"), load("canvas-sd")
        there.pipe.enable_sequential_cpu_offload(device="cpu:0")
        there = wrap(there.pipe, "canvas-sd")
        assert next(there.denoiser.parameters()).is_meta
        assert start(there).backbone is there
        assert start(plain).backbone is plain
        coarse, moved = load("canvas-sd", dtype="bfloat16"), load("canvas-sd")
        moved.provenance = {"commit": "b" * 40}
        for other in (coarse, moved):
            with pytest.raises(InputError, match=r"loaded as .*'float32 on cpu'.* load it alike"):
                start(other)
        with torch.no_grad():
            for p in plain.denoiser.parameters():
                p.mul_(1.1)
        with pytest.raises(InputError, match="another model of the name"):
            start(plain)

    def test_groups_are_refused(self):
        pipe = tiny.sd()
        pipe.unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        with pytest.raises(InputError, match="enable_model_cpu_offload"):
            wrap(pipe)

    def test_needs_a_gpu(self):
        for how in ("model", "sequential"):
            refused(f"--offload {how}", "needs a GPU", device="cpu", how=Loading(offload=how))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    @pytest.mark.parametrize("how", ["model", "sequential"])
    def test_cuda(self, how, tmp_path):
        tiny.sd().save_pretrained(tmp_path / "m")
        plain = load(tmp_path / "m", device="cuda", dtype="float32")
        there = load(tmp_path / "m", device="cuda", dtype="float32", how=Loading(offload=how))
        assert there.device.type == "cuda"
        eraser = erase("moon", there, preserve=["star"])
        with eraser.attached(there), eraser.attached(plain):
            assert np.abs(drawn(there) - drawn(plain)).max() <= 1
        if how == "model":
            loop = Loop(work=tmp_path / "w", checkpoint_every=2)
            erase("moon", there, preserve=[], method=("esd", FEW), loop=loop)
            more = erase(
                "moon", there, preserve=[], method=("esd", {**FEW, "steps": 4}), loop=replace(loop, resume=True)
            )
            assert more.payload.finite()


class TestFewBits:
    """Quantised bases. bitsandbytes needs a GPU to load; torchao and GGUF are run here where they are installed."""

    @pytest.mark.parametrize("what", ["bnb4", "bnb8", "ao-int8", "ao-float8"])
    def test_a_library_that_is_not_there(self, what, monkeypatch):
        monkeypatch.setattr("erasers.pipelines._quantize.find_spec", lambda name: None)
        library = "bitsandbytes" if what.startswith("bnb") else "torchao"
        refused(f"--quantize {what}", f"pip install 'erasers[{library}]'", how=Loading(quantize=what))

    def test_bitsandbytes_needs_a_gpu(self, monkeypatch):
        monkeypatch.setattr("erasers.pipelines._quantize.find_spec", lambda name: object())
        refused("--quantize bnb4", "needs a GPU", "--device cuda", device="cpu", how=Loading(quantize="bnb4"))

    def test_gguf_without_its_library(self, tmp_path, monkeypatch):
        monkeypatch.setattr("erasers.pipelines._quantize.find_spec", lambda name: None)
        (tmp_path / "m.gguf").write_bytes(b"GGUF")
        refused("gguf", "pip install 'erasers[gguf]'", source=tmp_path / "m.gguf", how=Loading(config="x"))

    def test_prompts_remembered_on_few_bits(self, tmp_path):
        """Rounding on either side is allowed for; without it the same distance is another model."""
        whole = wrap(tiny.sd(), "tiny").remember(PROMPTS)
        away = {**whole.origin, "weights": [1.09 * w for w in whole.origin["weights"]]}
        few = replace(whole, origin={**away, "quantized": "bitsandbytes, 4 bits"})
        read = Embeddings.load(few.save(tmp_path / "few.safetensors"))
        assert read.origin == few.origin
        assert wrap(tiny.sd(), "tiny", embeddings=read).embeddings is read
        whole.check("few", few.origin)
        with pytest.raises(InputError, match=r"differ by 8\.3%"):
            wrap(tiny.sd(), "tiny", embeddings=replace(whole, origin=away))
        with pytest.raises(InputError, match="differ by"):
            whole.check("other", away)

    @needs("gguf")
    def test_gguf(self, tmp_path):
        pipe = tiny.sd3()
        pipe.save_pretrained(tmp_path / "m")
        state = load_file(tmp_path / "m/transformer/diffusion_pytorch_model.safetensors")
        single_file.gguf(state, tmp_path / "m.gguf")
        refused("--model-config", source=tmp_path / "m.gguf")
        backbone = load(tmp_path / "m.gguf", how=Loading(config=str(tmp_path / "m")))
        assert backbone.quantized == "GGUF"
        assert backbone.provenance == {"config": str(tmp_path / "m"), "quantized": "gguf"}
        self.holds(backbone, wrap(pipe, "tiny"), tmp_path)

    @needs("torchao")
    def test_torchao(self, tmp_path):
        pipe = tiny.sd3()
        pipe.save_pretrained(tmp_path / "m")
        backbone = load(tmp_path / "m", how=Loading(quantize="ao-int8"))
        assert backbone.quantized == "torchao"
        assert bits(backbone.pipe.text_encoder_3.encoder.block[0].layer[0].SelfAttention.q.weight) == "torchao"
        assert not bits(backbone.pipe.text_encoder.text_projection.weight), "CLIP is small"
        assert backbone.provenance == {"quantized": "ao-int8"}
        self.holds(backbone, wrap(pipe, "tiny"), tmp_path)
        single_file.write(tiny.sd(), tmp_path / "one.safetensors")
        how = Loading(config=str(configuration(tiny.sd(), tmp_path / "config")), quantize="ao-int8")
        assert load(tmp_path / "one.safetensors", how=how).quantized == "torchao"

    @needs("bitsandbytes")
    @pytest.mark.parametrize("what", [4, 8])
    def test_bitsandbytes(self, what, tmp_path):
        """Loading through diffusers needs a GPU; its layers do not."""
        import bitsandbytes as bnb

        pipe, off = tiny.sd(), 0.12 if what == 4 else 0.02
        for name, old in [(n, m) for n, m in pipe.unet.named_modules() if type(m) is torch.nn.Linear]:
            sizes, bias = (old.in_features, old.out_features), old.bias is not None
            if what == 4:
                new = bnb.nn.Linear4bit(*sizes, bias=bias, compute_dtype=torch.float32, quant_type="nf4")
                new.weight = bnb.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4", module=new)
            else:
                new = bnb.nn.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(old.weight.data, requires_grad=False, has_fp16_weights=False)
            new.bias = old.bias
            pipe.unet.set_submodule(name, new.to("cpu"))
        backbone = wrap(pipe, "tiny")
        assert backbone.quantized == f"bitsandbytes, {what} bits"
        self.holds(backbone, wrap(tiny.sd(), "tiny"), tmp_path, off=off)

    def holds(self, few, plain, tmp_path, off=0.02):
        """What a quantised base does, beside the same in full."""
        assert few.dtype == torch.float32
        values, whole = few.values("all"), plain.values("all")
        assert set(values) == set(whole)
        for name in whole:
            assert values[name].shape == whole[name].shape
            assert (values[name].float() - whole[name]).norm() <= off * whole[name].norm() + 1e-6, name
        rounded = erase("moon", few, preserve=["star"])
        rounded.save_pretrained(tmp_path / "rounded", verify=few)
        exact = erase("moon", plain, preserve=["star"])
        for eraser in (rounded, exact):  # made in either, used in both
            for one in (few, plain):
                before = drawn(one)
                with eraser.attached(one) as handle:
                    assert handle.is_active()
                    assert np.abs(drawn(one) - before).max() > 0
                assert np.array_equal(drawn(one), before)
        assert rounded.recipe.base["quantized"]
        for one, other in ((few, plain), (plain, few)):
            remembered = one.remember(PROMPTS)
            assert wrap(other.pipe, "other", embeddings=remembered).embeddings is remembered
        trained = erase("moon", few, preserve=[], method=("esd", FEW))
        assert trained.payload.finite()
        assert not trained.payload.zero()
        for method in (("esd", {**FEW, "dense": True}), ("salun", {"steps": 1, "batch": 2, "images": 2})):
            with pytest.raises(InputError, match="quantised"):
                erase("moon", few, preserve=[], method=method)
        with pytest.raises(InputError, match="quantised"):
            exact.bake(few)
        other = wrap(type(plain.pipe)(**plain.pipe.components), "other")
        with torch.no_grad():
            for p in other.denoiser.parameters():
                p.copy_(torch.randn_like(p))
        with pytest.raises(InputError, match="differ by"):
            rounded.check_base(other)


class Eight(torch.optim.Optimizer):
    """A stand-in with the state that bitsandbytes keeps: whole-number steps, moments of 8 bits with a scale each."""

    def __init__(self, params, lr, betas=(0.9, 0.999)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, state1=torch.zeros(p.shape, dtype=torch.uint8), absmax1=torch.zeros(1))
                state["step"] += 1
                assert type(state["step"]) is int
                moment = (state["state1"].float() / 127.5 - 1) * state["absmax1"]
                moment = 0.9 * moment + 0.1 * p.grad
                state["absmax1"] = moment.abs().max().clamp(min=1e-12).reshape(1)
                state["state1"] = ((moment / state["absmax1"] + 1) * 127.5).round().to(torch.uint8)
                p.sub_(group["lr"] * moment / (1 - 0.9 ** state["step"]))


class TestEightBitOptimiser:
    """Its state goes through checkpoints bit for bit."""

    @pytest.mark.parametrize("stand_in", [True, pytest.param(False, marks=needs("bitsandbytes"))])
    def test_resumed_it_is_the_same_run(self, stand_in, tmp_path, monkeypatch):
        if stand_in:
            monkeypatch.setattr(_train, "_adam_8bit", lambda: Eight)

        def train(steps, **loop):
            how = Loop(optimizer="adam8bit", **loop)
            tool = ("esd", {**FEW, "steps": steps, "rank": 64, "train": "all"})  # 4096 numbers and more in some layers
            return erase("moon", wrap(tiny.sd(), "t"), preserve=[], method=tool, loop=how)

        want = train(3)
        train(2, work=tmp_path, checkpoint_every=2)
        kept = load_file(next(tmp_path.glob("checkpoint-*")))
        assert any(v.dtype == torch.uint8 and v.numel() >= 4096 for v in kept.values())
        have = train(3, work=tmp_path, checkpoint_every=2, resume=True)
        pairs = [(want.payload.factors[n], have.payload.factors[n]) for n in want.payload.factors]
        assert all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))
        assert have.recipe.training["optimizer"] == "adam8bit"
        same = ("esd", {**FEW, "steps": 3, "rank": 64, "train": "all"})
        plain = erase("moon", wrap(tiny.sd(), "t"), preserve=[], method=same)
        assert not torch.equal(plain.payload.factors[K][1], have.payload.factors[K][1])
        with pytest.raises(InputError, match="adam8bit"):
            erase("moon", wrap(tiny.sd(), "t"), preserve=[], method=same, loop=Loop(work=tmp_path, resume=True))
        with pytest.raises(InputError, match="an Adam of its own"):
            erase("moon", wrap(tiny.sd(), "t"), preserve=[], loop=Loop(optimizer="adam8bit"),
                  method=("salun", {"steps": 1, "batch": 2, "images": 2}))  # fmt: skip

    def test_refused_where_it_cannot_run(self, monkeypatch):
        with pytest.raises(InputError, match=r"did you mean 'adam8bit'"):
            Loop(optimizer="adam-8bit")
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
        with pytest.raises(InputError, match=r"pip install 'erasers\[bitsandbytes\]'"):
            erase("moon", wrap(tiny.sd(), "t"), preserve=[], method=("esd", FEW), loop=Loop(optimizer="adam8bit"))


class TestRefusals:
    """Wrong names and choices that exclude each other name the flag to change."""

    def test_choices(self):
        for wrong, words in (
            ({"offload": "modle"}, "unknown --offload 'modle': did you mean 'model'"),
            ({"quantize": "4bit"}, "unknown --quantize '4bit'"),
            ({"offload": "sequential", "quantize": "bnb4"}, "use --offload model"),
            ({"compile": "inductor", "offload": "model"}, "--compile and --offload"),
        ):
            with pytest.raises(InputError, match=words):
                Loading(**wrong)
        refused("unknown --compile 'inducer'", "inductor", how=Loading(compile="inducer"))
        refused("unknown --dtype", "did you mean 'float16'", dtype="float-16")

    def test_devices(self):
        refused("--device", "gpu9", device="gpu9")
        there = torch.cuda.device_count()
        refused("--device", f"cuda:{there}", device=f"cuda:{there}")
        for none in ("meta", "hpu"):
            refused(f"cannot use device '{none}'", "--device", device=none)
        assert load("canvas-sd", device="auto").device.type == ("cuda" if there else "cpu")

    def test_a_folder_that_lacks_a_part(self, tmp_path):
        """The line names the part, and what to change."""
        tiny.sd().save_pretrained(tmp_path / "whole")
        network = "no weights (*.safetensors) in"
        for gone, told in (
            ("unet", "the folder lacks unet: save the whole pipeline, or name another with --model"),
            ("text_encoder", "; of text encoders --embeddings takes the place"),
            ("scheduler", "the folder lacks scheduler"),
            (
                "unet/diffusion_pytorch_model.safetensors",
                f"{network} unet: fetch all of it, or name another with --model",
            ),
            ("text_encoder/model.safetensors", f"{network} text_encoder"),
        ):
            folder = tmp_path / gone.replace("/", "-")
            shutil.copytree(tmp_path / "whole", folder)
            shutil.rmtree(folder / gone) if (folder / gone).is_dir() else (folder / gone).unlink()
            refused(told, source=folder)
        for part in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
            file = tmp_path / "whole" / part
            whole = file.read_bytes()
            file.write_bytes(whole[:-100])
            refused("the file is damaged or cut off", "fetch it again", source=tmp_path / "whole")
            file.write_bytes(whole)


class TestCommands:
    """The same on the command line."""

    def test_every_field_has_its_flag(self):
        assert set(FLAGS) == {f.name for f in fields(Loading)}
        assert all(FLAGS[f.name].default == f.default for f in fields(Loading))

    @pytest.mark.parametrize("command", ["erase", "draw", "grid", "evaluate", "export", "push", "benchmark"])
    def test_every_command_that_loads_has_them(self, command):
        code, out, _ = run(command, "--help")
        assert code == 0
        for flag in ("--model-variant", "--model-revision", "--model-config", "--quantize", "--offload", "--compile",
                     "--attention-slicing", "--vae-slicing", "--vae-tiling", "--dtype", "--device"):  # fmt: skip
            assert flag in out, flag
        if command == "erase":
            assert "--gradient-checkpointing" in out
            assert "--optimizer" in out

    def test_beside_flags_of_other_meanings(self):
        code, out, err = run("erase", "--method", "concept_ablation", "--help")
        assert code == 0, err
        assert "--variant" in out
        assert "--model-variant" in out
        code, _, err = run("plan", "moon", "--offload", "model", "--device", "cpu")
        assert code == 2
        assert "--offload model needs a GPU to bring parts to" in err
        code, _, err = run("plan", "moon", "--vae-slicing", "--device", "cpu")
        assert code == 2
        assert "--vae-slicing: what it saves is not counted" in err

    def test_they_reach_the_model(self, tmp_path):
        pipe = tiny.sd()
        pipe.save_pretrained(tmp_path / "m", variant="fp16")
        args = ("--model", tmp_path / "m", "--model-variant", "fp16", "--vae-slicing", "--compile", "eager")
        code, said, err = run("erase", "moon", *args, "--out", tmp_path / "e")
        assert code == 0, err
        assert json.loads((tmp_path / "e/eraser_config.json").read_text())["base"]["variant"] == "fp16"
        assert "--model-variant fp16 --vae-slicing --compile eager --eraser" in said
        (tmp_path / "p.csv").write_text("text,seed\na moon,1\n")
        draw = ("draw", *args, "--eraser", tmp_path / "e", "--prompts", tmp_path / "p.csv", "--steps", 1)
        code, _, err = run(*draw, "--out", tmp_path / "g")
        assert code == 0, err
        assert len(Gallery.load(tmp_path / "g/erased").images) == 1
        code, _, err = run("erase", "moon", "--model", tmp_path / "m", "--out", tmp_path / "f")
        assert code == 2
        assert "--model-variant fp16" in err
        export = ("export", tmp_path / "e", "--to", "component", "--model", tmp_path / "m", "--out", tmp_path / "c")
        assert run(*export, "--model-variant", "fp16")[0] == 0
        assert run(*export[:-1], tmp_path / "d", "--offload", "models")[0] == 2

    @pytest.mark.parametrize("command", ["erase", "draw"])
    def test_memory(self, command, tmp_path, monkeypatch):
        """A real failure to allocate ends in one line that names what to change."""
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)

        def hungry(*_args, **_kwargs):
            torch.empty(2**50)

        monkeypatch.setattr("erasers.pipelines._stock.StockBackbone.draw", hungry)
        monkeypatch.setattr("erasers.pipelines._stock.StockBackbone.encode", hungry)
        args = ("moon", "--method", "esd") if command == "erase" else ()
        code, _, err = run(command, *args, "--out", tmp_path / "e")
        assert code == 2
        line = err.strip().splitlines()[-1]
        assert "Traceback" not in err
        assert line.startswith("erasers: out of memory")
        flags = {
            "erase": (
                "--batch",
                "--accumulate",
                "--gradient-checkpointing",
                "--dtype",
                "--embeddings",
                "--optimizer adam8bit",
                "`erasers plan`",
            ),
            "draw": ("--batch", "--dtype", "--embeddings", "--vae-slicing", "--vae-tiling"),
        }
        for flag in flags[command]:
            assert flag in line

    @pytest.mark.parametrize("command", ["erase", "draw"])
    @pytest.mark.parametrize(("there", "asked"), [(False, []), (True, ["--device", "cpu"]), (True, ["--device=cpu"])])
    def test_what_spares_memory_where_it_runs(self, command, there, asked, monkeypatch):
        """On a CPU --offload and bitsandbytes are refused."""
        monkeypatch.setattr("torch.cuda.is_available", lambda: there)
        here = spares([command, "moon", *asked], "uce")
        assert "--quantize ao-int8" in here
        assert "--offload" not in here
        assert "bnb" not in here
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        for words in ([], ["--device", "cuda:1"]):
            there = spares([command, "moon", *words], "uce")
            assert "--offload model" in there
            assert "--quantize bnb4" in there
            assert "--dtype" not in there, "half precision is a GPU's default"
            assert "--dtype bfloat16" in spares([command, "moon", *words, "--dtype", "float32"], "uce")

    def test_only_what_the_command_would_take_is_named(self, monkeypatch):
        """Nothing that would be refused, nothing that was given already."""
        training = ("--batch", "--accumulate", "--gradient-checkpointing", "--optimizer")
        loading = ("--dtype", "--offload", "--quantize")
        for gpu in (True, False):
            monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
            for words, has, lacks in (
                ("erase moon", ("--embeddings",), training),
                ("erase moon --method esd", training, ("--no-dense",)),
                ("erase moon --method esd --dense", ("--no-dense", *training), loading),
                ("erase moon --method=esd --preset paper", ("--no-dense", *training), loading),
                ("erase moon --method esd --preset paper --no-dense", training, ("--no-dense",)),
                ("draw --offload sequential", ("--vae-slicing",), ("--quantize",)),
                ("draw --quantize bnb4", ("--vae-slicing",), ("sequential",)),
                ("draw --compile inductor", ("--vae-slicing",), ("--offload",)),
                ("erase moon --method salun", ("--no-dense", "--accumulate"), (*loading, "--optimizer")),
                ("erase moon --method esd --gradient-checkpointing --embeddings=f", ("--accumulate",), training[2:3]),
                ("erase moon --method salun --no-dense", training, ("--offload", "--quantize", "--no-dense")),
                ("benchmark --out b", ("--quantize", "--vae-slicing"), ("--embeddings", *training)),
                ("grid --eraser e", ("--embeddings", "--vae-slicing"), training),
                ("grid --eraser e --vae-slicing", ("--vae-tiling",), ("--vae-slicing",)),
                ("remember moon", (), (*training, "--embeddings", "--vae-slicing")),
                ("train-judge d", ("a lower --batch",), (*loading, "--embeddings")),
                ("compare a b", ("more memory",), ("--batch", *loading, "--embeddings")),
            ):
                line = spares(words.split(), "uce")
                assert all(flag in line for flag in has), (words, line)
                assert not any(flag in line for flag in lacks), (words, line)
            assert ("--device cpu" in spares(["remember", "moon"], "uce")) == gpu

    def test_what_counts_as_memory(self):
        for error in (
            MemoryError(),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("CUDA error: out of memory"),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"),
            RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
            RuntimeError("unable to mmap 100 bytes from file </m/x.safetensors>: Cannot allocate memory (12)"),
            OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        ):
            assert out_of_memory(error)
        hidden = OSError("unable to load weights")  # as a library tells it
        hidden.__context__ = MemoryError()
        assert out_of_memory(hidden)
        assert not out_of_memory(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))

    def test_memory_at_loading(self, tmp_path, monkeypatch):
        """It is not mistaken for a broken model or device."""

        def hungry(*_args, **_kwargs):
            torch.empty(2**50)

        def hidden(*_args, **_kwargs):
            """As diffusers tells of a file of weights that cannot be mapped."""
            try:
                raise MemoryError("Cannot allocate memory (os error 12)")
            except MemoryError:
                raise OSError("Unable to load weights from checkpoint file") from None

        whole = "DiffusionPipeline.from_pretrained"
        for place, fails in ((whole, hungry), (whole, hidden), ("place", hungry)):
            with monkeypatch.context() as patch:
                patch.setattr(f"erasers.pipelines._load.{place}", fails)
                code, _, err = run("erase", "moon", "--out", tmp_path / "e")
                assert code == 2
                assert err.startswith("erasers: out of memory: ")
                assert "--quantize" in err
