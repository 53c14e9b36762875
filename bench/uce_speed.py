"""How fast the closed form is at Stable Diffusion 1.5's real size, with random weights: `make bench`.

Prints a row per number of concepts: seconds (median of five, text encoding included), and the peak of extra memory over
the size of the key and value weights.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from erasers.erase import Task
from erasers.erase.uce import UCE
from erasers.eval import Cost
from erasers.pipelines import wrap
from erasers.pipelines.canvas.models import vocabulary
from erasers.prompts import Concept


def sd15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5's UNet and text encoder, random; a tiny autoencoder stands in, as nothing is drawn."""
    names = [f"concept{k}" for k in range(100)]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary([" ".join(names), "a picture of anchor"], Path(folder))
        tok = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        eos_token_id=len(tok) - 1,
    )
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, latent_channels=4),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tok,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval(),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    backbone = wrap(sd15(), "sd15-shape")
    weights = sum(m.weight.numel() * 4 for m in backbone.modules("text-kv").values()) / 2**20
    print(f"key and value weights: {weights:.1f} MB in {len(backbone.modules('text-kv'))} layers")
    print(f"concepts  seconds (median of {args.runs})  rank  extra peak MB")
    for n in (1, 10, 100):
        task = Task(tuple(Concept(f"concept{k}", "anchor") for k in range(n)), (), 0)
        seconds, extra, factors = [], 0.0, {}
        for _ in range(args.runs):
            factors = {}
            with Cost() as memory:
                start = time.perf_counter()
                factors = UCE().run(backbone, task)
                seconds.append(time.perf_counter() - start)
            extra = max(extra, memory.peak)
        rank = next(iter(factors.values()))[0].shape[0]
        print(f"{n:8d}  {statistics.median(seconds):22.3f}  {rank:4d}  {extra:13.1f}")


if __name__ == "__main__":
    main()
