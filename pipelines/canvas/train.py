"""The recipe that makes the Canvas pipelines from nothing: `python -m erasers.pipelines.canvas.train`.

Stages, each resumable and skipped once done: draw, vocabulary, text tower, judges, vae, gate, sd, second text tower,
flow, vision tower.
`--without moon` retrains the denoiser in a world where the concept was never drawn (the gold standard); CLIP, VAE and
judges are kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    ResNetForImageClassification,
)

from ...prompts import canvas
from ...prompts.templates import FILLERS, HELD_OUT, REQUESTS, fill
from . import flow, models
from ._fit import Fit, fit
from .world import HELD_OUT_SEED, OBJECT_NAMES, STYLE_NAMES, Captions, World, captions, save_tensors, world, write_json

PER_CELL = 200
CAPTIONS_PER_IMAGE = 6
TEXT_PLAN = Fit(steps=1400, lr=1e-3, decay=0.05, ema=0.99, seed=1)
TEXT_2_PLAN = replace(TEXT_PLAN, seed=6)
VISION_PLAN = Fit(steps=2000, lr=1e-3, decay=0.05, ema=0.995, seed=5)
JUDGE_PLAN = Fit(steps=900, lr=2e-3, decay=0.05, ema=0.99, seed=2)
VAE_PLAN = Fit(steps=2500, lr=2e-3, decay=0.0, ema=0.998, bf16=True, seed=3)
SD_PLAN = Fit(steps=5000, lr=8e-4, warmup=200, decay=0.01, ema=0.999, every=250, seed=4)


# ---------------------------------------------------------------- text and CLIP


def tokenizer(work: Path) -> CLIPTokenizer:
    """The world's own vocabulary, learnt from training captions, fillers and the words of everyday requests."""
    folder = work / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        data = world(20, 0)
        texts = [*captions(data, 4, 0).table, *FILLERS, *(n for c in canvas.CONCEPTS.values() for n in c.names)]
        texts += [fill(t, x="moon") for ts in REQUESTS.values() for t in ts]
        texts += [fill(t, object="moon", style="ink") for t in HELD_OUT]
        models.vocabulary(texts, folder)
        CLIPTokenizer.from_pretrained(folder, model_max_length=models.TEXT_TOKENS).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def clip_loss(image: Tensor, text: Tensor, scale: Tensor, match: Tensor) -> Tensor:
    """Contrast with several right answers: cross entropy against the uniform distribution over all that match.

    Shapes: image [B, D] and text [T, D] of unit length, match bool [B, T]; a text that matches no image counts 0.
    """
    logits = scale * image @ text.T
    m = match.float()
    by_image = -(F.log_softmax(logits, 1) * m).sum(1) / m.sum(1)
    by_text = -(F.log_softmax(logits, 0) * m).sum(0) / m.sum(0).clamp(min=1)
    return (by_image.mean() + by_text.mean()) / 2


class Contrast:
    """Three contrasts of images with sentences: each image against the captions of its batch, against one sentence for
    every object, and against one for every style. The last two are the hard negatives: in a random batch the style
    alone nearly solves the first.
    """

    def __init__(self, data: World, words: Captions, tok: CLIPTokenizer, batch: int = 64) -> None:
        self.data, self.words, self.batch = data, words, batch
        ids = models.token_ids(tok, words.table)
        self.ids = ids[:, : int((ids != tok.pad_token_id).sum(1).max()) + 1]
        o, s = words.objects, words.styles
        self.pools = [((o == k) & (s < 0)).nonzero()[:, 0] for k in range(len(OBJECT_NAMES))]
        self.pools += [((s == k) & (o < 0)).nonzero()[:, 0] for k in range(len(STYLE_NAMES))]

    def draw(self, gen: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Jittered pixels [B, 3, H, W], token numbers [T, L] and who matches whom, bool [B, T]."""
        data, words = self.data, self.words
        pick = torch.randint(len(data.objects), (self.batch,), generator=gen)
        own = words.rows[pick, torch.randint(words.rows.shape[1], (self.batch,), generator=gen)]
        rows = torch.cat([own, torch.stack([p[torch.randint(len(p), (), generator=gen)] for p in self.pools])])
        o, s = words.objects[rows], words.styles[rows]
        match = (o < 0) | (o == data.objects[pick][:, None])
        match &= (s < 0) | (s == data.styles[pick][:, None])
        return _jitter(data.pixels(pick), gen), self.ids[rows], match

    def loss(self, image: Tensor, text: Tensor, scale: Tensor, match: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Sum of the three contrasts of unit vectors [B, D] and [T, D]."""
        split = [self.batch, len(OBJECT_NAMES), len(STYLE_NAMES)]
        pairs = zip(text.split(split), match.split(split, 1), strict=True)
        parts = [clip_loss(image, t, scale.exp().clamp(max=100), m) for t, m in pairs]
        return torch.stack(parts).sum(), {n: round(p.item(), 3) for n, p in zip("cos", parts, strict=True)}


class Guide(torch.nn.Module):
    """A convolutional image tower beside CLIP's text tower. It learns shapes in minutes, where a small vision
    transformer takes an hour; the transformer is taught by it afterwards and the guide is thrown away.
    """

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.clip.vision_model.requires_grad_(False)
        self.clip.visual_projection.requires_grad_(False)
        self.net = models.judge([str(k) for k in range(models.WIDTH)])

    def image(self, x: Tensor) -> Tensor:
        """Unit vectors [B, D]."""
        return F.normalize(self.net(pixel_values=x).logits, dim=-1)

    def text(self, ids: Tensor) -> Tensor:
        """Unit vectors [T, D]."""
        return _features(self.clip.get_text_features(input_ids=ids))


def train_text(work: Path, contrast: Contrast, tok: CLIPTokenizer, name: str = "text", plan: Fit = TEXT_PLAN) -> Guide:
    """CLIP's text tower, against a convolutional image tower."""
    torch.manual_seed(plan.seed)
    model = Guide(models.clip(len(tok))).to(dev := models.device())

    def loss(step: int, gen: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x, ids, match = contrast.draw(gen)
        return contrast.loss(model.image(x.to(dev)), model.text(ids.to(dev)), model.clip.logit_scale, match.to(dev))

    return fit(name, model, loss, plan, work)


def train_vision(work: Path, contrast: Contrast, guide: Guide) -> CLIPModel:
    """CLIP's vision tower, against the finished text tower and towards the guide's own image vectors."""
    torch.manual_seed(VISION_PLAN.seed)
    model = guide.clip.requires_grad_(False)
    model.vision_model.requires_grad_(True)
    model.visual_projection.requires_grad_(True)
    dev = next(model.parameters()).device

    def loss(step: int, gen: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x, ids, match = contrast.draw(gen)
        with torch.no_grad():
            text, taught = guide.text(ids.to(dev)), guide.image(x.to(dev))
        image = _features(model.get_image_features(pixel_values=x.to(dev)))
        value, parts = contrast.loss(image, text, model.logit_scale, match.to(dev))
        away = 1 - (image * taught).sum(1).mean()
        return value + 10 * away, {**parts, "away": round(away.item(), 4)}

    fit("vision", model, loss, VISION_PLAN, work)
    return model.requires_grad_(True)


def _jitter(x: Tensor, gen: torch.Generator) -> Tensor:
    """Shift by up to 4 pixels, blur or not, add noise: what judges and CLIP must look past."""
    dx, dy = torch.randint(-4, 5, (2,), generator=gen).tolist()
    x = F.pad(x, (4, 4, 4, 4), mode="replicate")[:, :, 4 + dy : 4 + dy + x.shape[2], 4 + dx : 4 + dx + x.shape[3]]
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.where(torch.rand(len(x), 1, 1, 1, generator=gen) < 0.4, soft, x)
    level = 0.25 * torch.rand(len(x), 1, 1, 1, generator=gen) ** 2
    return x + level * torch.randn(x.shape, generator=gen)


# ---------------------------------------------------------------- judges


def train_judge(work: Path, kind: str, data: World) -> ResNetForImageClassification:
    """The object or the style classifier, on jittered drawings."""
    torch.manual_seed(JUDGE_PLAN.seed)
    names, labels = (OBJECT_NAMES, data.objects) if kind == "object" else (STYLE_NAMES, data.styles)
    model = models.judge(names).to(dev := models.device())

    def loss(step: int, gen: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        pick = torch.randint(len(labels), (64,), generator=gen)
        logits = model(pixel_values=_jitter(data.pixels(pick), gen).to(dev)).logits
        return F.cross_entropy(logits, labels[pick].to(dev), label_smoothing=0.05), {}

    return fit(f"judge-{kind}", model, loss, JUDGE_PLAN, work)


@torch.no_grad()
def accuracy(judge: ResNetForImageClassification, x: Tensor, labels: Tensor) -> float:
    """Share of images [N, 3, H, W] in -1..1 that the judge names right."""
    dev = next(judge.parameters()).device
    guess = torch.cat([judge(pixel_values=b.to(dev)).logits.argmax(1).cpu() for b in x.split(256)])
    return (guess == labels).float().mean().item()


@torch.no_grad()
def zero_shot(model: CLIPModel, tok: CLIPTokenizer, data: World) -> dict[str, float]:
    """CLIP's zero-shot accuracy on a world, objects and styles, mean text embedding over three sentences."""
    dev = next(model.parameters()).device
    x = data.pixels(torch.arange(len(data.objects)))
    image = torch.cat([_features(model.get_image_features(pixel_values=b.to(dev))) for b in x.split(256)])
    out = {}
    for kind, names, labels, sentences in (
        ("object", OBJECT_NAMES, data.objects, ("{a_x} {x}", "a picture of {a_x} {x}", "a drawing of {a_x} {x}")),
        ("style", STYLE_NAMES, data.styles, ("{x} style", "an image in {x} style", "{a_x} {x} picture")),
    ):
        ids = models.token_ids(tok, [fill(t, x=n) for n in names for t in sentences]).to(dev)
        text = _features(model.get_text_features(input_ids=ids))
        text = F.normalize(text.unflatten(0, (len(names), len(sentences))).mean(1), dim=-1)
        out[kind] = ((image @ text.T).argmax(1).cpu() == labels).float().mean().item()
    return out


def _features(out: object) -> Tensor:
    value = out if isinstance(out, Tensor) else out.pooler_output  # type: ignore[attr-defined]
    return F.normalize(value, dim=-1)


# ---------------------------------------------------------------- autoencoder


def vae_loss(recon: Tensor, x: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Square and absolute error of the image, absolute error of its finite differences (crisp edges and textures),
    square error of its 8 x 8 block means (without it every latent channel goes to outlines first and the hue is never
    learnt), and a light pull to N(0, 1).
    """
    recon, mean, logvar = recon.float(), mean.float(), logvar.float()
    value = (recon - x).abs().mean()
    edges = sum(((recon - x).diff(dim=d)).abs().mean() for d in (2, 3))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    colour = F.avg_pool2d(recon - x, 8).square().mean()
    return (recon - x).square().mean() + value + 0.5 * edges + 2 * colour + 5e-4 * kl, {
        "colour": round(colour.item(), 4),
        "l1": round(value.item(), 4),
        "kl": round(kl.item(), 2),
    }


def train_vae(work: Path, data: World) -> AutoencoderKL:
    """The autoencoder, with `scaling_factor` set from the data."""
    torch.manual_seed(VAE_PLAN.seed)
    model = models.vae().to(dev := models.device())

    def loss(step: int, gen: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        pick = torch.randint(len(data.objects), (16,), generator=gen)
        x = data.pixels(pick).to(dev)
        posterior = model.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=gen).to(dev)
        return vae_loss(model.decode(z).sample, x, posterior.mean, posterior.logvar)

    model = fit("vae", model, loss, VAE_PLAN, work)
    with torch.no_grad():
        some = torch.randperm(len(data.objects), generator=torch.Generator().manual_seed(0))[:1024]
        z = torch.cat([model.encode(data.pixels(b).to(dev)).latent_dist.mean for b in some.split(64)])
    model.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    return model


@torch.no_grad()
def through(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Encode (mean) and decode images [N, 3, H, W]."""
    dev = next(vae.parameters()).device
    return torch.cat(
        [vae.decode(vae.encode(b.to(dev)).latent_dist.mean).sample.clamp(-1, 1).cpu() for b in x.split(64)]
    )


# ---------------------------------------------------------------- denoiser


def snr_weight(alphas: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) / SNR for each timestep (Hang et al., arXiv 2303.09556, epsilon prediction). Shape [T]."""
    snr = alphas / (1 - alphas)
    return snr.clamp(max=gamma) / snr


@torch.no_grad()
def latents(work: Path, vae: AutoencoderKL, data: World, name: str) -> tuple[Tensor, Tensor]:
    """Scaled posterior means and deviations [N, 4, h, w] of all images, computed once."""
    cache = work / f"latents-{name}.safetensors"
    if not cache.exists():
        dev = models.device()
        with torch.autocast(dev.type, torch.bfloat16):  # as it was trained
            batches = torch.arange(len(data.objects)).split(32)
            parts = [vae.encode(data.pixels(b).to(dev)).latent_dist for b in batches]
        scale = vae.config.scaling_factor
        mean, std = (torch.cat([getattr(p, n).float().cpu() for p in parts]) for n in ("mean", "std"))
        save_tensors(cache, {"mean": mean * scale, "std": std * scale})
    state = load_file(cache)
    return state["mean"], state["std"]


@torch.no_grad()
def embeddings(text: CLIPTextModel, tok: CLIPTokenizer, table: list[str]) -> Tensor:
    """Last hidden states [U, 77, D] in float16."""
    dev = next(text.parameters()).device
    parts = [text(models.token_ids(tok, table[i : i + 256]).to(dev))[0].half().cpu() for i in range(0, len(table), 256)]
    return torch.cat(parts)


def train_sd(
    work: Path, name: str, data: World, words: Captions, text: CLIPTextModel, tok: CLIPTokenizer, vae: AutoencoderKL
) -> StableDiffusionPipeline:
    """Epsilon prediction on latents, min-SNR weights, one caption in ten emptied for guidance."""
    dev = models.device()
    mean, std = latents(work, vae, data, name)
    states = cache(lambda: embeddings(text, tok, [*words.table, ""]))  # not needed where training is done
    torch.manual_seed(SD_PLAN.seed)
    model, noise = models.unet().to(dev), models.scheduler()
    abar = noise.alphas_cumprod
    weight = snr_weight(abar)
    batch = 64

    def loss(step: int, gen: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        table = states()
        pick = torch.randint(len(mean), (batch,), generator=gen)
        rows = words.rows[pick, torch.randint(words.rows.shape[1], (batch,), generator=gen)]
        rows = torch.where(torch.rand(batch, generator=gen) < 0.08, torch.tensor(len(table) - 1), rows)
        x0 = mean[pick] + std[pick] * torch.randn(mean[pick].shape, generator=gen)
        # one timestep from each of `batch` equal slices: the same average, less variance
        t = ((torch.arange(batch) + torch.rand(batch, generator=gen)) * (1000 / batch)).long().clamp(max=999)
        eps = torch.randn(x0.shape, generator=gen)
        xt = abar[t].sqrt()[:, None, None, None] * x0 + (1 - abar[t]).sqrt()[:, None, None, None] * eps
        out = model(xt.to(dev), t.to(dev), table[rows].float().to(dev)).sample
        error = (out - eps.to(dev)).square().mean((1, 2, 3))
        return (error * weight[t].to(dev)).mean(), {"mse": round(error.mean().item(), 5)}

    model = fit(name, model, loss, SD_PLAN, work)
    return assemble_sd(model, vae, text, tok)


def assemble_sd(
    unet: torch.nn.Module, vae: AutoencoderKL, text: CLIPTextModel, tok: CLIPTokenizer
) -> StableDiffusionPipeline:
    """The stock pipeline around trained parts."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tok,
        unet=unet,
        scheduler=models.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def grid_accuracy(
    pipe: StableDiffusionPipeline | StableDiffusion3Pipeline,
    judges: tuple[ResNetForImageClassification, ResNetForImageClassification],
    *,
    seeds: int,
    **call: float,
) -> dict[str, object]:
    """Draw every cell of the grid with `seeds` seeds and let both judges name it; `call` goes to the pipeline."""
    cells = [(o, s) for o in range(len(OBJECT_NAMES)) for s in range(len(STYLE_NAMES)) for _ in range(seeds)]
    images = []
    for i in range(0, len(cells), 60):
        part = cells[i : i + 60]
        gens = [torch.Generator().manual_seed(188 + (i + k) % seeds) for k in range(len(part))]
        prompts = [canvas.caption(OBJECT_NAMES[o], STYLE_NAMES[s]) for o, s in part]
        z = torch.stack([torch.randn(pipe.vae.config.latent_channels, 8, 8, generator=g) for g in gens])
        out = pipe(prompts, latents=z.to(pipe.device), output_type="pt", **call)
        images.append(out.images.cpu())
    x = torch.cat(images) * 2 - 1
    o, s = torch.tensor(cells).T
    report: dict[str, object] = {**call, "n": len(cells)}
    report["object"], report["style"] = accuracy(judges[0], x, o), accuracy(judges[1], x, s)
    report["by object"] = {n: accuracy(judges[0], x[o == k], o[o == k]) for k, n in enumerate(OBJECT_NAMES)}
    report["by style"] = {n: accuracy(judges[1], x[s == k], s[s == k]) for k, n in enumerate(STYLE_NAMES)}
    return report


# ---------------------------------------------------------------- the whole recipe


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(prog="python -m erasers.pipelines.canvas.train", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("canvas-work"), help="checkpoints, logs and caches")
    parser.add_argument("--without", choices=[*OBJECT_NAMES, *STYLE_NAMES], help="retrain the denoiser without it")
    parser.add_argument("--until", choices=["judges", "vae", "sd", "flow"], help="last stage to run")
    parser.add_argument("--out", type=Path, help="also write the pipelines, in float16, into this folder")
    args = parser.parse_args(argv)
    if args.without and args.out:
        parser.error("--out ships the whole world: leave out --without")
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    report_path = work / "report.json"
    report = json.loads(report_path.read_text()) if report_path.exists() else {}

    def note(key: str, measure: Callable[[], object]) -> None:
        if key not in report:
            report[key] = measure()
            write_json(report_path, report)
        print(key, json.dumps(report[key]))

    data = world(PER_CELL, 0, work / "world.safetensors")
    held_out = world(10, HELD_OUT_SEED, work / "held-out.safetensors")
    words = captions(data, CAPTIONS_PER_IMAGE, 0)
    tok = tokenizer(work)
    x = held_out.pixels(torch.arange(len(held_out.objects)))

    contrast = Contrast(data, words, tok)
    guide = train_text(work, contrast, tok)
    judges = (train_judge(work, "object", data), train_judge(work, "style", data))

    def judged(images: Tensor) -> list[float]:
        return [accuracy(j, images, y) for j, y in zip(judges, (held_out.objects, held_out.styles), strict=True)]

    note("judges, held-out drawings", lambda: judged(x))
    if args.until == "judges":
        return
    vae = train_vae(work, data)
    again = cache(lambda: through(vae, x))
    note("vae psnr, held-out drawings", lambda: 10 * math.log10(4 / (again() - x).square().mean().item()))
    note("judges, held-out drawings through the vae", lambda: judged(again()))
    if args.until == "vae":
        return
    ending = f"-without-{args.without}" if args.without else ""
    kept = data.without(args.without)
    kept_words = words if args.without is None else captions(kept, CAPTIONS_PER_IMAGE, 0)
    pipe = train_sd(work, f"sd{ending}", kept, kept_words, models.text_tower(guide.clip, CLIPTextModel), tok, vae)
    note(
        f"sd{ending}, 25 steps",
        lambda: grid_accuracy(pipe, judges, num_inference_steps=25, guidance_scale=4.0, seeds=5),
    )
    if args.until == "sd":
        return
    second = train_text(work, contrast, tok, "text-2", TEXT_2_PLAN)
    one, two = (models.text_tower(g.clip, CLIPTextModelWithProjection) for g in (guide, second))
    moments = latents(work, vae, kept, f"sd{ending}")
    flow_pipe = flow.train_flow(
        work, f"flow{ending}", moments, words=kept_words, towers=(one, two), tok=tok, vae=copy.deepcopy(vae)
    )
    note(f"flow{ending}, the stock call", lambda: grid_accuracy(flow_pipe, judges, seeds=5))
    if args.until == "flow":
        return
    clip = train_vision(work, contrast, guide)
    note("clip zero-shot, held-out drawings", lambda: zero_shot(clip, tok, held_out))
    if args.out:
        ship(args.out, pipe, flow_pipe, clip, tok, judges)
        for kind, right in zip(("object", "style"), report["judges, held-out drawings"], strict=True):
            seen = {"value": round(100 * right, 2), "n": len(x)}
            write_json(args.out / f"judge-{kind}/judge.json", {"kind": kind, "accuracy on real images": seen})


def ship(
    out: Path,
    pipe: StableDiffusionPipeline,
    flow_pipe: StableDiffusion3Pipeline,
    clip: CLIPModel,
    tok: CLIPTokenizer,
    judges: tuple[ResNetForImageClassification, ResNetForImageClassification],
) -> None:
    """Write everything in float16 safetensors. The transformers parts' configs say float32, so a bare
    `from_pretrained` loads one dtype throughout.
    """
    pipe.to("cpu", torch.float16)
    pipe.save_pretrained(out / "sd")
    flow_pipe.to("cpu", torch.float16)
    flow_pipe.save_pretrained(out / "flow")
    clip.to("cpu", torch.float16).save_pretrained(out / "clip")
    tok.save_pretrained(out / "clip")
    write_json(out / "sd/canvas.json", {"world": "canvas"})
    # our own calls leave out the stock call's 256 zero tokens: it draws as well without, three times as fast
    write_json(out / "flow/canvas.json", {"world": "canvas", "call": {"max_sequence_length": 0}})
    for kind, judge in zip(("object", "style"), judges, strict=True):
        judge.to("cpu", torch.float16).save_pretrained(out / f"judge-{kind}")
    towers = (out / "sd/text_encoder", out / "flow/text_encoder", out / "flow/text_encoder_2", out / "clip")
    for config in (*towers, out / "judge-object", out / "judge-style"):
        path = config / "config.json"
        value = json.loads(path.read_text())
        value["dtype"] = "float32"
        for tower in ("text_config", "vision_config"):
            if tower in value:
                value[tower]["dtype"] = "float32"
        write_json(path, value)


if __name__ == "__main__":
    main()
