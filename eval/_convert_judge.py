"""UnlearnCanvas' published judges, timm checkpoints in a pickle, as transformers folders. The one place where a pickle
is opened, on the user's word, and for tensors only.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from ..erase import write_folder
from ..prompts import UNLEARN_CANVAS, InputError, World, first_line, unknown
from ._judge import LENS_FILE, RECORD_FILE, Lens

DOMAINS = ("style", "object")
HEAD = 64
"""Width of an attention head in every ViT of the augreg family."""


def convert_judge(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    kind: str,
    world: World = UNLEARN_CANVAS,
    heads: int | None = None,
    force: bool = False,
) -> Path:
    """Write a judge from a timm ViT checkpoint (`style50.pth`: "style", `style50_cls.pth`: "object"), for `Judges`.

    Args:
        source: the file; a bare state dict, or one under "model_state_dict".
        out: folder of the judges; this one goes into its sub-folder of that kind.
        kind: "style" or "object": whose names its classes are, in the order of the published lists.
        world: whose.
        heads: attention heads; by default width / 64, as in every such ViT.
        force: replace a judge that is there.

    Returns:
        The folder of this judge.

    Raises:
        InputError: not readable as tensors alone, not the ViT expected, or another number of classes.
    """
    if kind not in DOMAINS:
        raise unknown("kind of judge", kind, DOMAINS)
    path = Path(source)
    state, config = translated(_state(path), str(path), heads)
    labels = [n.replace(" ", "_") for n in world.names(kind)]
    if config.pop("classes") != len(labels):
        classes = state["classifier.weight"].shape[0]
        raise InputError(
            f"{path} has {classes} classes, {world.name} has {len(labels)} {kind}s: is it the {kind} judge (--kind)?"
        )
    vit = ViTConfig(
        **config,
        id2label=dict(enumerate(labels)),
        label2id={n: k for k, n in enumerate(labels)},
        architectures=["ViTForImageClassification"],
    )
    with torch.device("meta"):
        model = ViTForImageClassification(vit)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    got = {k: tuple(v.shape) for k, v in state.items()}
    if wanted != got:
        odd = sorted(k for k in wanted.keys() | got.keys() if wanted.get(k) != got.get(k))
        raise InputError(
            f"{path} is no plain timm ViT: {odd[0]} is {got.get(odd[0])}, expected {wanted.get(odd[0])} "
            f"({len(odd)} such weights)"
        )

    def fill(folder: Path) -> None:
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
        vit.save_pretrained(folder)
        lens = Lens((config["image_size"],) * 2)
        (folder / LENS_FILE).write_text(json.dumps(lens.to_json(), indent=1) + "\n", encoding="utf-8")
        told = {"kind": kind, "world": world.name, "made from": path.name}
        (folder / RECORD_FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    return write_folder(Path(out) / kind, fill, holds="config.json", force=force)


def _state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, BadZipFile, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read as tensors alone ({first_line(error)}); nothing else in it is run"
        ) from error
    value = value.get("model_state_dict", value) if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping) or not all(isinstance(v, Tensor) for v in value.values()):
        raise InputError(f"{path} holds no state dict: expected names and tensors, or those under 'model_state_dict'")
    return {str(k).removeprefix("module."): v for k, v in value.items()}


def translated(state: Mapping[str, Tensor], origin: str, heads: int | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A timm ViT's weights under transformers' names, in float32, and the config that they imply.

    timm keeps queries, keys and values in one Linear [3 D, D], in this order; its layer norms use 1e-6.

    Raises:
        InputError: a weight is missing, or one that a plain ViT does not have is there.
    """
    left = {k: v.detach().to(torch.float32) for k, v in state.items()}

    def take(name: str) -> Tensor:
        if name not in left:
            raise InputError(f"{origin} is no timm ViT: it has no {name!r}")
        return left.pop(name)

    patch, position = take("patch_embed.proj.weight"), take("pos_embed")
    width, size = patch.shape[0], patch.shape[-1]
    tokens = position.shape[1] - 1
    side = round(tokens**0.5)
    if side * side != tokens:
        raise InputError(f"{origin} is no plain timm ViT: expected a class token and a square of patches, got {tokens}")
    if heads is None and width % HEAD:
        raise InputError(f"{origin}: width {width} is no multiple of {HEAD}: say how many heads it has with --heads")
    out = {
        "vit.embeddings.cls_token": take("cls_token"),
        "vit.embeddings.position_embeddings": position,
        "vit.embeddings.patch_embeddings.projection.weight": patch,
        "vit.embeddings.patch_embeddings.projection.bias": take("patch_embed.proj.bias"),
    }
    plain = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    plain |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    depth = 1 + max((int(k.split(".")[1]) for k in left if k.startswith("blocks.")), default=-1)
    for n in range(depth):
        for part in ("weight", "bias"):
            for old, new in plain.items():
                out[f"vit.layers.{n}.{new}.{part}"] = take(f"blocks.{n}.{old}.{part}")
            for name, third in zip("qkv", take(f"blocks.{n}.attn.qkv.{part}").chunk(3), strict=True):
                out[f"vit.layers.{n}.attention.{name}_proj.{part}"] = third
    for part in ("weight", "bias"):
        out[f"vit.layernorm.{part}"] = take(f"norm.{part}")
        out[f"classifier.{part}"] = take(f"head.{part}")
    if left:
        raise InputError(f"{origin} is no plain timm ViT: it also has {sorted(left)[0]!r} ({len(left)} such weights)")
    if not depth:
        raise InputError(f"{origin} is no timm ViT: it has no 'blocks.0'")
    return out, {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads or width // HEAD,
        "intermediate_size": out["vit.layers.0.mlp.fc1.weight"].shape[0],
        "patch_size": size,
        "image_size": side * size,
        "layer_norm_eps": 1e-6,
        "classes": out["classifier.weight"].shape[0],
    }
