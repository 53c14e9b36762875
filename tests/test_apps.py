"""Every file that goes to ComfyUI and A1111, key by key, against those apps' own rules (tests/apps.py): nothing of it
is dropped, everything lands where it belongs, and at the right strength.
"""

from dataclasses import replace

import apps
import pytest
import torch
from diffusers import UNet2DConditionModel
from families import EVERY, build
from golden import plain
from safetensors import safe_open
from safetensors.torch import load_file

from erasers.erase import Change, Delta, Eraser, describe
from erasers.erase._card import card
from erasers.erase._comfy import UNREAD, unread
from erasers.erase._convert import lycoris_keys, lycoris_layer
from erasers.erase._kohya import TRANSFORMERS, kohya_header, kohya_keys, unet_layer

UP, DOWN = ("UpBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "CrossAttnDownBlock2D")
SD = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (DOWN[1],) * 3 + DOWN[:1],
    "up_block_types": UP[:1] + (UP[1],) * 3,
}
REAL = {
    "sd1": ("sd", apps.SD1, {**SD, "cross_attention_dim": 768, "attention_head_dim": 8}),
    "sd2": (
        "sd",
        apps.SD2,
        {**SD, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    ),
    "sdxl": (
        "sdxl",
        apps.SDXL,
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": DOWN[:1] + DOWN[1:] * 2,
            "up_block_types": UP[1:] * 2 + UP[:1],
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
}


@pytest.fixture(scope="module", params=REAL)
def real(request):
    """(family, shape of each layer, layers in the first code, the first code's name of each): the released UNets,
    without their weights.
    """
    family, unet, config = REAL[request.param]
    with torch.device("meta"):
        model = UNet2DConditionModel(**config)
    shapes = {n.removesuffix(".weight"): tuple(p.shape) for n, p in model.named_parameters() if n.endswith(".weight")}
    first = unet.layers()
    return family, shapes, first, apps.twins(list(shapes), first)


def pairs(shapes):
    """Factors of rank 1 for every Linear and convolution."""
    return {
        f"unet.{n}": (torch.ones(1, *s[1:]), torch.ones(s[0], 1, *(1 for _ in s[2:])))
        for n, s in shapes.items()
        if len(s) > 1
    }


def test_the_lists_are_the_released_networks(real):
    """Layer by layer, each once, of the same shape: what the other tests lean on."""
    _, shapes, first, twins = real
    assert sorted(twins) == sorted(shapes)
    assert sorted(twins.values()) == sorted(first)
    assert {n: first[twins[n]] for n in shapes} == shapes


def test_kohya_files(real):
    family, shapes, first, twins = real
    keys = kohya_keys(pairs(shapes), family)
    assert apps.unread_parts(set(keys)) == set()
    read, dropped = {"comfy": {}, "a1111": {}}, []
    for stem in {k.partition(".")[0] for k in keys}:
        there, here = apps.comfy(stem, first, twins), apps.a1111(stem, first)
        assert there is not None, stem
        if here is None:
            dropped.append(stem)
        else:
            assert here == there, stem
            assert here not in read["a1111"], "twice"
            read["a1111"][here] = stem
        read["comfy"].setdefault(there, []).append(stem)
        assert keys[f"{stem}.alpha"].item() == len(keys[f"{stem}.lora_down.weight"]), "both scale by alpha / rank"
    wanted = {twins[n] for n, s in shapes.items() if len(s) > 1}
    assert set(read["a1111"]) == set(read["comfy"]) == wanted
    twice = [stems for stems in read["comfy"].values() if len(stems) > 1]
    assert (dropped, len(twice)) == ((["lora_unet_up_blocks_0_upsamplers_0_conv"], 1) if family == "sdxl" else ([], 0))
    for stems in twice:  # ComfyUI keeps one update for a layer, whichever comes last
        assert all(torch.equal(keys[f"{stems[0]}.{p}"], keys[f"{stems[1]}.{p}"]) for p in ("lora_up.weight", "alpha"))


def test_lycoris_files(real):
    family, shapes, first, twins = real
    stems = {lycoris_layer(f"unet.{n}", family): twins[n] for n in shapes}
    assert len(stems) == len(shapes)
    for stem, twin in stems.items():
        assert apps.comfy(stem, first, twins) == apps.a1111(stem, first) == twin, stem


def test_the_checker_sees_what_would_be_dropped(real):
    """Diffusers' own names for these layers lead A1111 nowhere."""
    family, _, first, _ = real
    assert apps.a1111("lora_unet_conv_norm_out", first) is None
    stem = unet_layer("unet.up_blocks.0.upsamplers.0.conv", family)
    assert (apps.a1111(stem, first) is None) == (family == "sdxl")
    assert apps.a1111("lora_unet_down_blocks_9_attentions_0_proj_in", first) is None
    assert apps.unread_parts({"x.diff_b", "y.w_norm"}) == {"x.diff_b", "y.w_norm"}


def test_text_encoders_go_by_the_names_that_a1111_tells_them_apart_by():
    """None of the methods edits one; a LoRA of somebody's own method may."""
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    for family, component, prefix in (
        ("sd", "text_encoder", "lora_te"),
        ("sdxl", "text_encoder", "lora_te1"),
        ("sdxl", "text_encoder_2", "lora_te2"),
    ):
        assert unet_layer(f"{component}.{layer}", family) == f"{prefix}_{layer.replace('.', '_')}"


def test_the_parts_of_a_lycoris_file_have_their_partners():
    g = torch.Generator().manual_seed(0)
    shapes = {
        "conv_norm_out.bias": (8,),
        "conv_norm_out.weight": (8,),
        "conv_in.bias": (8,),
        "conv_in.weight": (8, 4, 3, 3),
    }
    base = {f"unet.{n}": torch.randn(s, generator=g) for n, s in shapes.items()}
    new = {n: v + 1 for n, v in base.items() if n.endswith("bias")}
    delta = Delta({n: Change.between(base[n], v) for n, v in new.items()})
    keys = lycoris_keys(delta, base)
    assert set(keys) == {
        "lora_unet_out_0.b_norm",
        "lora_unet_out_0.w_norm",
        "lora_unet_conv_in.diff_b",
        "lora_unet_conv_in.diff",
    }
    assert apps.unread_parts(set(keys)) == set()


def test_a1111_shows_a_file_beside_its_own_models():
    def shown(family, width):
        shapes = {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (640, width)}
        return apps.a1111_model({"erasers": "{}", **kohya_header(shapes, family)})

    assert [shown("sd", 768), shown("sd", 1024), shown("sdxl", 2048)] == ["SD1", "SD2", "SDXL"]
    assert apps.a1111_model({"erasers": "{}"}) == "SD1", "what it takes any other file with a header for"
    for name, model in (("lora-canvas-sd", "SD1"), ("lora-sdxl", "SDXL"), ("lora-one-step", "SD1")):
        with safe_open(plain.HERE / name / "eraser_kohya.safetensors", "pt") as f:
            assert apps.a1111_model(f.metadata()) == model
        assert describe(plain.HERE / name / "eraser_kohya.safetensors")["concepts"] == ["moon"]


def merged(tensors, where):
    """What an app adds to each layer: alpha / rank times up by down, at the place that `where` gives."""
    out = {}
    for key in tensors:
        stem, _, part = key.rpartition(".lora_")
        if part in ("up.weight", "B.weight"):
            up, down = tensors[key], tensors[key.replace("up.w", "down.w").replace("lora_B", "lora_A")]
            alpha = tensors.get(f"{stem}.alpha", torch.tensor(float(len(down)))).item()
            layer, k = where(stem)
            out.setdefault(layer, {})[k] = alpha / len(down) * (up.flatten(1) @ down.flatten(1))
    return {n: torch.cat([parts[k] for k in sorted(parts)]) for n, parts in out.items()}


def test_a_whole_file_is_the_eraser_in_both_apps():
    """UCE on canvas-sd, whose UNet is built as Stable Diffusion's: the sums at the right layers, number by number."""
    folder = plain.HERE / "lora-canvas-sd"
    file, first = load_file(folder / "eraser_kohya.safetensors"), apps.CANVAS.layers()
    net = plain.pipeline("canvas-sd").unet
    twins = apps.twins([n.removesuffix(".weight") for n, _ in net.named_parameters() if n.endswith(".weight")], first)
    factors = Eraser.from_pretrained(folder).payload.factors
    want = {twins[n.removeprefix("unet.")]: b @ a for n, (a, b) in factors.items()}
    for app in (lambda s: apps.comfy(s, first, twins), lambda s: apps.a1111(s, first)):
        have = merged(file, lambda s, app=app: (app(s), 0))
        assert have.keys() == want.keys()
        for name, value in want.items():
            assert value.shape == first[name]
            torch.testing.assert_close(have[name], value)


def test_fused_layers_of_a_flux_file_are_the_rows_that_comfyui_makes_of_the_peft_file():
    folder = plain.HERE / "lora-flux"
    factors = Eraser.from_pretrained(folder).payload.factors
    size = {n: len(b) for n, (_, b) in factors.items()}
    one = merged(load_file(folder / "kohya.safetensors"), lambda s: (s.removeprefix("lora_unet_"), 0))
    two = merged(
        load_file(folder / "pytorch_lora_weights.safetensors"), lambda s: apps.peft("flux", s.partition(".")[2])
    )
    for layer, value in two.items():
        rows = one[layer.replace(".", "_")]
        n = next(iter(size.values()))
        torch.testing.assert_close(rows[n:], value)  # keys and values; queries come first
        assert not rows[:n].any()
    assert {n.replace(".", "_") for n in two} == set(one)


@pytest.mark.parametrize("family", sorted(TRANSFORMERS))
def test_kohya_layouts_of_transformers_are_comfyuis(family):
    """Every fused layer holds the Linears that ComfyUI finds in it, in its order."""
    for layer, linears in TRANSFORMERS[family].items():
        for k, linear in enumerate(linears):
            name, place = apps.native(family, linear)
            assert (name.replace(".", "_"), place) == (layer, k), linear


@pytest.mark.parametrize("family", [f for f in EVERY if f not in ("sd", "sd2", "sdxl")])
def test_peft_files_of_transformers_in_comfyui(family):
    """For every Linear of the real classes: the card says what ComfyUI leaves out, and nothing else."""
    backbone = build(family)
    every = list(backbone.modules("all"))
    lost = {n.split(".")[1] for n in every if apps.peft(backbone.family, n.removeprefix("transformer.")) is None}
    said = unread(backbone.family, every)
    if said is None:
        assert lost == {n.split(".")[1] for n in every}
        assert backbone.family not in apps.COMFY
        return
    assert lost == set(said)
    kept = [n for n in every if n.split(".")[1] not in lost]
    assert unread(backbone.family, kept) == []
    where = [apps.peft(backbone.family, n.removeprefix("transformer.")) for n in kept]
    assert len(set(where)) == len(where), "two Linears at one place"


def test_cards_name_what_comfyui_leaves_out():
    recipe = Eraser.from_pretrained(plain.HERE / "lora-flux").recipe
    assert "ComfyUI reads the same file." in card(recipe)
    other = replace(recipe, family="chroma", targets=["transformer.distilled_guidance_layer.in_proj"])
    assert "leaves out: distilled_guidance_layer." in card(other)
    assert "ComfyUI" not in card(replace(recipe, family="sana"))
    assert "ComfyUI reads the same file." in card(replace(recipe, family="pixart-sigma"))
    assert set(UNREAD) == set(apps.COMFY)
