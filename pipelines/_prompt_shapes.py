"""Shapes of what each family's `encode_prompt` returns, from the denoiser's config: to plan without text encoders."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

TOKENS = 16
"""Tokens of a prompt in families that do not pad to a fixed length."""

FREE_LENGTH = ("cogview4", "qwen-image", "z-image")
WIDTHS = ("cross_attention_dim", "joint_attention_dim", "caption_channels", "cap_feat_dim", "text_embed_dim")
"""Names, in the configs of denoisers, of the width of the prompt's states; the transformers' own come later because
PixArt's `cross_attention_dim` is that of its layers."""


def prompt_shapes(backbone: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # noqa: ANN401
    """Tensors without content, one row each, by the names of `Embeddings`: of a prompt, and of the other side of
    guidance.
    """
    config, family = backbone.denoiser.config, backbone.family
    text, pooled = _text(backbone, config, family), _pooled(config, family)
    row: dict[str, Tensor] = {}
    for name in backbone.returns:
        if "mask" in name:
            row[name] = torch.ones(1, text[1], dtype=torch.float32 if family == "chroma" else torch.int64)
        elif name.endswith("text_ids"):
            places = torch.zeros(1, text[1], 4, dtype=torch.int64)
            row[name] = places if family.startswith("flux2") else torch.zeros(text[1], 3)
        elif "pooled" in name:
            row[name] = torch.zeros(1, pooled)
        elif name.endswith("llama3"):
            layers = backbone.pipe.text_encoder_4.config.num_hidden_layers if backbone.pipe.text_encoder_4 else 32
            row[name] = torch.zeros(layers, 1, text[1], config.caption_channels[-1])
        else:
            row[name] = torch.zeros(text[1:] if backbone.listed else text)
    free = {n: v for n, v in row.items() if n.startswith("negative_")}
    return {n: v for n, v in row.items() if n not in free}, free


def _text(backbone: Any, config: Any, family: str) -> tuple[int, int, int]:  # noqa: ANN401
    """[1, tokens, width] of the prompt's states."""
    given = inspect.signature(type(backbone.pipe).__call__).parameters
    if family in ("sd", "sdxl"):
        encoder = next((e for n in ("text_encoder", "text_encoder_2") if (e := getattr(backbone.pipe, n, None))), None)
        return 1, 77 if encoder is None else encoder.config.max_position_embeddings, config.cross_attention_dim
    own = given["max_sequence_length"].default if "max_sequence_length" in given else 77
    length = TOKENS if family in FREE_LENGTH else int(backbone.call.get("max_sequence_length", own))
    names = WIDTHS[1:] if family != "hidream" else ("caption_channels",)
    width = next(v for n in names if (v := config.get(n)) is not None)
    if isinstance(width, (list, tuple)):
        width = width[0]
    if family == "sd3":  # zeros where the third text encoder is not there
        return 1, 77 + length, width
    return 1, length, width


def _pooled(config: Any, family: str) -> int:  # noqa: ANN401
    """Width of the pooled vector, 0 where there is none."""
    if family == "sdxl":
        return int(config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
    return int(config.get("pooled_projection_dim") or config.get("text_emb_dim") or 0)
