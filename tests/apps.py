"""What ComfyUI (2026) and A1111 (1.10) make of a LoRA or LyCORIS file, from their rules, without either of them.

Both know a model's layers by the names of its first code, which this file lists itself, with shapes, from how those
networks are built. A key is picked up if a rule leads from its name to such a layer; else the app drops it, with a line
in the log at most.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class UNet:
    """A UNet of the Stable Diffusion kind: two residual blocks on each level.

    Attributes:
        wide: channels of the first level; the others have `times` as many.
        times: factor of each level.
        depth: transformer blocks of each level; the middle has the deepest one's.
        text: width of the prompt's states.
        linear: whether the projections around the transformer blocks are Linears, or convolutions of one pixel.
        pooled: width of the pooled vector, 0 without.
    """

    wide: int
    times: tuple[int, ...]
    depth: tuple[int, ...]
    text: int
    linear: bool = False
    pooled: int = 0

    def layers(self) -> Shapes:
        """Shape of every weight, by the name of its layer in the first code."""
        return dict(self._layers())

    def _layers(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        c, last = self.wide, len(self.times) - 1
        yield from {"time_embed.0": (4 * c, c), "time_embed.2": (4 * c, 4 * c)}.items()
        if self.pooled:
            yield from {"label_emb.0.0": (4 * c, self.pooled), "label_emb.0.2": (4 * c, 4 * c)}.items()
        yield "input_blocks.0.0", (c, 4, 3, 3)
        skips, now, n = [c], c, 0
        for level, factor in enumerate(self.times):
            for _ in range(2):
                n += 1
                yield from self._residual(f"input_blocks.{n}.0", now, now := factor * c)
                yield from self._attention(f"input_blocks.{n}.1", now, self.depth[level])
                skips.append(now)
            if level < last:
                n += 1
                yield f"input_blocks.{n}.0.op", (now, now, 3, 3)
                skips.append(now)
        yield from self._residual("middle_block.0", now, now)
        yield from self._attention("middle_block.1", now, max(self.depth[-2:]))
        yield from self._residual("middle_block.2", now, now)
        n = 0
        for level, factor in reversed(list(enumerate(self.times))):
            for k in range(3):
                yield from self._residual(f"output_blocks.{n}.0", now + skips.pop(), now := factor * c)
                yield from self._attention(f"output_blocks.{n}.1", now, self.depth[level])
                if level and k == 2:  # the upsampler comes after what is there
                    yield f"output_blocks.{n}.{1 + bool(self.depth[level])}.conv", (now, now, 3, 3)
                n += 1
        yield from {"out.0": (c,), "out.2": (4, c, 3, 3)}.items()

    def _residual(self, name: str, n: int, m: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from {f"{name}.in_layers.0": (n,), f"{name}.in_layers.2": (m, n, 3, 3)}.items()
        yield f"{name}.emb_layers.1", (m, 4 * self.wide)
        yield from {f"{name}.out_layers.0": (m,), f"{name}.out_layers.3": (m, m, 3, 3)}.items()
        if n != m:
            yield f"{name}.skip_connection", (m, n, 1, 1)

    def _attention(self, name: str, c: int, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        if not depth:
            return
        around = (c, c) if self.linear else (c, c, 1, 1)
        yield from {f"{name}.norm": (c,), f"{name}.proj_in": around, f"{name}.proj_out": around}.items()
        for k in range(depth):
            block = f"{name}.transformer_blocks.{k}"
            for part, width in (("attn1", c), ("attn2", self.text)):
                yield from {f"{block}.{part}.to_q": (c, c), f"{block}.{part}.to_out.0": (c, c)}.items()
                yield from {f"{block}.{part}.to_{x}": (c, width) for x in "kv"}.items()
            yield from {f"{block}.ff.net.0.proj": (8 * c, c), f"{block}.ff.net.2": (c, 4 * c)}.items()
            yield from {f"{block}.norm{i}": (c,) for i in (1, 2, 3)}.items()


SD1 = UNet(320, (1, 2, 4, 4), (1, 1, 1, 0), 768)
SD2 = UNet(320, (1, 2, 4, 4), (1, 1, 1, 0), 1024, linear=True)
SDXL = UNet(320, (1, 2, 4), (0, 2, 10), 2048, linear=True, pooled=2816)
CANVAS = UNet(64, (1, 2, 2, 2), (1, 1, 1, 0), 128)

PARTS = {"conv1": "in_layers.2", "conv2": "out_layers.3", "norm1": "in_layers.0", "norm2": "out_layers.0"}
PARTS |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
ALONE = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
ALONE |= {f"time_embedding.linear_{n}": f"time_embed.{2 * n - 2}" for n in (1, 2)}
ALONE |= {f"add_embedding.linear_{n}": f"label_emb.0.{2 * n - 2}" for n in (1, 2)}


def numbers(name: str) -> list[int]:
    """The numbers in a name, in order."""
    return [int(n) for n in re.findall(r"\d+", name)]


def twins(names: list[str], first: Shapes) -> dict[str, str]:
    """Layer of diffusers -> the same layer in the first code: blocks of a kind are the same in the order in which the
    network runs through them, and inside a block each kind of layer has one name.
    """

    def stems(pattern: str, where: list[str]) -> list[str]:
        return sorted({m[0] for n in where if (m := re.match(pattern, n))}, key=numbers)

    natives = list(first)
    out = {n: ALONE[n] for n in names if n in ALONE}
    for ours, theirs in (
        (r"down_blocks\.\d+\.resnets\.\d+(?=\.)", r"input_blocks\.\d+\.0(?=\.in_layers)"),
        (r"down_blocks\.\d+\.attentions\.\d+(?=\.)", r"input_blocks\.\d+\.1(?=\.)"),
        (r"down_blocks\.\d+\.downsamplers\.0\.conv$", r"input_blocks\.\d+\.0\.op$"),
        (r"mid_block\.resnets\.\d+(?=\.)", r"middle_block\.[02](?=\.)"),
        (r"mid_block\.attentions\.0(?=\.)", r"middle_block\.1(?=\.)"),
        (r"up_blocks\.\d+\.resnets\.\d+(?=\.)", r"output_blocks\.\d+\.0(?=\.)"),
        (r"up_blocks\.\d+\.attentions\.\d+(?=\.)", r"output_blocks\.\d+\.1(?=\.proj_in)"),
        (r"up_blocks\.\d+\.upsamplers\.0\.conv$", r"output_blocks\.\d+\.[12]\.conv$"),
    ):
        one, two = stems(ours, names), stems(theirs, natives)
        for a, b in zip(one, two, strict=True):
            for n in names:
                if n == a:
                    out[n] = b
                elif n.startswith(f"{a}."):
                    rest = n.removeprefix(f"{a}.")
                    out[n] = f"{b}.{PARTS.get(rest, rest) if 'resnets' in a else rest}"
    return out


def comfy(stem: str, first: Shapes, names: Mapping[str, str]) -> str | None:
    """The layer that ComfyUI updates for a key's first part.

    Args:
        stem: what stands before the first dot.
        first: the model's layers in the first code.
        names: diffusers' names of them.
    """
    known = {f"lora_unet_{n.replace('.', '_')}": n for n in first}
    known |= {f"lora_unet_{n.replace('.', '_')}": twin for n, twin in names.items()}
    return known.get(stem)


def a1111(stem: str, first: Shapes) -> str | None:
    """The layer that A1111 updates: by its reckoning from diffusers' numbers, else under the name itself."""
    known = {f"diffusion_model_{n.replace('.', '_')}": n for n in first}
    return known.get(_reckoned(stem)) or known.get(stem.replace("lora_unet", "diffusion_model"))


def _reckoned(stem: str) -> str:
    """Three layers to a block on the way down (two, and the downsampler) and on the way up."""
    name = stem.removeprefix("lora_unet_")
    if m := re.match(r"(down|up)_blocks_(\d+)_(resnets|attentions)_(\d+)_(.+)", name):
        side = "input" if m[1] == "down" else "output"
        n = 3 * int(m[2]) + int(m[4]) + (m[1] == "down")
        return f"diffusion_model_{side}_blocks_{n}_{int(m[3] == 'attentions')}_{_inside(m[3], m[5])}"
    if m := re.match(r"mid_block_(resnets|attentions)_(\d+)_(.+)", name):
        return f"diffusion_model_middle_block_{1 if m[1][0] == 'a' else 2 * int(m[2])}_{_inside(m[1], m[3])}"
    if m := re.match(r"down_blocks_(\d+)_downsamplers_0_conv", name):
        return f"diffusion_model_input_blocks_{3 * int(m[1]) + 3}_0_op"
    if m := re.match(r"up_blocks_(\d+)_upsamplers_0_conv", name):  # right for Stable Diffusion 1 and 2
        return f"diffusion_model_output_blocks_{3 * int(m[1]) + 2}_{2 if int(m[1]) else 1}_conv"
    if m := re.match(r"time_embedding_linear_(\d)", name):
        return f"diffusion_model_time_embed_{2 * int(m[1]) - 2}"
    ends = {"conv_in": "input_blocks_0_0", "conv_out": "out_2"}
    return f"diffusion_model_{ends[name]}" if name in ends else stem


def _inside(kind: str, rest: str) -> str:
    return PARTS.get(rest, rest).replace(".", "_") if kind == "resnets" else rest


def a1111_model(header: Mapping[str, str]) -> str:
    """For which models A1111's page of LoRAs shows a file."""
    if header.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if header.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if header else "every"


def unread_parts(keys: set[str]) -> set[str]:
    """Of keys that found their layer, those that one of the two apps would leave out for want of a partner: a bias
    without its weight (A1111), a norm's weight without its bias (A1111), its bias without its weight (both).
    """
    partners = {"lora_up.weight": "lora_down.weight", "lora_down.weight": "lora_up.weight", "alpha": "lora_up.weight"}
    partners |= {"diff": "diff", "diff_b": "diff", "w_norm": "b_norm", "b_norm": "w_norm"}
    out = set()
    for key in keys:
        stem, _, part = key.partition(".")
        if part not in partners or f"{stem}.{partners[part]}" not in keys:
            out.add(key)
    return out


# ---------------------------------------------------------------- transformers, ComfyUI only


def rows(native: str, *parts: str) -> dict[str, tuple[str, int]]:
    """Linears of diffusers that are rows of one layer in the first code, in order."""
    return {p: (native, k) for k, p in enumerate(parts)}


def same(*names: str) -> dict[str, tuple[str, int]]:
    """Layers with one name in both."""
    return {n: (n, 0) for n in names}


def under(ours: str, theirs: str, layers: Mapping[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    """A list of blocks under its two names; # is the number of a block."""
    return {f"{ours}.#.{n}": (f"{theirs}.#.{native}", k) for n, (native, k) in layers.items()}


def tower(name: str, top: str, bottom: str) -> dict[str, tuple[str, int]]:
    """An embedder of two Linears."""
    return {f"{name}.linear_1": (top, 0), f"{name}.linear_2": (bottom, 0)}


IMAGE, PROMPT = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
SIDES = (("", "img"), ("_context", "txt"))
FLUX_DOUBLE = {
    **rows("img_attn.qkv", *IMAGE),
    **rows("txt_attn.qkv", *PROMPT),
    **rows("img_attn.proj", "attn.to_out.0"),
    **rows("txt_attn.proj", "attn.to_add_out"),
    **rows("img_mod.lin", "norm1.linear"),
    **rows("txt_mod.lin", "norm1_context.linear"),
    **{
        f"ff{c}.net.{n}": (f"{s}_mlp.{n[0]}", 0) for c, s in (("", "img"), ("_context", "txt")) for n in ("0.proj", "2")
    },
    **{f"ff{c}.linear_{n}": (f"{s}_mlp.{k}", 0) for c, s in SIDES for n, k in (("in", 0), ("out", 2))},
}
FLUX_SINGLE = {
    **rows("linear1", *IMAGE, "proj_mlp"),
    **rows("linear2", "proj_out"),
    **rows("modulation.lin", "norm.linear"),
    **rows("linear1", "attn.to_qkv_mlp_proj"),
    **rows("linear2", "attn.to_out"),
}
FLUX = {
    **under("transformer_blocks", "double_blocks", FLUX_DOUBLE),
    **under("single_transformer_blocks", "single_blocks", FLUX_SINGLE),
    **rows("img_in", "x_embedder"),
    **rows("txt_in", "context_embedder"),
    **rows("final_layer.linear", "proj_out"),
    **rows("final_layer.adaLN_modulation.1", "norm_out.linear"),
    **tower("time_text_embed.timestep_embedder", "time_in.in_layer", "time_in.out_layer"),
    **tower("time_text_embed.text_embedder", "vector_in.in_layer", "vector_in.out_layer"),
    **tower("time_text_embed.guidance_embedder", "guidance_in.in_layer", "guidance_in.out_layer"),
}
SD3 = {
    **under(
        "transformer_blocks",
        "joint_blocks",
        {
            **rows("x_block.attn.qkv", *IMAGE),
            **rows("context_block.attn.qkv", *PROMPT),
            **rows("x_block.attn2.qkv", "attn2.to_q", "attn2.to_k", "attn2.to_v"),
            **rows("x_block.attn.proj", "attn.to_out.0"),
            **rows("x_block.attn2.proj", "attn2.to_out.0"),
            **rows("context_block.attn.proj", "attn.to_add_out"),
            **rows("x_block.adaLN_modulation.1", "norm1.linear"),
            **rows("context_block.adaLN_modulation.1", "norm1_context.linear"),
            **rows("x_block.mlp.fc1", "ff.net.0.proj"),
            **rows("x_block.mlp.fc2", "ff.net.2"),
            **rows("context_block.mlp.fc1", "ff_context.net.0.proj"),
            **rows("context_block.mlp.fc2", "ff_context.net.2"),
        },
    ),
    **same("context_embedder"),
    **rows("final_layer.linear", "proj_out"),
    **rows("final_layer.adaLN_modulation.1", "norm_out.linear"),
    **tower("time_text_embed.timestep_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2"),
    **tower("time_text_embed.text_embedder", "y_embedder.mlp.0", "y_embedder.mlp.2"),
}
AURA_FF = {f"{n}": f"c_{m}" for n, m in (("linear_1", "fc1"), ("linear_2", "fc2"), ("out_projection", "proj"))}
AURA = {
    **under(
        "joint_transformer_blocks",
        "double_layers",
        {
            **{f"attn.to_{x}": (f"attn.w2{x}", 0) for x in "qkv"},
            **{f"attn.add_{x}_proj": (f"attn.w1{x}", 0) for x in "qkv"},
            **rows("attn.w2o", "attn.to_out.0"),
            **rows("attn.w1o", "attn.to_add_out"),
            **{f"ff.{n}": (f"mlpX.{m}", 0) for n, m in AURA_FF.items()},
            **{f"ff_context.{n}": (f"mlpC.{m}", 0) for n, m in AURA_FF.items()},
            **rows("modX.1", "norm1.linear"),
            **rows("modC.1", "norm1_context.linear"),
        },
    ),
    **under(
        "single_transformer_blocks",
        "single_layers",
        {
            **{f"attn.to_{x}": (f"attn.w1{x}", 0) for x in "qkv"},
            **rows("attn.w1o", "attn.to_out.0"),
            **{f"ff.{n}": (f"mlp.{m}", 0) for n, m in AURA_FF.items()},
            **rows("modCX.1", "norm1.linear"),
        },
    ),
    **tower("time_step_proj", "t_embedder.mlp.0", "t_embedder.mlp.2"),
    **rows("cond_seq_linear", "context_embedder"),
    **rows("init_x_linear", "pos_embed.proj"),
    **rows("final_linear", "proj_out"),
    **rows("modF.1", "norm_out.linear"),
}
PIXART = {
    **under(
        "transformer_blocks",
        "blocks",
        {
            **rows("attn.qkv", "attn1.to_q", "attn1.to_k", "attn1.to_v"),
            **rows("attn.proj", "attn1.to_out.0"),
            **rows("cross_attn.q_linear", "attn2.to_q"),
            **rows("cross_attn.kv_linear", "attn2.to_k", "attn2.to_v"),
            **rows("cross_attn.proj", "attn2.to_out.0"),
            **rows("mlp.fc1", "ff.net.0.proj"),
            **rows("mlp.fc2", "ff.net.2"),
        },
    ),
    **tower("adaln_single.emb.timestep_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2"),
    **tower("adaln_single.emb.resolution_embedder", "csize_embedder.mlp.0", "csize_embedder.mlp.2"),
    **tower("adaln_single.emb.aspect_ratio_embedder", "ar_embedder.mlp.0", "ar_embedder.mlp.2"),
    **tower("caption_projection", "y_embedder.y_proj.fc1", "y_embedder.y_proj.fc2"),
    **rows("t_block.1", "adaln_single.linear"),
    **rows("final_layer.linear", "proj_out"),
}
Z_BLOCK = {
    **rows("attention.qkv", "attention.to_q", "attention.to_k", "attention.to_v"),
    **rows("attention.out", "attention.to_out.0"),
    **same("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0"),
}
Z_IMAGE = {
    **{k: v for part in ("layers", "context_refiner", "noise_refiner") for k, v in under(part, part, Z_BLOCK).items()},
    **rows("x_embedder", "all_x_embedder.2-1"),
    **rows("final_layer.linear", "all_final_layer.2-1.linear"),
    **rows("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"),
    **same("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2"),
}
COMFY: dict[str, dict[str, tuple[str, int]] | None] = {
    **dict.fromkeys(("flux", "flux-cfg", "flux2", "flux2-klein", "chroma"), FLUX),
    "sd3": SD3,
    "aura-flow": AURA,
    **dict.fromkeys(("pixart-alpha", "pixart-sigma"), PIXART),
    "z-image": Z_IMAGE,
    **dict.fromkeys(("hidream", "qwen-image"), None),  # its own code has diffusers' names
}
"""Family -> Linear -> (layer of the first code, which of its rows). Of families that are not here ComfyUI knows no PEFT
names.
"""
BARE = {
    "flux2": {"time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer"}
    | {"time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer"}
}
BARE["flux2-klein"] = BARE["flux2"]
"""Layers that only the first code's own names lead to."""


def peft(family: str, name: str) -> tuple[str, int] | None:
    """The layer, and which of its rows, that ComfyUI updates for `transformer.<name>.lora_A.weight`."""
    if family not in COMFY:
        return None
    table = COMFY[family]
    if table is None:
        return name, 0
    number = next(iter(re.findall(r"\.(\d+)\.", name)), "") if ".#." not in name else "#"
    found = table.get(name) or table.get(re.sub(r"\.\d+\.", ".#.", name, count=1))
    return found and (found[0].replace("#", number), found[1])


def native(family: str, name: str) -> tuple[str, int] | None:
    """The same layer, under whatever name: where a kohya file must put it."""
    bare = BARE.get(family, {}).get(name)
    return (bare, 0) if bare else peft(family, name)
