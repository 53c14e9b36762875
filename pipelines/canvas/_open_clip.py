"""The same CLIP for open_clip: `open_clip.create_model_and_transforms("local-dir:<folder>")`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel


def write(source: Path, target: Path) -> Path:
    """The CLIP of a transformers folder, written into another one for open_clip."""
    model = CLIPModel.from_pretrained(source)
    target.mkdir(parents=True, exist_ok=True)
    save_file(state(model), target / "open_clip_model.safetensors")
    (target / "open_clip_config.json").write_text(json.dumps(config(model), indent=1) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target / name)
    return target


def config(model: CLIPModel) -> dict[str, Any]:
    """What open_clip reads from `open_clip_config.json`."""
    text, vision = model.config.text_config, model.config.vision_config
    return {
        "model_cfg": {
            "embed_dim": model.config.projection_dim,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "layers": vision.num_hidden_layers,
                "width": vision.hidden_size,
                "head_width": vision.hidden_size // vision.num_attention_heads,
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
                "pool_type": "eos",
                "eos_id": text.eos_token_id,
                "hf_tokenizer_name": "canvas-clip",
            },
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
    }


def state(model: CLIPModel) -> dict[str, Tensor]:
    """The weights under open_clip's names: query, key and value of each layer are one matrix there."""
    have = {k.replace("text_model.text_model", "text_model"): v for k, v in model.state_dict().items()}
    out = {
        "logit_scale": have["logit_scale"],
        "text_projection": have["text_projection.weight"].T,
        "token_embedding.weight": have["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": have["text_model.embeddings.position_embedding.weight"],
        "visual.proj": have["visual_projection.weight"].T,
        "visual.class_embedding": have["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": have["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": have["vision_model.embeddings.patch_embedding.weight"],
    }
    for ours, theirs in (
        ("text_model.final_layer_norm", "ln_final"),
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
    ):
        for part in ("weight", "bias"):
            out[f"{theirs}.{part}"] = have[f"{ours}.{part}"]
    for tower, prefix, count in (
        ("text_model", "transformer", model.config.text_config.num_hidden_layers),
        ("vision_model", "visual.transformer", model.config.vision_config.num_hidden_layers),
    ):
        for k in range(count):
            ours, theirs = f"{tower}.encoder.layers.{k}", f"{prefix}.resblocks.{k}"
            for part in ("weight", "bias"):
                qkv = [have[f"{ours}.self_attn.{p}_proj.{part}"] for p in "qkv"]
                out[f"{theirs}.attn.in_proj_{part}"] = torch.cat(qkv)
                out[f"{theirs}.attn.out_proj.{part}"] = have[f"{ours}.self_attn.out_proj.{part}"]
                out[f"{theirs}.ln_1.{part}"] = have[f"{ours}.layer_norm1.{part}"]
                out[f"{theirs}.ln_2.{part}"] = have[f"{ours}.layer_norm2.{part}"]
                out[f"{theirs}.mlp.c_fc.{part}"] = have[f"{ours}.mlp.fc1.{part}"]
                out[f"{theirs}.mlp.c_proj.{part}"] = have[f"{ours}.mlp.fc2.{part}"]
    return {k: v.detach().clone().contiguous() for k, v in out.items()}
