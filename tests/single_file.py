"""Pipelines written as one file in the original layout: what `from_single_file` reads, the other way round."""

import itertools
import re
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file

import tiny

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet(net) -> dict[str, torch.Tensor]:
    """LDM's names: blocks in one row, a resnet first in each, attention second, down- and upsampling last."""
    per, out = net.config.layers_per_block, {}
    for key, value in net.state_dict().items():
        head, _, leaf = key.rpartition(".")
        if head in ENDS:
            out[f"{ENDS[head]}.{leaf}"] = value
            continue
        side, rest = key.split("_", 1)[0], None
        if side == "mid":
            kind, n, rest = re.match(r"mid_block\.(\w+)\.(\d)\.(.+)", key).groups()
            place = f"middle_block.{1 if kind == 'attentions' else 2 * int(n)}"
        else:
            i, kind, j, rest = re.match(r"\w+_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", key).groups()
            i, j = int(i), int(j)
            if kind == "downsamplers":
                place, rest = f"input_blocks.{(i + 1) * (per + 1)}.0", rest.replace("conv", "op")
            elif kind == "upsamplers":
                attends = "CrossAttn" in net.config.up_block_types[i]
                place = f"output_blocks.{i * (per + 1) + per}.{2 if attends else 1}"
            else:
                row = 1 + i * (per + 1) + j if side == "down" else i * (per + 1) + j
                place = f"{'input' if side == 'down' else 'output'}_blocks.{row}.{int(kind == 'attentions')}"
        if "resnets" in key:
            name, _, leaf = rest.partition(".")
            rest = f"{RESNET[name]}.{leaf}"
        out[f"{place}.{rest}"] = value
    assert len(out) == len(net.state_dict())

    return out


def vae(net) -> dict[str, torch.Tensor]:
    """Its decoder's blocks are counted from the other end, its attention is made of convolutions."""
    last, out = len(net.config.block_out_channels) - 1, {}
    for key, value in net.state_dict().items():
        new = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0" in new:
            head, _, rest = new.partition("mid_block.attentions.0.")
            part, _, leaf = rest.rpartition(".")
            new = f"{head}mid.attn_1.{ATTENTION[part]}.{leaf}"
            value = value[..., None, None] if value.ndim == 2 else value
        out[new] = value
    return out


def open_clip(net) -> dict[str, torch.Tensor]:
    """Queries, keys and values of a layer in one matrix; the projection transposed."""
    state, out = net.state_dict(), {}
    for key, value in state.items():
        if ".k_proj." in key or ".v_proj." in key or key.endswith("position_ids"):
            continue
        if ".q_proj." in key:
            leaf = key.rpartition(".")[2]
            value = torch.cat([state[key.replace(".q_proj.", f".{c}_proj.")] for c in "qkv"])
            key = key.replace(f"q_proj.{leaf}", f"in_proj_{leaf}")
        new = key.removeprefix("text_model.")
        for a, b in (
            ("encoder.layers.", "transformer.resblocks."),
            ("embeddings.token_embedding", "token_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("final_layer_norm", "ln_final"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            (".self_attn.", ".attn."),
            (".fc1.", ".c_fc."),
            (".fc2.", ".c_proj."),
            ("text_projection.weight", "text_projection"),
        ):
            new = new.replace(a, b)
        out[new] = value.T if new == "text_projection" else value
    return out


def clip(net) -> dict[str, torch.Tensor]:
    """As transformers had it before the model was flattened."""
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("text_projection")}
    return {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in state.items()}


def _swapped(value: torch.Tensor) -> torch.Tensor:
    shift, scale = value.chunk(2)
    return torch.cat([scale, shift])


def mmdit(net) -> dict[str, torch.Tensor]:
    """Stable Diffusion 3's transformer: two streams a block, scale and shift the other way round at the end."""
    state, last, out = net.state_dict(), net.config.num_layers - 1, {}
    plain = {
        "pos_embed.pos_embed": "pos_embed",
        "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "context_embedder": "context_embedder",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    inner = {
        "attn.norm_q": "x_block.attn.ln_q",
        "attn.norm_k": "x_block.attn.ln_k",
        "attn.norm_added_q": "context_block.attn.ln_q",
        "attn.norm_added_k": "context_block.attn.ln_k",
        "attn.to_out.0": "x_block.attn.proj",
        "attn.to_add_out": "context_block.attn.proj",
        "attn2.norm_q": "x_block.attn2.ln_q",
        "attn2.norm_k": "x_block.attn2.ln_k",
        "attn2.to_out.0": "x_block.attn2.proj",
        "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
    }
    triples = {
        "attn.to_q": ("x_block.attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
        "attn.add_q_proj": ("context_block.attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
        "attn2.to_q": ("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
    }
    seconds = {n for _, names in triples.values() for n in names[1:]}
    for key, value in state.items():
        if key in plain:
            out[plain[key]] = value
            continue
        head, _, leaf = key.rpartition(".")
        if head in plain:
            out[f"{plain[head]}.{leaf}"] = _swapped(value) if head == "norm_out.linear" else value
            continue
        n, part = re.match(r"transformer_blocks\.(\d+)\.(.+)", head).groups()
        where = f"joint_blocks.{n}"
        if part in triples:
            name, parts = triples[part]
            out[f"{where}.{name}.{leaf}"] = torch.cat([state[f"transformer_blocks.{n}.{p}.{leaf}"] for p in parts])
        elif part not in seconds:
            swap = int(n) == last and part == "norm1_context.linear"
            out[f"{where}.{inner[part]}.{leaf}"] = _swapped(value) if swap else value
    return out


def _named(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{k}": v.detach().clone().contiguous() for k, v in state.items()}


def whole(pipe: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """Denoiser, autoencoder and text encoders in one."""
    out = _named("first_stage_model", vae(pipe.vae))
    if hasattr(pipe, "transformer"):
        out |= _named("model.diffusion_model", mmdit(pipe.transformer))
        out |= _named("text_encoders.clip_l.transformer", clip(pipe.text_encoder))
        big = pipe.text_encoder_2
        out |= _named(
            "text_encoders.clip_g.transformer", clip(big) | {"text_projection.weight": big.text_projection.weight}
        )
        return out | _named("text_encoders.t5xxl.transformer", pipe.text_encoder_3.state_dict())
    out |= _named("model.diffusion_model", unet(pipe.unet))
    if hasattr(pipe, "text_encoder_2"):
        out |= _named("conditioner.embedders.0.transformer", clip(pipe.text_encoder))
        return out | _named("conditioner.embedders.1.model", open_clip(pipe.text_encoder_2))
    if pipe.scheduler.config.prediction_type == "v_prediction":
        return out | _named("cond_stage_model.model", open_clip(pipe.text_encoder))
    return out | _named("cond_stage_model.transformer", clip(pipe.text_encoder))


def write(pipe: DiffusionPipeline, path) -> None:
    """One file in the original layout."""
    save_file(whole(pipe), path)


def _two_widths(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """The two CLIP towers of different widths, by which a single file's are told apart."""
    size = len(pipe.tokenizer)
    torch.manual_seed(1)
    pipe.register_modules(
        text_encoder=tiny.text_encoder(size, 24, type(pipe.text_encoder)),
        text_encoder_2=tiny.text_encoder(size, 40, type(pipe.text_encoder_2)),
    )
    return pipe


def sdxl() -> DiffusionPipeline:
    """SDXL with towers of two widths."""
    pipe = _two_widths(tiny.sdxl())
    config = {**pipe.unet.config, "projection_class_embeddings_input_dim": 40 + 6 * 8}
    pipe.register_modules(unet=UNet2DConditionModel.from_config(config).eval())
    return pipe


def sd3() -> DiffusionPipeline:
    """Stable Diffusion 3 with towers of two widths; the small one has no projection in a file."""
    pipe = _two_widths(tiny.sd3())
    with torch.no_grad():
        pipe.text_encoder.text_projection.weight.copy_(torch.eye(24))
    return pipe


MAKERS = {"sd": tiny.sd, "sd2": tiny.sd2, "sdxl": sdxl, "sd3": sd3}


def gguf(state: dict[str, torch.Tensor], path: Path, kinds: tuple[str, ...] = ("Q8_0",)) -> None:
    """A .gguf file of a denoiser: matrices of whole blocks of 32 in these kinds in turn, all else in float32."""
    import gguf as library

    writer, turn = library.GGUFWriter(path, "test"), itertools.cycle(library.GGMLQuantizationType[k] for k in kinds)
    for name, value in state.items():
        kind = next(turn) if value.ndim == 2 and value.shape[1] % 32 == 0 else None
        whole = value.float().numpy()
        writer.add_tensor(name, whole if kind is None else library.quants.quantize(whole, kind), raw_dtype=kind)
    for finish in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        finish()
