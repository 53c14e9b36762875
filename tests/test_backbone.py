"""The contract every backbone keeps, family by family."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

import tiny
from erasers.pipelines import Backbone, Condition, load, wrap
from erasers.pipelines._record import record
from erasers.prompts import InputError

PROMPTS = ["a moon", "a picture of a cat, in the style of van gogh"]


def grab(backbone: Backbone, **call):
    """The stock pipeline's own denoiser call: its arguments and its answer."""
    seen = []
    handle = backbone.denoiser.register_forward_hook(
        lambda m, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
    )
    with torch.no_grad():
        backbone.pipe(num_inference_steps=1, output_type="latent", **call)
    handle.remove()
    return seen[0]


def test_reissued_call_is_the_stock_call_bit_for_bit(backbone):
    call = {"prompt": PROMPTS, "guidance_scale": 1.0, "generator": torch.Generator().manual_seed(0)}
    args, kwargs, out = grab(backbone, **call)
    x = kwargs.get("sample", args[0] if args else None)
    t = kwargs.get("timestep", args[1] if len(args) > 1 else None)
    with torch.no_grad():
        again = backbone.denoise(x, t.expand(len(x)), backbone.encode(PROMPTS))
    assert torch.equal(out[0], again)


def test_unconditional_is_the_stock_other_half(backbone):
    kwargs = record(backbone.pipe, backbone.denoiser, prompt=PROMPTS, guidance_scale=3.0)[1]
    states = kwargs["encoder_hidden_states"]
    both = backbone.unconditional(2) + backbone.encode(PROMPTS)
    torch.testing.assert_close(both.kwargs["encoder_hidden_states"], states)
    assert len(both) == 4
    if "added_cond_kwargs" in both.kwargs:
        for key, value in kwargs["added_cond_kwargs"].items():
            torch.testing.assert_close(both.kwargs["added_cond_kwargs"][key], value)


def test_draw_is_the_stock_pipeline(backbone):
    stock = backbone.pipe(
        PROMPTS,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(s) for s in (3, 4)],
    ).images
    ours = backbone.draw(PROMPTS, [3, 4], steps=3, guidance=5.0)
    assert all(np.array_equal(a, b) for a, b in zip(stock, ours, strict=True))


def test_samplers_are_swapped_and_put_back(backbone):
    own = backbone.pipe.scheduler
    images = backbone.draw(PROMPTS[:1], [0], steps=2, sampler="dpm++")
    assert backbone.pipe.scheduler is own
    assert len(images) == 1
    with pytest.raises(InputError, match="did you mean 'dpm\\+\\+'"):
        backbone.draw(PROMPTS[:1], [0], sampler="dpm")


def test_noise_and_x0_are_inverse_and_target_is_the_schedulers(backbone):
    g = torch.Generator().manual_seed(1)
    x0 = torch.randn(5, *backbone.latent_shape, generator=g)
    eps = torch.randn(x0.shape, generator=g)
    t = backbone.times(5, g)
    xt, target = backbone.noise(x0, t, eps), backbone.target(x0, eps, t)
    reference = DDIMScheduler.from_config(backbone.pipe.scheduler.config)
    torch.testing.assert_close(xt, reference.add_noise(x0, eps, t))
    want = eps if backbone.pipe.scheduler.config.prediction_type == "epsilon" else reference.get_velocity(x0, eps, t)
    torch.testing.assert_close(target, want)
    t = t.clamp(max=600)
    xt, target = backbone.noise(x0, t, eps), backbone.target(x0, eps, t)
    torch.testing.assert_close(backbone.x0(xt, t, target), x0, atol=1e-3, rtol=1e-3)


def test_times_repeat_with_their_generator(backbone):
    a, b = (backbone.times(64, torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.min() >= 0
    assert a.max() < 1000
    assert len(a.unique()) > 40


def test_latents_and_decode(backbone):
    images = backbone.draw(PROMPTS, [0, 1], steps=1)
    z = backbone.latents(images)
    assert z.shape == (2, *backbone.latent_shape)
    assert [i.size for i in backbone.decode(z)] == [i.size for i in images]


def test_partial_walks_the_samplers_own_path(backbone):
    """Stopping after k steps and comparing with the latent the stock call reports after step k."""
    backbone.pipe.scheduler = DDIMScheduler.from_config(backbone.pipe.scheduler.config, clip_sample=False)
    noise = 3 * torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(5))
    seen = []
    with torch.no_grad():
        backbone.pipe(
            PROMPTS[0],
            num_inference_steps=6,
            guidance_scale=3.0,
            latents=noise.clone(),
            output_type="latent",
            callback_on_step_end=lambda p, i, t, kw: seen.append((t, kw["latents"].clone())) or kw,
        )
    cond, stop = backbone.encode([PROMPTS[0]] * 3), torch.tensor([3, 0, 6])
    x, t = backbone.partial(cond, stop, noise.repeat(3, 1, 1, 1), steps=6, guidance=3.0)
    torch.testing.assert_close(x[:1], seen[2][1], atol=1e-4, rtol=1e-4)
    assert torch.equal(x[1:2], noise), "nothing is denoised before the first step"
    torch.testing.assert_close(x[2:], seen[5][1], atol=1e-4, rtol=1e-4)
    assert t.tolist() == [int(seen[3][0]), int(seen[0][0]), 0]
    again, _ = backbone.partial(
        cond, stop, noise.repeat(3, 1, 1, 1), steps=6, guidance=3.0, null=backbone.unconditional(1)
    )
    assert torch.equal(x, again)
    with pytest.raises(InputError, match="expected 3 stops from 0 to 6"):
        backbone.partial(cond, stop + 1, noise.repeat(3, 1, 1, 1), steps=6, guidance=1.0)


def test_text_states_are_the_encoded_prompt_without_its_padding(backbone):
    cond = backbone.encode(PROMPTS).kwargs["encoder_hidden_states"]
    for row, (ids, states) in zip(cond, backbone.text_states(PROMPTS), strict=True):
        assert len(ids) == len(states)
        torch.testing.assert_close(states, row[: len(ids)], atol=1e-5, rtol=1e-4)


def test_conditions_are_sliced_and_joined(backbone):
    cond = backbone.encode(PROMPTS)
    assert isinstance(cond, Condition)
    assert len(cond[[1]]) == 1
    swapped = cond[[1, 0]]
    again = swapped[[1, 0]]
    assert torch.equal(again.kwargs["encoder_hidden_states"], cond.kwargs["encoder_hidden_states"])
    assert len(cond + swapped) == 4


def test_groups_name_real_linears_once(backbone):
    every = backbone.modules("all")
    kv, cross, own = (backbone.modules(g) for g in ("text-kv", "cross", "self"))
    assert set(kv) < set(cross) < set(every)
    assert set(own) < set(every)
    assert not set(own) & set(cross)
    assert all(n.endswith((".to_k", ".to_v")) and ".attn2." in n for n in kv)
    assert all(".attn1." in n for n in own)
    tree = dict(backbone.denoiser.named_modules())
    assert all(tree[n.removeprefix("unet.")] is m for n, m in every.items())
    width = backbone.denoiser.config.cross_attention_dim
    assert all(m.in_features == width for m in kv.values())
    assert backbone.modules("text-encoder")
    assert set(backbone.parameters("all")) == {f"unet.{n}" for n, _ in backbone.denoiser.named_parameters()}
    assert any(n.endswith("conv_in.bias") for n in backbone.parameters("all"))


def test_inputs_are_what_enters_a_layer(backbone):
    name = next(iter(backbone.modules("text-kv")))
    cond = backbone.encode(PROMPTS)
    assert torch.equal(backbone.inputs(name, cond), cond.kwargs["encoder_hidden_states"])
    with pytest.raises(InputError, match="unknown module"):
        backbone.inputs("unet.nowhere", cond)


def test_nothing_is_left_behind(backbone):
    before = copy.deepcopy(backbone.denoiser.state_dict())
    backbone.encode(PROMPTS)
    backbone.inputs(next(iter(backbone.modules("text-kv"))), backbone.encode(PROMPTS))
    backbone.draw(PROMPTS[:1], [0], steps=1)
    assert all(torch.equal(v, before[k]) for k, v in backbone.denoiser.state_dict().items())
    assert not backbone.denoiser._forward_pre_hooks
    assert not backbone.denoiser._forward_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_half_precision_weights(family, dtype):
    backbone = wrap(tiny.FAMILIES[family]().to(dtype), family)
    x = torch.randn(2, *backbone.latent_shape)
    with torch.no_grad():
        out = backbone.denoise(x, torch.tensor([10, 900]), backbone.encode(PROMPTS))
    assert out.dtype == dtype
    assert out.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_cuda(family):
    backbone = wrap(tiny.FAMILIES[family]().to("cuda", torch.float16), family)
    x = torch.randn(2, *backbone.latent_shape)
    with torch.no_grad():
        out = backbone.denoise(x, torch.tensor([10, 900]), backbone.encode(PROMPTS))
    assert out.is_cuda
    assert len(backbone.draw(PROMPTS, [0, 1], steps=2)) == 2


class TestLoad:
    """From a name to a backbone, and every way that goes wrong."""

    def test_folder(self, tmp_path):
        tiny.sd().save_pretrained(tmp_path / "m")
        assert load(tmp_path / "m").family == "sd"
        assert load(str(tmp_path / "m"), dtype="bfloat16").dtype == torch.bfloat16

    def test_unknown_name(self):
        with pytest.raises(InputError, match="did you mean 'canvas-sd'"):
            load("canvas-ds")

    def test_no_pipeline(self, tmp_path):
        with pytest.raises(InputError, match=r"model_index\.json"):
            load(tmp_path)

    def test_pickled_weights(self, tmp_path):
        tiny.sd().save_pretrained(tmp_path / "m", safe_serialization=False)
        with pytest.raises(InputError, match="cannot load"):
            load(tmp_path / "m")

    def test_truncated_weights(self, tmp_path):
        tiny.sd().save_pretrained(tmp_path / "m")
        file = tmp_path / "m/unet/diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(InputError, match="cannot load"):
            load(tmp_path / "m")

    def test_hub_without_network(self):
        with pytest.raises(InputError, match="cannot load 'nobody/nothing'"):
            load("nobody/nothing")

    def test_dtype_and_device(self):
        with pytest.raises(InputError, match="did you mean 'float16'"):
            load("canvas-sd", dtype="float-16")
        with pytest.raises(InputError, match="cannot use device"):
            load("canvas-sd", device="gpu9")

    def test_other_families(self):
        pipe = tiny.sd()
        pipe.unet = None
        with pytest.raises(InputError, match="no backbone for StableDiffusionPipeline"):
            wrap(pipe)
