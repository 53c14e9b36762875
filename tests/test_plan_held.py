"""Plans of weights in few bits and of weights that wait elsewhere, against pipelines that were really loaded so."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import accelerate
import pytest
import single_file
import torch
from families import build
from test_cli import run
from test_plan import CPU, bare, configs_only, short
from torch import nn

import tiny
from erasers.erase import Loop, Machine, Planner, _plan, asked, configure, erase, fit
from erasers.erase._present import Present, largest_layer, loaded, staying
from erasers.pipelines import LATENTS, Learns, Loading, Scale, blueprint, load, tensor_bytes, wrap
from erasers.prompts import InputError

MB = 2**20
GPU = Machine("cuda", flops=1e14)
KINDS = ("Q8_0", "Q4_0", "Q5_1", "BF16", "F16")

__all__ = ["bare"]  # a fixture, for `alone`


def needs(library):
    return pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed")


def bytes_of(t):
    """What a real tensor takes with all that belongs to it, by its library's own account."""
    if hasattr(t, "__tensor_flatten__"):
        return sum(bytes_of(getattr(t, n)) for n in t.__tensor_flatten__()[0])
    if type(t).__name__ == "Params4bit":
        return t.nbytes + t.quant_state.absmax.nbytes + t.quant_state.code.nbytes
    return t.nbytes + t.SCB.nbytes if type(t).__name__ == "Int8Params" else t.nbytes


def nets(pipe):
    return {n: m for n, m in pipe.components.items() if isinstance(m, nn.Module)}


def each(pipe, size):
    """Bytes of every weight and buffer of a pipeline, by name."""
    tensors = ((f"{n}.{k}", t) for n, m in nets(pipe).items() for k, t in (*m.named_parameters(), *m.named_buffers()))
    return {k: size(t) for k, t in tensors}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Stable Diffusion 3 with T5, and its weights."""
    path = tmp_path_factory.mktemp("held") / "m"
    tiny.sd3().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def quantised(folder):
    """The same with the denoiser in one file, in bits of several kinds."""
    if find_spec("gguf") is None:
        pytest.skip("gguf is not installed")
    single_file.gguf(tiny.sd3().transformer.state_dict(), folder.parent / "m.gguf", KINDS)
    return folder.parent / "m.gguf"


# ---------------------------------------------------------------- few bits


class TestFewBits:
    """Bytes of each weight exactly, and what waits for a backward pass."""

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_gguf(self, dtype, folder, quantised):
        how = Loading(config=str(folder))
        real, mine = load(quantised, dtype=dtype, how=how), blueprint(quantised, dtype=dtype, how=how)
        have, want = each(mine.pipe, tensor_bytes), each(real.pipe, bytes_of)
        assert have == want
        assert mine.quantized == real.quantized == "GGUF"
        assert (mine.dtype, mine.name) == (real.dtype, real.name)
        few = {type(p).__name__ for p in real.denoiser.parameters()}
        assert "GGUFParameter" in few
        whole = each(blueprint(folder, dtype=dtype).pipe, tensor_bytes)
        assert sum(have.values()) < 0.9 * sum(whole.values())
        assert all(p.is_meta for p in mine.denoiser.parameters())

    def test_gguf_in_the_original_layout(self, tmp_path):
        """diffusers' own conversion runs on the header: a UNet under LDM's names."""
        if find_spec("gguf") is None:
            pytest.skip("gguf is not installed")
        pipe = tiny.sd()
        pipe.save_pretrained(tmp_path / "m")
        state = {f"model.diffusion_model.{k}": v for k, v in single_file.unet(pipe.unet).items()}
        single_file.gguf(state, tmp_path / "m.gguf")
        how = Loading(config=str(tmp_path / "m"))
        real, mine = load(tmp_path / "m.gguf", how=how), blueprint(tmp_path / "m.gguf", how=how)
        assert each(mine.pipe, tensor_bytes) == each(real.pipe, bytes_of)
        assert mine.quantized == "GGUF"

    def test_gguf_keeps_what_it_made_whole(self, folder, quantised):
        """Autograd's own hooks on a real pass: the weights that were made whole wait for the backward pass."""
        how = Loading(config=str(folder))
        assert held(load(quantised, how=how)) == pytest.approx(weighed(blueprint(quantised, how=how)), rel=0.1)
        linears = [m for m in blueprint(folder).denoiser.modules() if isinstance(m, nn.Linear)]
        whole = sum(m.weight.nbytes for m in linears)
        assert 0.3 * whole < weighed(blueprint(quantised, how=how)) - weighed(blueprint(folder)) < 1.3 * whole

    @needs("torchao")
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("what", ["ao-int8", "ao-float8"])
    def test_torchao(self, what, dtype, folder):
        how = Loading(quantize=what)
        real, mine = load(folder, dtype=dtype, how=how), blueprint(folder, dtype=dtype, how=how)
        assert each(mine.pipe, tensor_bytes) == each(real.pipe, bytes_of)
        assert mine.quantized == real.quantized
        assert held(real) == pytest.approx(weighed(mine), rel=0.1)

    @needs("bitsandbytes")
    @pytest.mark.parametrize("what", ["bnb4", "bnb8"])
    def test_bitsandbytes(self, what, folder, monkeypatch):
        """On a CPU, which diffusers would refuse."""
        from diffusers.quantizers.bitsandbytes import bnb_quantizer

        for name in ("BnB4BitDiffusersQuantizer", "BnB8BitDiffusersQuantizer"):
            cls = getattr(bnb_quantizer, name)
            monkeypatch.setattr(cls, "validate_environment", lambda *_a, **_k: None)
            monkeypatch.setattr(cls, "update_device_map", lambda *_a: {"": "cpu"})
        monkeypatch.setattr("erasers.pipelines._quantize.check_works", lambda *_a: None)
        how = Loading(quantize=what)
        real = load(folder, dtype="bfloat16", device="cpu", how=how)
        mine = blueprint(folder, dtype="bfloat16", device="cuda", how=how)
        assert each(mine.pipe, tensor_bytes) == each(real.pipe, bytes_of)
        assert mine.quantized == real.quantized

    @pytest.mark.parametrize("what", ["bnb4", "bnb8", "ao-int8", "ao-float8"])
    def test_by_the_published_formats(self, what, folder):
        """Row by row and block by block; of T5 bitsandbytes leaves alone what T5 keeps in float32."""
        mine = blueprint(folder, dtype="float16", device="cuda", how=Loading(quantize=what))
        have, size = each(mine.pipe, tensor_bytes), {}
        for name, net in nets(tiny.sd3()).items():
            for path, m in net.named_modules():
                for leaf, t in (*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)):
                    kept = path.endswith("wo") and name == "text_encoder_3"
                    left = kept and what.startswith("bnb")
                    shrinks = name in ("transformer", "text_encoder_3") and leaf == "weight" and not left
                    key = ".".join(filter(None, (name, path, leaf)))
                    if isinstance(m, nn.Linear) and shrinks:
                        rows = t.tolist()
                        if what == "bnb4":
                            flat = [v for row in rows for v in row]
                            blocks = [flat[k : k + 64] for k in range(0, len(flat), 64)]
                            size[key] = len(flat) // 2 + 4 * len(blocks) + 4 * 16
                        else:
                            size[key] = sum(len(row) + (5 if what == "ao-int8" else 4) for row in rows)
                    elif t.is_floating_point():
                        size[key] = t.numel() * (4 if kept else 2)
                    else:
                        size[key] = t.nbytes
        shared = {n for n in size if n not in have}
        assert all("embed_tokens" in n or "shared" in n for n in shared)
        assert have == {n: v for n, v in size.items() if n not in shared}

    def test_a_pass_costs_what_making_weights_whole_costs(self, folder):
        """The network asked what it holds: bitsandbytes makes a weight whole for a moment, torchao's wait."""
        plain = blueprint(folder, dtype="bfloat16", device="cuda")
        linears = [m for m in plain.denoiser.modules() if isinstance(m, nn.Linear)]
        whole, most = sum(m.weight.nbytes for m in linears), max(m.weight.nbytes for m in linears)
        base = Scale(plain).weigh(1, LATENTS)
        got = {}
        for what in ("bnb4", "ao-int8", "ao-float8", "bnb8"):
            got[what] = Scale(blueprint(folder, device="cuda", how=Loading(quantize=what))).weigh(1, LATENTS)
            assert got[what].flops == pytest.approx(base.flops, rel=0.01), what
        assert abs(got["bnb4"].peak - base.peak) <= 3 * most
        assert abs(got["bnb4"].held - base.held) <= most
        for what in ("ao-int8", "ao-float8"):
            assert 0.3 * whole < got[what].held - base.held < 1.3 * whole, what
        assert got["bnb8"].held > base.held, "what goes into each layer waits"

    def test_parameters_are_counted_by_what_they_stand_for(self, folder, quantised):
        want = sum(p.numel() for p in tiny.sd3().transformer.parameters())
        ask = {"method": short("esd"), "preserve": [], "loop": None}
        for planner, machine in (
            (Planner(folder), replace(CPU, quantize="ao-int8")),
            (Planner(folder), replace(GPU, quantize="bnb4")),
            (Planner(quantised, how=Loading(config=str(folder))), CPU),
        ):
            e = planner.estimate(asked(planner, "moon", machine=machine, **ask))
            assert e.parameters == want
            assert e.weights == loaded(planner.blueprint(machine), embeddings=False)
            assert e.memory > sum(e.weights.values())
            assert e.learns == Planner(folder).estimate(asked(Planner(folder), "moon", machine=CPU, **ask)).learns

    def test_a_file_that_is_not_here(self, folder, tmp_path):
        how = Loading(config=str(folder))
        with pytest.raises(InputError, match=r"no such file: .*missing\.gguf"):
            blueprint(tmp_path / "missing.gguf", how=how)
        with pytest.raises(InputError, match="download it first"):
            blueprint("https://huggingface.co/you/files/blob/main/m.gguf", how=how)

    def test_of_a_whole_checkpoint_only_the_denoiser(self, tmp_path, folder):
        single_file.write(tiny.sd3(), tmp_path / "one.safetensors")
        how = Loading(config=str(folder), quantize="bnb4")
        one = blueprint(tmp_path / "one.safetensors", device="cuda", how=how)
        some = blueprint(folder, device="cuda", how=Loading(quantize="bnb4"))
        a, b = (loaded(x, embeddings=False) for x in (one, some))
        assert a["transformer"] == b["transformer"]
        assert a["text_encoder_3"] > b["text_encoder_3"]


def held(real):
    """Bytes that autograd keeps of one real pass with gradients for the latents: every storage but the weights."""
    weights = set()
    for p in real.denoiser.parameters():
        p.requires_grad_(False)
        inner = [getattr(p, n) for n in p.__tensor_flatten__()[0]] if hasattr(p, "__tensor_flatten__") else [p]
        weights |= {t.untyped_storage().data_ptr() for t in inner}
    kept = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return t

    x = torch.randn(2, *real.latent_shape, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = real.denoise(x.to(real.dtype), torch.full((2,), 500.0), real.encode(["a moon"] * 2)).float()
    return sum(s.nbytes() for s in kept.values()) + out.nbytes


def weighed(backbone):
    return Scale(backbone).weigh(2, LATENTS).held


# ---------------------------------------------------------------- weights that wait elsewhere


@pytest.fixture
def watched(accelerator, monkeypatch):
    """Bytes on the device by accelerate's own coming and going: the most there were, and what is there now."""
    seen = {"most": 0, "there": {}}

    def note():
        seen["most"] = max(seen["most"], sum(seen["there"].values()))

    class Whole(accelerate.hooks.CpuOffload):
        def pre_forward(self, module, *args, **kwargs):
            if self.prev_module_hook is not None:
                seen["there"].pop(self.prev_module_hook.model, None)
            own = [p for n, p in module.named_parameters() if "lora_" not in n]  # a student counts elsewhere
            seen["there"][module] = sum(t.nbytes for t in (*own, *module.buffers()))
            note()
            return super().pre_forward(module, *args, **kwargs)

        def init_hook(self, module):
            seen["there"].pop(module, None)
            return super().init_hook(module)

    class Layer(accelerate.hooks.AlignDevicesHook):
        def pre_forward(self, module, *args, **kwargs):
            held = self.weights_map or {}
            names = [n for n, _ in module.named_parameters(recurse=False)]
            names += [n for n, _ in module.named_buffers(recurse=False)] if self.offload_buffers else []
            seen["there"][module] = sum(held[n].nbytes for n in names if n in held)
            note()
            return super().pre_forward(module, *args, **kwargs)

        def post_forward(self, module, output):
            seen["there"].pop(module, None)
            return super().post_forward(module, output)

    monkeypatch.setattr("accelerate.big_modeling.CpuOffload", Whole)
    monkeypatch.setattr("accelerate.hooks.AlignDevicesHook", Layer)
    return seen


class TestOffloaded:
    """What is on the device when: hooks of accelerate, followed through real runs."""

    @pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
    @pytest.mark.parametrize("validate", [0, 1])
    def test_whole_components(self, family, validate, watched, tmp_path):
        pipe = build(family).pipe
        planner = Planner(configs_only(pipe, tmp_path / "m"))
        machine = replace(GPU, dtype="float32", offload="model")
        tool, loop = short("esd"), Loop(work=tmp_path / "w", validate_every=validate, checkpoint_every=0)
        e = planner.estimate(asked(planner, "moon", method=tool, preserve=[], loop=loop, machine=machine))
        by_name, there = (
            {p.name: p.weights for p in e.parts},
            Present.of(planner.blueprint(machine), e.weights, "model"),
        )
        pipe.enable_model_cpu_offload(device="cpu:0")
        backbone = wrap(pipe, "tiny")
        erase("moon", backbone, preserve=[], method=tool, loop=loop)
        most = max(by_name.values())
        if backbone.component == "unet":
            assert watched["most"] == (there.both if validate else most), by_name
        else:  # the stock call is asked for sizes and times once the denoiser is there
            assert there.denoiser < watched["most"] <= most == there.both, by_name
        assert most <= there.both < sum(e.weights.values())
        assert by_name["step"] == e.weights[backbone.component] < sum(e.weights.values())
        assert e.waiting == sum(e.weights.values())
        plain = planner.estimate(asked(planner, "moon", method=tool, preserve=[], loop=loop, machine=GPU))
        assert plain.waiting == 0
        if not validate:
            assert set(watched["there"]) == {backbone.denoiser}, "text encoders have gone when training begins"
            watched["most"] = 0
            pipe.maybe_free_model_hooks()
            backbone.draw(["a moon"], [0], steps=1)
            assert watched["most"] == max(there.texts, there.denoiser, there.decoder)

    @pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
    def test_closed_form(self, family, watched, tmp_path):
        """The denoiser stays where it waits, unless a layer of it is asked what goes in."""
        pipe = build(family).pipe
        planner = Planner(configs_only(pipe, tmp_path / "m"))
        machine = replace(GPU, dtype="float32", offload="model")
        e = planner.estimate(asked(planner, "moon", method="uce", preserve=["star"], loop=None, machine=machine))
        pipe.enable_model_cpu_offload(device="cpu:0")
        erase("moon", wrap(pipe, "tiny"), preserve=["star"])
        most = max(p.weights for p in e.parts)
        assert most == watched["most"] if family == "sd" else 0.7 * most <= watched["most"] <= most
        assert most < sum(e.weights.values())

    @pytest.mark.parametrize("family", ["sd", "sdxl"])
    def test_layers(self, family, watched, tmp_path):
        pipe = build(family).pipe
        planner = Planner(configs_only(pipe, tmp_path / "m"))
        machine = replace(GPU, dtype="float32", offload="sequential")
        e = planner.estimate(asked(planner, "moon", method="uce", preserve=["star"], loop=None, machine=machine))
        pipe.enable_sequential_cpu_offload(device="cpu:0")
        backbone = wrap(pipe, "tiny")
        erase("moon", backbone, preserve=["star"])
        parts = nets(planner.blueprint(machine).pipe)
        kept, most = sum(map(staying, parts.values())), max(p.weights for p in e.parts)
        assert watched["most"] <= most - kept
        if family == "sd":
            assert watched["most"] == largest_layer(parts["text_encoder"]) == most - kept
        assert most < 0.5 * sum(e.weights.values())
        watched["most"] = 0
        backbone.draw(["a moon"], [0], steps=1)
        layer = max(map(largest_layer, parts.values()))
        assert 0.9 * layer <= watched["most"] <= layer

    def test_what_erase_refuses(self, accelerator, tmp_path):
        """The same words from both."""
        planner = Planner(configs_only(tiny.sd(), tmp_path / "m"))
        name = planner.blueprint(CPU).name
        for how, method in (
            ("sequential", short("esd")),
            ("sequential", short("unhype")),
            ("sequential", short("sfd", start="base")),
            ("sequential", short("salun")),
            ("model", short("esd", dense=True)),
            ("model", short("salun")),
        ):
            pipe = tiny.sd()
            getattr(pipe, f"enable_{how}_cpu_offload")(device="cpu:0")
            with pytest.raises(InputError) as real:
                erase("moon", wrap(pipe, name), preserve=["star"], method=method)
            machine = replace(GPU, dtype="float32", offload=how)
            with pytest.raises(InputError) as mine:
                planner.estimate(asked(planner, "moon", method=method, preserve=["star"], loop=None, machine=machine))
            assert str(mine.value) == str(real.value)
            assert "offload" in str(mine.value)
        assert "_erasers_offloaded" not in vars(planner.blueprint(GPU).denoiser)

    @pytest.mark.parametrize("method", ["esd --dense", "salun", "salun --no-dense"])
    def test_what_erase_refuses_of_few_bits(self, method, folder, quantised):
        name, *flag = method.split()
        tool, how = short(name, **({"dense": flag[0] == "--dense"} if flag else {})), Loading(config=str(folder))
        planner = Planner(quantised, how=how)
        with pytest.raises(InputError) as real:
            erase("moon", load(quantised, dtype="float32", how=how), preserve=["star"], method=tool)
        with pytest.raises(InputError) as mine:
            planner.estimate(asked(planner, "moon", method=tool, preserve=["star"], loop=None, machine=CPU))
        assert str(mine.value) == str(real.value)
        assert "quantised (GGUF)" in str(mine.value)

    @pytest.mark.parametrize(
        "words",
        [
            "--offload model --device cpu",
            "--offload modle",
            "--quantize 4bit",
            "--quantize bnb4 --device cpu",
            "--offload sequential --quantize bnb4 --device cpu",
            "--compile inductor --offload model",
        ],
    )
    def test_the_same_line_from_both_commands(self, words, folder, tmp_path, monkeypatch):
        monkeypatch.setattr("erasers.pipelines._quantize.find_spec", lambda name: object())
        said = ["moon", "--model", folder, *words.split()]
        real, mine = (run(c, *said, *more) for c, more in (("erase", ["--out", tmp_path / "e"]), ("plan", [])))
        assert (real[0], mine[0]) == (2, 2)
        assert mine[2].strip().splitlines()[-1] == real[2].strip().splitlines()[-1]


# ---------------------------------------------------------------- what would make it fit


def found(planner, ask, room):
    """The settings that fit into so much, said again as they would be."""
    result = fit(planner, ask, room)
    assert result.fits
    assert planner.estimate(result.ask) == result.estimate
    return result


@pytest.fixture(scope="module")
def heavy(folder, tmp_path_factory):
    """Configs of a pipeline whose autoencoder is much larger than the rest."""
    path = configs_only(tiny.sd3(), tmp_path_factory.mktemp("heavy") / "m")
    file = path / "vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block_out_channels": [16, 512]}))
    return path


class TestSearch:
    @pytest.fixture(autouse=True)
    def alone(self, bare, monkeypatch):
        monkeypatch.setattr(_plan, "CONTEXT", 0)

    def ask(self, planner, method, machine):
        """As the command would ask."""
        loop = Loop(work=Path("training")) if hasattr(method, "steps") else None
        return asked(planner, "moon", method=method, preserve=["star"], loop=loop, machine=machine)

    def test_training_ends_with_components_that_wait(self, heavy):
        """Enough for the denoiser and its pass, not for text encoders and autoencoder beside it."""
        planner = Planner(heavy)
        ask = self.ask(planner, short("esd", batch=1), replace(GPU, dtype="bfloat16"))
        there = planner.estimate(replace(ask, machine=replace(ask.machine, offload="model")))
        without = planner.estimate(replace(ask, machine=replace(ask.machine, embeddings=True)))
        assert there.memory < 0.9 * without.memory < 0.9 * planner.estimate(ask).memory
        assert found(planner, ask, int(1.1 * there.memory) + 1).words == ("--offload model",)

    def test_a_closed_form_ends_with_layers_that_wait(self, heavy):
        planner = Planner(heavy)
        ask = self.ask(planner, configure("uce", "sd", {}), replace(GPU, dtype="bfloat16"))
        model = planner.estimate(replace(ask, machine=replace(ask.machine, offload="model")))
        layer = planner.estimate(replace(ask, machine=replace(ask.machine, offload="sequential")))
        assert layer.memory < model.memory < planner.estimate(ask).memory
        assert found(planner, ask, int(1.1 * model.memory) + 1).words == ("--offload model",)
        assert found(planner, ask, int(1.1 * layer.memory) + 1).words == ("--offload sequential",)

    def test_another_base_comes_last(self, heavy):
        """Quantised where nothing else is enough, and only there."""
        planner = Planner(heavy)
        ask = self.ask(planner, short("esd", batch=1), replace(GPU, dtype="bfloat16"))
        least = fit(planner, ask, 1)
        assert not least.fits
        assert least.ask.machine.quantize == "bnb4"
        result = found(planner, ask, int(1.1 * least.estimate.memory) + 1)
        assert "--quantize bnb4" in result.words
        enough = found(planner, ask, int(1.1 * planner.estimate(ask).memory * 0.9))
        assert not any(w.startswith("--quantize") for w in enough.words)

    @pytest.mark.parametrize(("method", "dense"), [("salun", None), ("esd", True), ("esd", False)])
    def test_weights_that_learn_are_not_quantised_or_sent_away(self, heavy, method, dense):
        """A LoRA's base is both."""
        planner = Planner(heavy)
        tool = short(method, **({} if dense is None else {"dense": dense}))
        words = set(fit(planner, self.ask(planner, tool, replace(GPU, dtype="float32")), 1).words)
        assert {"--offload model", "--quantize bnb4"} & words == (
            set() if dense is not False else {"--offload model", "--quantize bnb4"}
        )

    def test_the_command(self, heavy):
        """Words that are said again are the run that was promised; the rest of the weights are named."""
        said = ["plan", "moon", "--model", heavy, "--method", "esd", "--steps", 2, "--batch", 1, "--device", "cuda"]
        said += ["--preserve", "star", "--flops", 1e14]
        code, out, _ = run(*said, "--memory", "1MB", "--json")
        assert code == 1
        least = json.loads(out)["to fit"]["estimate"]["memory"]
        room = ["--memory", f"{1.1 * 1.01 * least / MB:.6f}MB"]
        code, out, _ = run(*said, *room, "--json")
        known = json.loads(out)["to fit"]
        assert (code, known["fits"]) == (0, True)
        assert {"--offload model", "--quantize bnb4"} <= set(known["flags"])
        again = " ".join(known["flags"]).split()
        code, out, _ = run(*said, *room, "--json", *again)
        assert code == 0
        assert json.loads(out)["estimate"] == known["estimate"]
        code, out, _ = run(*said, *room, *again)
        assert code == 0
        waits = f"{known['estimate']['waiting'] / MB:.0f} MB"
        assert f"with --offload model up to {waits} of weights wait" in " ".join(out.split())


def test_learns_by_share_counts_what_weights_stand_for(folder):
    """A share of the Linears is the same share where they are in few bits."""
    learns = Learns("all", 4, share=0.5)
    plain, few = blueprint(folder), blueprint(folder, device="cuda", how=Loading(quantize="bnb4"))
    assert list(learns.layers(plain)) == list(learns.layers(few))
    assert 0 < len(learns.layers(plain)) < len(plain.modules("all"))
