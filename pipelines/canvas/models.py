"""The networks of the Canvas world, all of stock classes, and its vocabulary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    ResNetConfig,
    ResNetForImageClassification,
)

from .draw import SIZE

TEXT_TOKENS = 77
WIDTH = 128


def vocabulary(texts: Iterable[str], folder: Path) -> int:
    """Learn a byte-pair vocabulary in CLIP's own layout and write `vocab.json`, `merges.txt` and the tokenizer
    settings. Every word of `texts` becomes one token; any other word falls back to pieces and bytes.

    Layout (as OpenAI's): 256 bytes, 256 bytes closing a word, the merges, start, end; so open_clip's tokenizer and
    transformers' give the same numbers.
    """
    words = Counter(w for t in texts for w in _words(t))
    table = _byte_alphabet()
    pieces = {w: [*(table[b] for b in w.encode()[:-1]), table[w.encode()[-1]] + "</w>"] for w in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for w, n in words.items():
            for pair in zip(pieces[w], pieces[w][1:], strict=False):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for w in words:
            pieces[w] = _merge(pieces[w], best)
    alphabet = list(table.values())
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *dict.fromkeys(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return len(tokens)


def _words(text: str) -> list[str]:
    import regex

    return regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", text.lower())


def _byte_alphabet() -> dict[int, str]:
    """CLIP's printable stand-in for each byte, in CLIP's order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def token_ids(tok: CLIPTokenizer, texts: list[str]) -> Tensor:
    """int64 [N, 77]."""
    return tok(texts, padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt").input_ids


def clip(vocabulary_size: int) -> CLIPModel:
    """Two small towers of 4 layers and width 128, images in patches of 8."""
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4}
    end = vocabulary_size - 1
    text = CLIPTextConfig(
        vocab_size=vocabulary_size,
        max_position_embeddings=TEXT_TOKENS,
        projection_dim=WIDTH,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
        **shape,
    )
    vision = CLIPVisionConfig(image_size=SIZE, patch_size=8, projection_dim=WIDTH, **shape)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH))


T = TypeVar("T", CLIPTextModel, CLIPTextModelWithProjection)


def text_tower(model: CLIPModel, kind: type[T]) -> T:
    """The text tower alone: without its projection for Stable Diffusion, with it for Stable Diffusion 3."""
    text = kind(model.config.text_config)
    have = {k.removeprefix("text_model."): v for k, v in model.text_model.state_dict().items()}
    have["text_projection.weight"] = model.text_projection.weight
    text.load_state_dict({k: have[k.removeprefix("text_model.")] for k in text.state_dict()})
    return text.to(next(model.parameters()).device).eval()


def judge(names: list[str]) -> ResNetForImageClassification:
    """A small residual network that says which of `names` an image shows."""
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 2, 2, 1],
        layer_type="basic",
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
    )
    return ResNetForImageClassification(config)


def vae() -> AutoencoderKL:
    """SD 1.x' autoencoder in everything but width: factor 8, 4 latent channels. Eight normalisation groups, because 32
    groups of 32 channels would normalise each channel alone and lose the colours.
    """
    widths = (32, 32, 96, 96)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIZE,
    )


def unet() -> UNet2DConditionModel:
    """SD 1.x' denoiser in everything but width."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        block_out_channels=(64, 128, 128, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
    )


def scheduler() -> DDIMScheduler:
    """SD 1.x' noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def transformer() -> SD3Transformer2DModel:
    """Stable Diffusion 3.5's denoiser in everything but size: joint attention with normalised queries and keys, two
    text towers side by side (2 x 128) in both the text states and the pooled vector. Patches of one latent.
    """
    return SD3Transformer2DModel(
        sample_size=SIZE // 8,
        pos_embed_max_size=SIZE // 8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=5,
        caption_projection_dim=160,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        qk_norm="rms_norm",
    )


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Stable Diffusion 3's rectified flow. Its shift of 3 is for a megapixel; 64 x 64 pixels need none."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
