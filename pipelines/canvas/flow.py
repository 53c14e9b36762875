"""The flow-matching denoiser of the Canvas world: `canvas-flow`, a small Stable Diffusion 3.5."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from . import models
from ._fit import Fit, fit
from ._repeat import RepeatLast
from .world import Captions

PLAN = Fit(steps=8500, lr=8e-4, warmup=300, decay=0.01, ema=0.999, every=250, seed=7)
SHORT_STEPS = 6000
SHORT_TOKENS = 24
ZEROS = 256
BATCH = 64
Towers = tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]


@torch.no_grad()
def embeddings(towers: Towers, tok: CLIPTokenizer, table: list[str]) -> tuple[Tensor, Tensor]:
    """Both towers' states of the last layer but one side by side, [U, 77, 2 D], and their pooled vectors, [U, 2 D], in
    float16: what the stock pipeline makes of a prompt.
    """
    states, pooled = [], []
    for i in range(0, len(table), 256):
        ids = models.token_ids(tok, table[i : i + 256])
        outs = [t(ids.to(t.device), output_hidden_states=True) for t in towers]
        states.append(torch.cat([o.hidden_states[-2] for o in outs], -1).half().cpu())
        pooled.append(torch.cat([o.text_embeds for o in outs], -1).half().cpu())
    return torch.cat(states), torch.cat(pooled)


def logit_normal(n: int, generator: torch.Generator) -> Tensor:
    """Noise levels in (0, 1), logits standard normal (Esser et al., arXiv 2403.03206, section 3.1), one from each of n
    equally likely slices: the same average, less variance. Shape [n].
    """
    slices = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return torch.special.ndtri(slices.clamp(1e-4, 1 - 1e-4)).sigmoid()


def train_flow(
    work: Path,
    name: str,
    latents: tuple[Tensor, Tensor],
    *,
    words: Captions,
    towers: Towers,
    tok: CLIPTokenizer,
    vae: AutoencoderKL,
) -> StableDiffusion3Pipeline:
    """Rectified flow: x_t = (1 - s) x0 + s eps, target eps - x0; one caption in ten emptied for guidance.

    Most steps see the first 24 text tokens only, the last ones all 77. Half of all steps append the 256 zeros of the
    stock call, half none, so that it works with any `max_sequence_length`.

    Args:
        work: folder of checkpoints.
        name: of this stage's files there.
        latents: means and deviations of the images' latents [N, 4, h, w].
        words: captions of the same images.
        towers: the two text towers, finished.
        tok: their tokenizer.
        vae: the autoencoder, for the pipeline.
    """
    dev = models.device()
    mean, std = latents
    table = cache(lambda: embeddings(towers, tok, [*words.table, ""]))  # not needed where training is done
    torch.manual_seed(PLAN.seed)
    model, repeat = models.transformer().to(dev), RepeatLast()
    model.set_attn_processor(repeat)

    def loss(step: int, gen: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        states, pooled = table()
        pick = torch.randint(len(mean), (BATCH,), generator=gen)
        rows = words.rows[pick, torch.randint(words.rows.shape[1], (BATCH,), generator=gen)]
        rows = torch.where(torch.rand(BATCH, generator=gen) < 0.08, torch.tensor(len(states) - 1), rows)
        x0 = mean[pick] + std[pick] * torch.randn(mean[pick].shape, generator=gen)
        sigma, eps = logit_normal(BATCH, gen), torch.randn(x0.shape, generator=gen)
        text = states[rows, : SHORT_TOKENS if step < SHORT_STEPS else None].float()
        repeat.n = ZEROS if torch.rand((), generator=gen) < 0.5 else 1
        if repeat.n > 1:
            text = torch.cat([text, torch.zeros_like(text[:, :1])], 1)
        s = sigma.view(-1, 1, 1, 1)
        out = model(
            ((1 - s) * x0 + s * eps).to(dev),
            text.to(dev),
            pooled[rows].float().to(dev),
            (1000 * sigma).to(dev),
            return_dict=False,
        )[0]
        return (out - (eps - x0).to(dev)).square().mean(), {"zeros": float(repeat.n > 1)}

    return assemble(fit(name, model, loss, PLAN, work), vae, towers, tok)


def assemble(
    transformer: nn.Module, vae: AutoencoderKL, towers: Towers, tok: CLIPTokenizer
) -> StableDiffusion3Pipeline:
    """The stock pipeline around trained parts."""
    fresh = models.transformer().to(next(transformer.parameters()).device)
    fresh.load_state_dict(transformer.state_dict())  # with the stock attention
    vae.register_to_config(shift_factor=0.0)
    pipe = StableDiffusion3Pipeline(
        transformer=fresh.eval(),
        scheduler=models.flow_scheduler(),
        vae=vae,
        text_encoder=towers[0],
        tokenizer=tok,
        text_encoder_2=towers[1],
        tokenizer_2=tok,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
