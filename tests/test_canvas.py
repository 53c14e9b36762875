"""The Canvas world: its drawings, its recipe's parts, and the shipped weights against their bar."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from torch import nn

from erasers.eval import Judges, draw, judges, sampling
from erasers.pipelines import canvas_folder, canvas_open_clip, load, models
from erasers.pipelines.canvas import train
from erasers.pipelines.canvas._fit import Fit, fit
from erasers.pipelines.canvas._repeat import RepeatLast
from erasers.pipelines.canvas.draw import RENDERERS, SILHOUETTES, SIZE
from erasers.pipelines.canvas.draw import draw as drawing
from erasers.pipelines.canvas.models import token_ids, transformer
from erasers.pipelines.canvas.world import HELD_OUT_SEED, OBJECT_NAMES, STYLE_NAMES, captions, world
from erasers.prompts import canvas as words
from erasers.prompts import load as load_prompts

FOLDER, FLOW = (Path(next(m.path for m in models() if m.id == name)) for name in ("canvas-sd", "canvas-flow"))


class TestDrawing:
    def test_every_word_can_be_drawn(self):
        assert set(SILHOUETTES) == set(OBJECT_NAMES)
        assert set(RENDERERS) == set(STYLE_NAMES)

    def test_same_seed_same_pixels(self):
        a, b, c = (np.asarray(drawing("moon", "ink", s)) for s in (1, 1, 2))
        assert a.shape == (SIZE, SIZE, 3)
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)

    def test_world_without_a_concept_has_neither_its_images_nor_its_words(self):
        data = world(1, 0)
        for name in ("moon", "ink"):
            kept = data.without(name)
            assert len(kept.images) == 120 - (10 if name == "moon" else 12)
            text = " ".join(captions(kept, 6, 0).table).lower().split()
            assert not set(words.find(name).names) & {w.strip(".,:") for w in text}


class TestRecipe:
    def test_clip_loss_is_cross_entropy_where_one_caption_matches(self):
        g = torch.Generator().manual_seed(0)
        image, text = (nn.functional.normalize(torch.randn(6, 8, generator=g), dim=-1) for _ in range(2))
        logits = 7.0 * image @ text.T
        want = (
            nn.functional.cross_entropy(logits, torch.arange(6))
            + nn.functional.cross_entropy(logits.T, torch.arange(6))
        ) / 2
        torch.testing.assert_close(
            train.clip_loss(image, text, torch.tensor(7.0), torch.eye(6, dtype=torch.bool)), want
        )

    def test_snr_weight(self):
        alphas = torch.tensor([0.5, 0.9, 0.99])
        torch.testing.assert_close(train.snr_weight(alphas), torch.tensor([1.0, 5 / 9, 5 / 99]), atol=1e-4, rtol=1e-4)

    def test_many_equal_tokens_for_the_price_of_one(self):
        """Training attends over one token that stands for 256; the shipped network over all of them."""
        torch.manual_seed(0)
        stock, g = transformer().eval(), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in stock.parameters():  # its last layers start at zero, and would hide a difference
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
        x, text, pooled = (torch.randn(s, generator=g) for s in ((2, 4, 8, 8), (2, 24, 256), (2, 256)))
        t, repeat = torch.tensor([300.0, 900.0]), RepeatLast()

        def call(zeros):
            states = torch.cat([text, torch.zeros(2, zeros, 256)], 1)
            with torch.no_grad():
                return stock(x, states, pooled, t, return_dict=False)[0]

        many, one, none = call(256), call(1), call(0)
        stock.set_attn_processor(repeat)
        repeat.n = 256
        torch.testing.assert_close(call(1), many, atol=1e-5 * many.abs().max().item(), rtol=1e-4)
        repeat.n = 1
        torch.testing.assert_close(call(0), none, atol=1e-5 * none.abs().max().item(), rtol=1e-4)
        assert (many - one).norm() > 1e-2 * many.norm(), "how many there are matters"

    def test_killed_and_resumed_is_the_run_never_killed(self, tmp_path):
        def run(work, stop=None):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

            def loss(step, gen):
                if step == stop:
                    raise KeyboardInterrupt
                x = torch.randn(16, 4, generator=gen)
                return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}

            fit("m", model, loss, Fit(steps=30, lr=1e-2, warmup=5, ema=0.9, every=10), work)
            return model.state_dict()

        whole = run(tmp_path / "a")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", stop=17)
        parts = run(tmp_path / "b")
        assert all(torch.equal(v, parts[k]) for k, v in whole.items())
        assert (tmp_path / "a/m.safetensors").read_bytes() == (tmp_path / "b/m.safetensors").read_bytes()
        log = [json.loads(line) for line in (tmp_path / "a/m.log.jsonl").read_text().splitlines()]
        assert log[0]["loss"] > log[-1]["loss"]

    def test_divergence_stops(self, tmp_path):
        model = nn.Linear(1, 1)
        with pytest.raises(FloatingPointError, match="step 0"):
            fit(
                "m",
                model,
                lambda s, g: (model(torch.ones(1, 1)).sum() * float("nan"), {}),
                Fit(steps=2, lr=1.0),
                tmp_path,
            )


def without_us(code, folder):
    """Run in a process of its own in which this package cannot be imported."""
    blocked = f"import sys; sys.modules['erasers'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", blocked], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@contextmanager
def record_states(backbone):
    """The number of text tokens in each call of the denoiser."""
    seen = []
    handle = backbone.denoiser.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def flow():
    return load("canvas-flow")


class TestShipped:
    """What lies in the package meets the bar of docs/canvas.md."""

    def test_sizes_and_dtypes(self):
        files = list(FOLDER.parent.rglob("*.safetensors"))
        assert sum(f.stat().st_size for f in files) < 60 * 2**20
        for f in files:
            assert {v.dtype for v in load_file(f).values() if v.is_floating_point()} == {torch.float16}, f

    def test_bare_diffusers_loads_it_without_us(self, tmp_path):
        code = (
            "import torch\nfrom diffusers import StableDiffusionPipeline, PNDMScheduler, DPMSolverMultistepScheduler\n"
            f"pipe = StableDiffusionPipeline.from_pretrained({str(FOLDER)!r})\n"
            "assert pipe.unet.dtype == pipe.text_encoder.dtype == pipe.vae.dtype == torch.float32\n"
            "pipe.set_progress_bar_config(disable=True)\n"
            "for s in (None, PNDMScheduler, DPMSolverMultistepScheduler):\n"
            "    pipe.scheduler = s.from_config(pipe.scheduler.config) if s else pipe.scheduler\n"
            "    assert pipe('a moon', num_inference_steps=4).images[0].size == (64, 64)\n"
        )
        without_us(code, tmp_path)

    def test_bare_diffusers_loads_the_flow_pipeline_without_us(self, tmp_path):
        code = (
            "from diffusers import StableDiffusion3Pipeline\n"
            f"pipe = StableDiffusion3Pipeline.from_pretrained({str(FLOW)!r}, text_encoder_3=None, tokenizer_3=None)\n"
            "parts = (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.vae)\n"
            "assert {str(p.dtype) for p in parts} == {'torch.float32'}, [p.dtype for p in parts]\n"
            "pipe.set_progress_bar_config(disable=True)\n"
            "assert pipe('a moon', num_inference_steps=2).images[0].size == (64, 64)\n"
        )
        without_us(code, tmp_path)

    def test_it_is_shaped_like_sd3(self, flow):
        config = flow.pipe.transformer.config
        assert flow.family == "sd3"
        assert config.qk_norm == "rms_norm"
        assert config.joint_attention_dim == config.pooled_projection_dim == 2 * 128
        assert flow.pipe.text_encoder_3 is None
        assert flow.defaults == (28, 7.0)
        with record_states(flow) as seen:
            flow.draw(["a moon"], [0], steps=1, guidance=1.0)
        assert seen == [77 + flow.call.get("max_sequence_length", 256)]

    def test_it_is_shaped_like_sd1(self, canvas):
        config = canvas.pipe.unet.config
        assert list(config.down_block_types) == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
        assert len(canvas.modules("text-kv")) == 32, "as many as Stable Diffusion 1.5 has"
        assert canvas.pipe.vae_scale_factor == 8
        assert config.in_channels == canvas.pipe.vae.config.latent_channels == 4
        assert canvas.pipe.tokenizer.model_max_length == 77

    def test_unknown_words_tokenise_and_known_ones_are_one_token(self, canvas):
        tok = canvas.pipe.tokenizer
        for c in words.CONCEPTS.values():
            for name in c.names:
                assert len(tok(name).input_ids) == 3
        assert len(tok("xylophone 😀").input_ids) > 3
        assert tok.decode(tok("xylophone").input_ids, skip_special_tokens=True).strip() == "xylophone"

    def test_judges_on_held_out_drawings_and_through_the_vae(self, canvas):
        data = world(2, HELD_OUT_SEED + 500)
        from PIL import Image

        images = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in data.images]
        judge = judges(canvas)
        assert isinstance(judge, Judges)
        for shown in (
            images,
            [i for k in range(0, 240, 60) for i in canvas.decode(canvas.latents(images[k : k + 60]))],
        ):
            seen = judge.look(shown)
            right = [
                np.mean([a == OBJECT_NAMES[b] for a, b in zip(seen.objects, data.objects, strict=True)]),
                np.mean([a == STYLE_NAMES[b] for a, b in zip(seen.styles, data.styles, strict=True)]),
            ]
            assert min(right) >= 0.99, right

    def test_clip_zero_shot_in_transformers_and_open_clip(self, tmp_path):
        from transformers import CLIPModel, CLIPTokenizer

        folder = canvas_folder("clip")
        model, tok = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
        data = world(2, HELD_OUT_SEED + 500)
        assert min(train.zero_shot(model, tok, data).values()) >= 0.95
        import open_clip

        folder = canvas_open_clip(tmp_path / "clip")
        other, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        other.eval()
        texts, x = ["a moon", "A star image in ink style.", "xylophone"], data.pixels(torch.arange(0, 240, 40))
        ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
        assert torch.equal(ids, token_ids(tok, texts))
        with torch.no_grad():
            ours = model(input_ids=ids, pixel_values=x)
            theirs = other.encode_text(ids, normalize=True), other.encode_image(x, normalize=True)
        torch.testing.assert_close(theirs[0], ours.text_embeds, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(theirs[1], ours.image_embeds, atol=1e-4, rtol=1e-3)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["canvas-sd", "canvas-flow"])
    def test_grid_accuracy(self, name):
        """One seed of every cell at the evaluation settings, against the bar of the whole grid."""
        backbone, prompts = load(name), load_prompts("canvas-1")
        gallery = draw(backbone, prompts, how=sampling(backbone))
        seen = judges(backbone).look(gallery.images)
        objects = np.mean([a == p.object for a, p in zip(seen.objects, prompts, strict=True)])
        styles = np.mean([a == p.style for a, p in zip(seen.styles, prompts, strict=True)])
        assert objects >= 0.93, "95 % less the noise of 120 images"
        assert styles >= 0.96, "98 % less the noise of 120 images"

    @pytest.mark.slow
    def test_the_stock_call_of_the_flow_pipeline(self):
        """Nothing but a prompt and a seed: 28 steps, guidance 7, 256 tokens of a third encoder that is not there."""
        pipe = StableDiffusion3Pipeline.from_pretrained(FLOW, text_encoder_3=None, tokenizer_3=None)
        pipe.set_progress_bar_config(disable=True)
        prompts = load_prompts("canvas-demo")
        seeds = [torch.Generator().manual_seed(p.seed) for p in prompts]
        seen = judges(load("canvas-flow")).look(pipe([p.text for p in prompts], generator=seeds).images)
        assert sum(a == p.object for a, p in zip(seen.objects, prompts, strict=True)) >= 11
        assert sum(a == p.style for a, p in zip(seen.styles, prompts, strict=True)) >= 11
