"""The contract every backbone keeps, family by family."""

import copy
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_transformers
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from families import EVERY, build
from safetensors.torch import save_file

import tiny
from erasers.erase import Task, erase
from erasers.erase._tokens import span
from erasers.erase.uce import UCE
from erasers.pipelines import Backbone, Condition, Embeddings, load, wrap
from erasers.pipelines._record import record
from erasers.prompts import Concept, InputError

ROOT = Path(__file__).parent.parent
PROMPTS = ("a moon", "a picture of a cat, in the style of van gogh")  # some pipelines write into lists


def grab(backbone: Backbone, **call):
    """The stock pipeline's own denoiser call: its arguments and its answer."""
    seen = []
    handle = backbone.denoiser.register_forward_hook(
        lambda m, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
    )
    with torch.no_grad():
        steps = 1 if backbone.component == "unet" else 2  # with one, some flows' times are undefined
        backbone.pipe(num_inference_steps=steps, output_type="latent", **call)
    handle.remove()
    return seen[0]


def off(backbone: Backbone) -> dict:
    """The stock call's arguments without guidance."""
    return {**backbone.call, **(backbone.row.off if backbone.component == "transformer" else {"guidance_scale": 1.0})}


def stacked(value):
    """Latents in one tensor, as a backbone has them."""
    return torch.stack(list(value)).squeeze(2) if isinstance(value, list) else value


def test_reissued_call_is_the_stock_call_bit_for_bit(backbone):
    """The scheduler's time, not the denoiser's argument, is what a backbone is asked with."""
    call = {"prompt": list(PROMPTS), "generator": torch.Generator().manual_seed(0), **off(backbone)}
    args, kwargs, out = grab(backbone, **call)
    x, want = stacked(args[0] if args else kwargs["hidden_states"]), stacked(out[0])
    with torch.no_grad():
        again = backbone.denoise(x, backbone.pipe.scheduler.timesteps[:1].expand(len(x)), backbone.encode(PROMPTS))
    assert torch.equal(want[:, : again.shape[1]], again), "PixArt's second half is a variance"


def test_unconditional_is_the_stock_other_half(backbone):
    """Of one call with both halves, or the second of two calls; or, where guidance is an input, the empty prompt."""
    row = getattr(backbone, "row", None)
    call = {"prompt": list(PROMPTS), **backbone.call, **backbone.guidance_call(3.0, 2)}
    if row is not None and row.embedded:
        kwargs = record(backbone.pipe, backbone.denoiser, num_inference_steps=2, **call)[0].kwargs
        told = backbone.guided(backbone.encode(PROMPTS), 3.0)
        torch.testing.assert_close(dict(told.kwargs), {k: kwargs[k] for k in told.kwargs})
        return
    if row is not None and (row.negative == "next" or row.guidance == "true_cfg_scale"):
        first, second = record(backbone.pipe, backbone.denoiser, calls=2, num_inference_steps=2, **call)
        for have, want in ((backbone.encode(PROMPTS), first), (backbone.unconditional(2), second)):
            for key, value in have.kwargs.items():
                assert value.all() if want.kwargs[key] is None else torch.equal(value, want.kwargs[key])
            for key, value in have.shared.items():
                torch.testing.assert_close(value, want.kwargs[key])
        return
    whole = record(backbone.pipe, backbone.denoiser, **call)[0]
    kwargs = {**whole.kwargs, **dict(zip(row.positional, whole.rest, strict=True))} if row else whole.kwargs
    halves = [backbone.unconditional(2), backbone.encode(PROMPTS)]
    if row is not None and row.negative == "second":
        halves.reverse()
    both = halves[0] + halves[1]
    assert len(both) == 4
    kwargs = kwargs | {k: kwargs[k].transpose(0, 1) for k in (row.second if row else ())}
    torch.testing.assert_close(dict(both.kwargs), {k: kwargs[k] for k in both.kwargs})


def test_draw_is_the_stock_pipeline(backbone):
    stock = backbone.pipe(
        prompt=list(PROMPTS),
        num_inference_steps=3,
        generator=[torch.Generator().manual_seed(s) for s in (3, 4)],
        **backbone.guidance_call(5.0, 2),
        **backbone.call,
    ).images
    ours = backbone.draw(PROMPTS, [3, 4], steps=3, guidance=5.0)
    assert all(np.array_equal(a, b) for a, b in zip(stock, ours, strict=True))


def test_samplers_are_swapped_and_put_back(backbone):
    own = backbone.pipe.scheduler
    for name in backbone.samplers:
        images = backbone.draw(PROMPTS[:1], [0], steps=4, sampler=name)
        assert backbone.pipe.scheduler is own
        assert len(images) == 1
    with pytest.raises(InputError, match="did you mean 'euler'"):
        backbone.draw(PROMPTS[:1], [0], sampler="eular")


def test_noise_and_x0_are_inverse_and_target_is_the_schedulers(backbone):
    g = torch.Generator().manual_seed(1)
    x0 = torch.randn(5, *backbone.latent_shape, generator=g)
    eps = torch.randn(x0.shape, generator=g)
    config = backbone.pipe.scheduler.config
    if config.get("prediction_type") in ("epsilon", "v_prediction"):
        t = backbone.times(5, g)
        reference = DDIMScheduler.from_config(config)
        noised = reference.add_noise(x0, eps, t)
        want = eps if config.prediction_type == "epsilon" else reference.get_velocity(x0, eps, t)
    else:
        backbone.pipe(prompt=list(PROMPTS[:1]), num_inference_steps=6, output_type="latent", **off(backbone))
        reference, some = backbone.pipe.scheduler, [0, 1, 3, 4, 5]
        t, level = reference.timesteps[some], reference.sigmas[some].view(-1, *[1] * (x0.ndim - 1))
        if backbone.family == "sana":  # whose sampler rounds its times to whole numbers
            torch.testing.assert_close(level.flatten(), t / 1000, atol=1e-3, rtol=0)
            level = (t / 1000).view_as(level)
        noised = level * eps + (1 - level) * x0
        # one step of the sampler from there to the clean latent; `forward` is what it is handed of the answer
        want = backbone.law.forward((noised - x0) / level)
    xt, target = backbone.noise(x0, t, eps), backbone.target(x0, eps, t)
    torch.testing.assert_close(xt, noised)
    torch.testing.assert_close(target, want, atol=1e-3, rtol=1e-3)
    t = t.clamp(max=600)
    xt, target = backbone.noise(x0, t, eps), backbone.target(x0, eps, t)
    torch.testing.assert_close(backbone.x0(xt, t, target), x0, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["flux", "qwen_image", "chroma", "sd3"])
def test_training_times_are_shifted_like_the_samplers(family):
    """The median of a shifted logit-normal is the shifted 1/2: Flux by its number of tokens, SD3 by config."""
    backbone = build(family)
    tokens, c = backbone.latent_shape[0], backbone.pipe.scheduler.config
    shift = c.shift
    if c.use_dynamic_shifting:
        slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
        shift = np.exp(c.base_shift + slope * (tokens - c.base_image_seq_len))
    t = backbone.times(4001, torch.Generator().manual_seed(0))
    assert t.median().item() / 1000 == pytest.approx(shift / (1 + shift), abs=0.02)


@pytest.mark.parametrize(
    ("family", "steps", "guidance"), [("sd", 50, 7.5), ("sd3", 28, 7.0), ("flux_cfg", 28, 1.0), ("z_image", 50, 6.0)]
)
def test_defaults_are_the_stock_calls(family, steps, guidance):
    assert build(family).defaults == (steps, guidance)


@pytest.mark.parametrize("family", ["sana", "sd3", "qwen_image", "z_image"])
def test_partial_denoising_stops_where_the_stock_sampler_does(family):
    backbone = build(family)
    backbone.pipe(prompt=list(PROMPTS[:1]), num_inference_steps=6, output_type="latent", **off(backbone))
    walk, own = backbone.trajectory(6), backbone.pipe.scheduler
    assert torch.equal(walk.timesteps, own.timesteps.float())
    torch.testing.assert_close(walk.sigmas, own.sigmas)
    before = torch.get_rng_state()
    backbone.trajectory(7)
    assert torch.equal(torch.get_rng_state(), before), "nothing of the user's randomness is used"


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


def unpacked(backbone, noise):
    """As the stock call takes latents: Flux.2 packs them itself."""
    if not backbone.family.startswith("flux2"):
        return noise
    side = int(noise.shape[1] ** 0.5)
    return noise.transpose(1, 2).unflatten(2, (side, side))


def test_partial_walks_the_samplers_own_path(backbone):
    """Stopping after k steps and comparing with the latent the stock call reports after step k."""
    kind = backbone.pipe.scheduler.config.get("prediction_type")
    if kind == "flow_prediction":
        backbone.pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    elif kind is not None:
        backbone.pipe.scheduler = DDIMScheduler.from_config(backbone.pipe.scheduler.config, clip_sample=False)
    noise = 3 * torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(5))
    seen = []
    more = {"callback_on_step_end": lambda p, i, t, kw: seen.append(kw["latents"].clone()) or kw}
    if backbone.family.startswith("pixart"):
        more = {"callback": lambda i, t, latents: seen.append(latents.clone())}
    with torch.no_grad():
        backbone.pipe(
            prompt=list(PROMPTS[:1]),
            num_inference_steps=6,
            latents=unpacked(backbone, noise).clone(),
            output_type="latent",
            **more,
            **backbone.guidance_call(3.0, 1),
            **backbone.call,
        )
    times = backbone.pipe.scheduler.timesteps.tolist()
    cond, stop = backbone.encode([PROMPTS[0]] * 3), torch.tensor([3, 0, 6])
    x, t = backbone.partial(cond, stop, noise.repeat(3, *[1] * (noise.ndim - 1)), steps=6, guidance=3.0)
    torch.testing.assert_close(x[:1], seen[2], atol=1e-4, rtol=1e-4)
    assert torch.equal(x[1:2], noise), "nothing is denoised before the first step"
    torch.testing.assert_close(x[2:], seen[5], atol=1e-4, rtol=1e-4)
    assert t.tolist() == [times[3], times[0], 0]
    again, _ = backbone.partial(
        cond, stop, noise.repeat(3, *[1] * (noise.ndim - 1)), steps=6, guidance=3.0, null=backbone.unconditional(1)
    )
    assert torch.equal(x, again)
    with pytest.raises(InputError, match="expected 3 stops from 0 to 6"):
        backbone.partial(cond, stop + 1, noise.repeat(3, *[1] * (noise.ndim - 1)), steps=6, guidance=1.0)


def test_text_states_are_the_encoded_prompt_without_its_padding(backbone):
    """What enters the layers that read the prompt. Where several encoders feed one layer, their states stand one after
    the other.
    """
    if backbone.family == "hidream":
        with pytest.raises(InputError, match="no closed form is known for hidream: choose a trained method"):
            backbone.text_states(PROMPTS)
        return
    layer = next(iter(backbone.modules("text-in")))
    states = [backbone.inputs(layer, backbone.encode([p])) for p in PROMPTS]
    for k, prompt in enumerate(PROMPTS):
        row, start = states[k].reshape(-1, states[k].shape[-1]), 0
        for cut, whole in zip(backbone.text_states([prompt]), backbone.text_states([prompt], padded=True), strict=True):
            ((ids, short),), ((_, full),) = cut, whole
            assert len(ids) == len(short) <= len(full)
            torch.testing.assert_close(full, row[start : start + len(full)], atol=1e-5, rtol=1e-4)
            first = next(i for i in range(len(full)) if torch.allclose(full[i], short[0], atol=1e-5))
            torch.testing.assert_close(short, full[first : first + len(short)], atol=1e-5, rtol=1e-4)
            span(ids, cut.spell("moon" if k == 0 else "cat"))
            start += len(full)
        rest = row[start:]
        assert torch.equal(rest, rest[:1].expand_as(rest)), "what is left is empty: an encoder that is not there"


def test_conditions_are_sliced_and_joined(backbone):
    cond = backbone.encode(PROMPTS)
    assert isinstance(cond, Condition)
    assert len(cond[[1]]) == 1
    again = cond[[1, 0]][[1, 0]]
    torch.testing.assert_close(dict(again.kwargs), dict(cond.kwargs), atol=0, rtol=0)
    assert len(cond + cond[[1, 0]]) == 4
    x, t = torch.randn(4, *backbone.latent_shape), torch.tensor([600] * 4)
    with torch.no_grad():
        both = backbone.denoise(x, t, cond + cond[[1, 0]])
        for k, row in enumerate((0, 1, 1, 0)):
            alone = backbone.denoise(x[[k]], t[:1], cond[[row]])
            torch.testing.assert_close(both[[k]], alone, atol=1e-3, rtol=1e-3)


def test_groups_name_real_linears_once(backbone):
    every = backbone.modules("all")
    reads, kv, cross, own = (backbone.modules(g) for g in ("text-in", "text-kv", "cross", "self"))
    part = backbone.component
    assert set(kv) <= set(every if backbone.family == "cogview4" else cross)
    assert set(cross) < set(every)
    assert set(own) < set(every)
    assert not set(own) & set(cross)
    assert set(reads) <= set(cross)
    assert all((reads, kv, own))
    if part == "unet":
        assert reads == kv
        assert all(n.endswith((".to_k", ".to_v")) and ".attn2." in n for n in kv)
        assert all(".attn1." in n for n in own)
    else:
        assert len(reads) == 1 or backbone.family == "hidream"
    tree = dict(backbone.denoiser.named_modules())
    assert all(tree[n.removeprefix(f"{part}.")] is m for n, m in every.items())
    assert backbone.pooled is None or backbone.pooled in every
    assert set(backbone.modules("prompt")) == {*reads, *([backbone.pooled] if backbone.pooled else [])}
    assert {n for n in backbone.parameters("prompt") if n.endswith("weight")} == {
        f"{n}.weight" for n in backbone.modules("prompt")
    }
    assert backbone.modules("text-encoder")
    assert set(backbone.parameters("all")) == {f"{part}.{n}" for n, _ in backbone.denoiser.named_parameters()}
    cross, rest = (set(backbone.parameters(g)) for g in ("cross", "not-cross"))
    assert not cross & rest
    assert cross | rest == set(backbone.parameters("all"))


def test_inputs_are_what_enters_a_layer(backbone):
    cond = backbone.encode(PROMPTS)
    for name, layer in backbone.modules("text-in").items():
        seen = backbone.inputs(name, cond)
        assert seen.shape[-1] == layer.in_features
        states = cond.kwargs.get("encoder_hidden_states")
        if backbone.family not in ("lumina2", "qwen-image", "z-image", "hidream"):  # these normalise them first
            assert torch.equal(seen, states)
    if backbone.pooled is not None:
        assert len(backbone.inputs(backbone.pooled, cond)) == len(PROMPTS)
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
@pytest.mark.parametrize("family", EVERY)
def test_half_precision_weights(family, dtype):
    backbone = build(family, dtype)
    x = torch.randn(2, *backbone.latent_shape)
    with torch.no_grad():
        out = backbone.denoise(x, torch.tensor([10, 900]), backbone.encode(PROMPTS))
    assert out.dtype == dtype
    assert out.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", EVERY)
def test_cuda(family):
    backbone = build(family, "cuda", torch.float16)
    x = torch.randn(2, *backbone.latent_shape)
    with torch.no_grad():
        out = backbone.denoise(x, torch.tensor([10, 900]), backbone.encode(PROMPTS))
    assert out.is_cuda
    assert len(backbone.draw(PROMPTS, [0, 1], steps=2)) == 2
    cond, stop = backbone.encode(PROMPTS), torch.tensor([1, 2])
    y, t = backbone.partial(cond, stop, x, steps=2, guidance=3.0)
    assert y.is_cuda
    assert t.is_cuda
    assert backbone.noise(y, t, torch.randn_like(y)).is_cuda
    again = bare(backbone, backbone.remember(PROMPTS))
    assert len(again.draw(PROMPTS, [0, 1], steps=2)) == 2
    if family != "hidream":
        assert backbone.text_states(PROMPTS)[0].states[0].is_cuda
        assert again.text_states(PROMPTS)[0].states[0].is_cuda


def bare(backbone: Backbone, embeddings: Embeddings) -> Backbone:
    """The same model in a new pipeline without any text encoder."""
    gone = dict.fromkeys((n for n in backbone.pipe.components if n.startswith("text_encoder")), None)
    pipe = type(backbone.pipe).from_pipe(backbone.pipe, **gone)
    pipe.set_progress_bar_config(disable=True)
    assert len(gone) >= 1
    assert all(getattr(pipe, n) is None for n in gone)
    return wrap(pipe, backbone.name, call=backbone.call, embeddings=embeddings)


def same(a, b) -> bool:
    """Bit for bit."""
    torch.testing.assert_close(a, b, atol=0, rtol=0)
    return True


def flat(streams) -> list:
    return [list(part) for s in streams for part in (s.ids, s.states)]


def test_remembered_prompts_need_no_text_encoder(backbone, tmp_path):
    """Everything that a prompt is asked for, of one prompt at a time bit for bit, and of several together."""
    embeddings = Embeddings.load(backbone.remember(PROMPTS).save(tmp_path / "some" / "prompts.safetensors"))
    assert not {"encode_prompt"} & set(vars(backbone.pipe))
    again, fresh = bare(backbone, embeddings), backbone.remember(PROMPTS)
    assert list(embeddings.states) == ["", *PROMPTS]
    assert embeddings.origin == fresh.origin
    same({p: dict(s) for p, s in embeddings.states.items()}, {p: dict(s) for p, s in fresh.states.items()})
    same(dict(embeddings.free), dict(fresh.free))
    x, t = torch.randn(2, *backbone.latent_shape), torch.tensor([600, 600])
    assert again.latent_shape == backbone.latent_shape
    alone = [backbone.encode([p]) for p in PROMPTS]
    both = again.encode(PROMPTS[::-1])
    for k, p in enumerate(PROMPTS):
        one = again.encode([p])
        same((dict(one.kwargs), dict(one.shared)), (dict(alone[k].kwargs), dict(alone[k].shared)))
        with torch.no_grad():
            want = backbone.denoise(x[[k]], t[:1], alone[k])
            assert torch.equal(again.denoise(x[[k]], t[:1], one), want)
            torch.testing.assert_close(again.denoise(x[[k]], t[:1], both[[1 - k]]), want, atol=1e-3, rtol=1e-3)
        for padded in (False, True) if backbone.family != "hidream" else ():
            torch.testing.assert_close(
                flat(again.text_states([p], padded=padded)), flat(backbone.text_states([p], padded=padded))
            )
            if backbone.component == "transformer":
                same(flat(again.text_states([p], padded=padded)), flat(backbone.text_states([p], padded=padded)))
    same(dict(again.unconditional(1).kwargs), dict(backbone.unconditional(1).kwargs))
    torch.testing.assert_close(dict(again.unconditional(2).kwargs), dict(backbone.unconditional(2).kwargs))
    for guidance in (1.0, 4.0):
        drawn = [backbone.draw([p], [k], steps=2, guidance=guidance)[0] for k, p in enumerate(PROMPTS)]
        for k, p in enumerate(PROMPTS):
            assert np.array_equal(again.draw([p], [k], steps=2, guidance=guidance)[0], drawn[k])
        for one, want in zip(again.draw(PROMPTS, [0, 1], steps=2, guidance=guidance), drawn, strict=True):
            assert np.abs(np.array(one, int) - np.array(want, int)).max() <= 1
    assert not {"encode_prompt"} & set(vars(again.pipe))


def test_prompts_that_are_not_remembered_are_encoded_or_refused(backbone):
    embeddings = backbone.remember(PROMPTS[:1])
    again = bare(backbone, embeddings)
    gone = r"text encoders are gone and 1 of the prompts are not remembered \('a cat'\): .* `erasers remember`"
    for ask in (again.encode, again.remember, lambda texts: again.draw(texts, [0, 0])):
        with pytest.raises(InputError, match=gone):
            ask([PROMPTS[0], "a cat"])
    again.embeddings = None
    with pytest.raises(InputError, match=r"2 of the prompts are not remembered \('a', 'b'\)"):
        again.encode(["a", "b"])
    with pytest.raises(InputError, match=r"gone and 1 of the prompts are not remembered \(''\)"):
        again.unconditional(1)
    want = backbone.encode(["a cat"])
    backbone.embeddings = embeddings
    same(dict(backbone.encode(["a cat"]).kwargs), dict(want.kwargs))
    mixed = backbone.encode(["a cat", PROMPTS[0], "a moon"])
    assert len(mixed) == 3
    more = backbone.remember(["a cat"])
    assert more.origin is embeddings.origin
    same(dict(bare(backbone, more).encode(["a cat"]).kwargs), dict(want.kwargs))


@pytest.mark.parametrize("family", [f for f in EVERY if f != "hidream"])
def test_closed_form_without_text_encoders(family):
    backbone, asked = build(family), []
    task, tool = Task((Concept("moon", "star"),), (Concept("cat"),), 0), UCE()
    encode, states = backbone.encode, backbone.text_states
    backbone.encode = lambda texts: asked.extend(texts) or encode(texts)
    backbone.text_states = lambda texts, **kw: asked.extend(texts) or states(texts, **kw)
    want = tool.run(backbone, task)
    del backbone.encode, backbone.text_states
    have = tool.run(bare(backbone, backbone.remember(asked)), task)
    assert set(have) == set(want)
    for name, (a, b) in have.items():
        torch.testing.assert_close(b @ a, want[name][1] @ want[name][0], atol=1e-5, rtol=1e-4)


class TestEmbeddings:
    """The file, the check, and what goes wrong."""

    def test_the_names_are_the_stock_calls_arguments(self, backbone):
        """Given to the stock call instead of the prompt, they draw the same image; no code of ours is needed for it."""
        held, guided = backbone.remember(PROMPTS[:1]), {**backbone.guidance_call(4.0, 1), **backbone.call}
        want = backbone.draw(PROMPTS[:1], [5], steps=2, guidance=4.0)[0]
        other = {f"negative_{k}": v for k, v in held.states[""].items()}
        takes = inspect.signature(type(backbone.pipe).__call__).parameters
        given = {k: v for k, v in {**other, **held.free, **held.states[PROMPTS[0]]}.items() if k in takes}
        given = {k: [v] for k, v in given.items()} if backbone.listed else given
        assert set(backbone.returns) - set(given) <= {"text_ids", "negative_text_ids", "prompt_embeds_mask"}
        guided.pop("negative_prompt", None)
        noise = torch.Generator().manual_seed(5)
        pipe = bare(backbone, held).pipe
        none = {k: None for k in ("prompt", "negative_prompt") if k in takes}
        image = pipe(**none, **given, num_inference_steps=2, generator=noise, **guided).images[0]
        assert np.array_equal(image, want)

    def test_load_leaves_the_text_encoders_where_they_are(self, tmp_path, monkeypatch):
        tiny.sd3().save_pretrained(tmp_path / "m")
        file = load(tmp_path / "m").remember(PROMPTS).save(tmp_path / "prompts.safetensors")
        for part in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            next((tmp_path / "m" / part).glob("*.safetensors")).unlink()
        backbone = load(tmp_path / "m", embeddings=file)
        assert backbone.pipe.text_encoder_3 is None
        assert backbone.pipe.tokenizer_3 is not None
        assert len(backbone.draw(PROMPTS, [0, 1], steps=1)) == 2
        assert backbone.text_states(PROMPTS)[1].spell("moon")
        half = load(tmp_path / "m", embeddings=Embeddings.load(file), dtype="bfloat16")
        assert half.encode(PROMPTS).kwargs["encoder_hidden_states"].dtype == torch.bfloat16

    @pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart", "z_image"])
    def test_a_whole_eraser_is_made_and_verified(self, family, tmp_path):
        backbone = build(family)
        again = bare(backbone, backbone.remember(["moon", "star"]))
        eraser = erase(Concept("moon", "star"), again, preserve=[])
        eraser.save_pretrained(tmp_path / "e", verify=again)
        esd = ("esd", {"steps": 1, "train": "cross", "sampler_steps": 2})
        assert not erase(Concept("moon", "star"), again, preserve=[], method=esd).payload.zero()
        with eraser.attached(backbone), eraser.attached(again):
            for k in ("moon", "star"):
                assert np.array_equal(again.draw([k], [0], steps=2)[0], backbone.draw([k], [0], steps=2)[0])

    def test_the_documents_example(self, tmp_path, monkeypatch):
        """On Stable Diffusion 3 in small."""
        monkeypatch.chdir(tmp_path)
        tiny.sd3().save_pretrained("m")
        (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/families.md").read_text(encoding="utf-8"), re.S)
        exec(code.replace('"black-forest-labs/FLUX.1-dev"', '"m"').replace("steps=28", "steps=2"), {})
        assert (tmp_path / "after.png").exists()

    def test_texts_of_different_lengths_without_a_mask(self):
        """CogView4's are drawn in stock calls of their own; they have no condition together."""
        backbone = wrap(tiny_transformers.cogview4(), call={"max_sequence_length": 64})
        prompts = [PROMPTS[0], " ".join([PROMPTS[1]] * 2)]
        again = bare(backbone, backbone.remember(prompts))
        drawn = [backbone.draw([p], [k], steps=2)[0] for k, p in enumerate(prompts)]
        assert all(map(np.array_equal, again.draw(prompts, [0, 1], steps=2), drawn))
        (states,) = again.text_states(prompts)
        for k, prompt in enumerate(prompts):
            ((ids, alone),) = backbone.text_states([prompt])[0]
            same([states.ids[k], states.states[k]], [ids, alone])
        with pytest.raises(InputError, match="texts of 16 and 32 tokens cannot be joined in this family"):
            again.encode(prompts)

    def test_an_encoder_that_was_never_there(self):
        """Stable Diffusion 3 without its T5."""
        pipe = tiny.sd3()
        embeddings = wrap(pipe, "whole").remember(PROMPTS)
        pipe.text_encoder_3 = None
        backbone = wrap(pipe, "small")
        small = backbone.remember(PROMPTS)
        assert small.origin["encoders"] == ["text_encoder", "text_encoder_2"]
        same(dict(bare(backbone, small).encode(PROMPTS[:1]).kwargs), dict(backbone.encode(PROMPTS[:1]).kwargs))
        assert len(bare(backbone, small).text_states(PROMPTS)) == 1
        with pytest.raises(InputError, match=r"gone and 1 of the prompts are not remembered \('a cat'\)"):
            wrap(pipe, "small", embeddings=embeddings).encode(["a cat"])
        with pytest.raises(InputError, match="remembered from 'small' without text_encoder_3, which 'whole' has"):
            wrap(tiny.sd3(), "whole", embeddings=small)

    def test_what_was_remembered_elsewhere_is_refused(self):
        embeddings = wrap(tiny.sd(), "one").remember([])
        with pytest.raises(InputError, match=r"remembered from 'one' \(family sd\), got 'two' \(sdxl\)"):
            wrap(tiny.sdxl(), "two", embeddings=embeddings)
        with pytest.raises(InputError, match=r"the weights of 'two' differ by \d"):
            wrap(tiny.sd(seed=1), "two", embeddings=embeddings)
        assert wrap(tiny.sd().to(torch.bfloat16), "two", embeddings=embeddings).embeddings is embeddings

    def test_the_calls_arguments_for_texts_come_with_them(self):
        pipe = tiny_transformers.chroma()
        embeddings = wrap(pipe, "one", call={"height": 16, "max_sequence_length": 16}).remember([])
        assert wrap(pipe, "one", embeddings=embeddings).call["max_sequence_length"] == 16
        assert "height" not in wrap(pipe, "one", embeddings=embeddings).call
        with pytest.raises(InputError, match=r"with the arguments \{'max_sequence_length': 16\}, here they are"):
            wrap(pipe, "one", call={"max_sequence_length": 32}, embeddings=embeddings)

    def test_damaged_files(self, tmp_path, sd):
        file = sd.remember(PROMPTS).save(tmp_path / "prompts.safetensors")
        assert [p.name for p in tmp_path.iterdir()] == ["prompts.safetensors"]
        assert sd.remember(PROMPTS).save(tmp_path / "again").read_bytes() == file.read_bytes()
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(InputError, match="no whole safetensors file"):
            Embeddings.load(file)
        with pytest.raises(InputError, match="no such file of remembered prompts"):
            Embeddings.load(tmp_path / "nowhere")
        torch.save({"a moon": torch.zeros(1)}, tmp_path / "prompts.pt")
        with pytest.raises(InputError, match="no whole safetensors file"):
            Embeddings.load(tmp_path / "prompts.pt")
        for header in ({}, {"erasers_embeddings": "[]"}, {"erasers_embeddings": '{"version": 1, "prompts": [""]}'}):
            save_file({"0.x": torch.zeros(1), "1.x": torch.zeros(1)}, tmp_path / "other", header)
            with pytest.raises(InputError, match="holds no remembered prompts"):
                Embeddings.load(tmp_path / "other")
        with pytest.raises(InputError, match="cannot write"):
            sd.remember([]).save(file / "below")


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
        with pytest.raises(InputError, match=r"cannot load .* the weights of .*unet.* are pickled \(\.bin\)"):
            load(tmp_path / "m")

    def test_truncated_weights(self, tmp_path):
        tiny.sd().save_pretrained(tmp_path / "m")
        file = tmp_path / "m/unet/diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(InputError, match="cannot load"):
            load(tmp_path / "m")

    def test_hub_without_network(self):
        with pytest.raises(InputError, match="cannot fetch nobody/nothing"):
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

    def test_what_is_no_pipeline(self):
        with pytest.raises(InputError, match="expected a diffusers pipeline, got str: load it first"):
            wrap("canvas-sd")


def test_image_size_is_what_is_drawn(backbone):
    (image,) = backbone.draw(["a moon"], [0], steps=2)
    assert backbone.image_size == (image.height, image.width)
    assert backbone.latents([image]).shape[1:] == backbone.latent_shape
