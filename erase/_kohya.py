"""Kohya files: names and fused layers of the models' first code, which ComfyUI, A1111 and diffusers' own loader read.

A name is here only if diffusers 0.42 reads it back: what it drops without a word (the embedders and last layers of
Flux.1) or does not know (the shared modulations of Flux.2) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..prompts import InputError
from ._comfy import UNREAD
from ._files import one_rank

Pair = tuple[Tensor, Tensor]
Layout = Mapping[str, tuple[str, ...]]
"""Layer of a kohya file -> the Linears of diffusers whose rows it holds, in order; # is the number of a block."""


def blocks(kohya: str, path: str, layers: Mapping[str, str]) -> Layout:
    """A list of blocks under its two names. `layers`: kohya name -> Linears, with blanks between them."""
    return {f"{kohya}_#_{name}": tuple(f"{path}.#.{p}" for p in parts.split()) for name, parts in layers.items()}


def same(*paths: str) -> dict[str, str]:
    """Layers whose kohya name is diffusers' own with underscores."""
    return {path.replace(".", "_"): path for path in paths}


JOINT = {
    "img_attn_qkv": "attn.to_q attn.to_k attn.to_v",
    "img_attn_proj": "attn.to_out.0",
    "txt_attn_qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    "txt_attn_proj": "attn.to_add_out",
}
FLUX: Layout = {
    **blocks(
        "double_blocks",
        "transformer_blocks",
        {
            **JOINT,
            "img_mlp_0": "ff.net.0.proj",
            "img_mlp_2": "ff.net.2",
            "img_mod_lin": "norm1.linear",
            "txt_mlp_0": "ff_context.net.0.proj",
            "txt_mlp_2": "ff_context.net.2",
            "txt_mod_lin": "norm1_context.linear",
        },
    ),
    **blocks(
        "single_blocks",
        "single_transformer_blocks",
        {
            "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp",
            "linear2": "proj_out",
            "modulation_lin": "norm.linear",
        },
    ),
}
FLUX_2: Layout = {
    **blocks(
        "double_blocks",
        "transformer_blocks",
        {
            **JOINT,
            "img_mlp_0": "ff.linear_in",
            "img_mlp_2": "ff.linear_out",
            "txt_mlp_0": "ff_context.linear_in",
            "txt_mlp_2": "ff_context.linear_out",
        },
    ),
    **blocks(
        "single_blocks", "single_transformer_blocks", {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"}
    ),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in_in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    "time_in_out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
    "final_layer_linear": ("proj_out",),
}
TIME = "time_text_embed.timestep_embedder"
QWEN: Layout = {
    **blocks(
        "transformer_blocks",
        "transformer_blocks",
        same(
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            *("img_mlp.net.0.proj", "img_mlp.net.2", "img_mod.1", "txt_mlp.net.0.proj", "txt_mlp.net.2", "txt_mod.1"),
        ),
    ),
    **{k: (p,) for k, p in same("img_in", "txt_in", "proj_out", "norm_out.linear").items()},
    **{k: (p,) for k, p in same(f"{TIME}.linear_1", f"{TIME}.linear_2").items()},
}
Z_BLOCK = {
    "attention_qkv": "attention.to_q attention.to_k attention.to_v",
    "attention_out": "attention.to_out.0",
    **same("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0"),
}
Z_IMAGE: Layout = {
    **blocks("layers", "layers", Z_BLOCK),
    **blocks("noise_refiner", "noise_refiner", Z_BLOCK),
    **blocks("context_refiner", "context_refiner", Z_BLOCK),
    **{k: (p,) for k, p in same("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2").items()},
}
TRANSFORMERS: Mapping[str, Layout] = {
    "flux": FLUX,
    "flux-cfg": FLUX,
    "chroma": FLUX,
    "flux2": FLUX_2,
    "flux2-klein": FLUX_2,
    "qwen-image": QWEN,
    "z-image": Z_IMAGE,
}
ROWS = {FLUX["single_blocks_#_linear1"]: (3072, 3072, 3072, 12288)}
"""Rows of each Linear in a fused layer where diffusers' reader knows no others; elsewhere all have the same number."""

UNETS = {"unet": "lora_unet", "text_encoder": "lora_te"}
SDXL = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
TWICE = {"lora_unet_up_blocks_0_upsamplers_0_conv": "lora_unet_output_blocks_2_2_conv"}
"""Of SDXL: a layer that A1111 finds under its first name only (it reckons the other as in Stable Diffusion 1) and
diffusers under its own. A file with both is read by each app once: ComfyUI knows them for one layer, A1111 drops the
first, diffusers the second."""
VERSIONS = {"sdxl": "sdxl_base_v1-0", "flux": "flux1", "flux-cfg": "flux1"}
SD2_WIDTH = 1024  # of the prompt's states; 768 in Stable Diffusion 1


def needs_kohya(names: Iterable[str], family: str = "") -> bool:
    """Whether a folder holds a kohya file too: of UNets, whose PEFT keys ComfyUI and A1111 do not read."""
    return all(n.partition(".")[0] in (SDXL if family == "sdxl" else UNETS) for n in names)


def kohya_header(shapes: Mapping[str, tuple[int, ...]], family: str) -> dict[str, str]:
    """What A1111 reads in a file's header: without it, its page of LoRAs takes the file for one of Stable Diffusion 1
    and hides it from all other models.

    Args:
        shapes: of the edited weights, by full name.
        family: of the base.
    """
    if family in VERSIONS:
        return {"ss_base_model_version": VERSIONS[family]}
    if family != "sd":
        return {}
    reads = re.compile(r"attn2\.to_[kv](\.weight)?$")
    second = any(reads.search(n) and s[1] == SD2_WIDTH for n, s in shapes.items())
    return {"ss_base_model_version": "sd_v2", "ss_v2": "True"} if second else {"ss_base_model_version": "sd_v1"}


def kohya_keys(factors: Mapping[str, Pair], family: str = "") -> dict[str, Tensor]:
    """`lora_unet_<layer>.lora_down.weight` [r, in], `.lora_up.weight` [out, r] and `.alpha` (= r).

    Args:
        factors: A [r, in] and B [out, r] for each full module name.
        family: of the base; Stable Diffusion 1 and 2 need none.

    Raises:
        InputError: some Linear has no name there that diffusers reads, or another size than it reads.
    """
    pairs = one_rank(factors)
    out = {}
    for layer, (parts, rows) in _layers(pairs, family).items():
        a, b = fused([pairs.get(p) for p in parts], rows) if len(parts) > 1 else pairs[parts[0]]
        for name in (layer, TWICE[layer]) if family == "sdxl" and layer in TWICE else (layer,):
            out[f"{name}.lora_down.weight"], out[f"{name}.lora_up.weight"] = a.clone(), b.clone()
            out[f"{name}.alpha"] = torch.tensor(float(a.shape[0]))
    return out


def fused(pairs: Sequence[Pair | None], rows: Sequence[int]) -> Pair:
    """The factors of one layer that holds the rows of several Linears, one below the other.

    Args:
        pairs: A [r, in] and B [rows_i, r] of each, of one rank; None where there is no update.
        rows: how many rows each has.

    Returns:
        A [n r, in], stacked, and B [sum of rows, n r], block-diagonal: readers find the n parts again, exactly.
    """
    a, b = next(pair for pair in pairs if pair is not None)
    stack = torch.cat([torch.zeros_like(a) if pair is None else pair[0] for pair in pairs])
    grown = [b.new_zeros(n, b.shape[1]) if pair is None else pair[1] for pair, n in zip(pairs, rows, strict=True)]
    return stack, torch.block_diag(*grown)


def _layers(pairs: Mapping[str, Pair], family: str) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Layer in the file -> full names of the Linears it holds, those without an update too, and the rows of each."""
    instead = "export to peft instead" + (", which ComfyUI reads too" if family in UNREAD else "")
    if family not in TRANSFORMERS:
        return {unet_layer(n, family, instead): ((n,), (b.shape[0],)) for n, (_, b) in pairs.items()}
    where = {f"transformer.{p}": layer for layer, parts in TRANSFORMERS[family].items() for p in parts}
    patterns = {n: re.sub(r"\.\d+\.", ".#.", n, count=1) for n in pairs}
    if lost := sorted({p for p in patterns.values() if p not in where}):
        raise InputError(f"kohya files of {family} have no name that diffusers reads for {', '.join(lost)}: {instead}")
    out: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    for name, pattern in patterns.items():
        layer, number = where[pattern], next(iter(re.findall(r"\.(\d+)\.", name)), "")
        linears, rows = TRANSFORMERS[family][layer], pairs[name][1].shape[0]
        parts = tuple(f"transformer.{p}".replace("#", number) for p in linears)
        key = f"lora_unet_{layer.replace('#', number)}"
        _, all_rows = out.setdefault(key, (parts, ROWS.get(linears, (rows,) * len(parts))))
        if rows != (want := all_rows[parts.index(name)]):
            raise InputError(f"kohya files of {family} take {want} rows for {name}, got {rows}: {instead}")
    return out


def unet_layer(name: str, family: str = "", instead: str = "export to component instead") -> str:
    """The name of a UNet's layer, or of its text encoder's.

    Raises:
        InputError: it is of another component.
    """
    component, _, path = name.partition(".")
    prefixes = SDXL if family == "sdxl" else UNETS
    if component not in prefixes:
        raise InputError(f"kohya files have no name for {component!r}: {instead}")
    # SDXL's pooled path keeps its original name in every kohya reader
    path = re.sub(r"^add_embedding\.linear_([12])$", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}", path)
    return f"{prefixes[component]}_{path.replace('.', '_')}"
