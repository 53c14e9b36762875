"""Kohya files of transformers: diffusers' own loader gives what the PEFT file gives, or the export is refused."""

import re
from dataclasses import replace

import pytest
import torch
from diffusers import FluxPipeline
from families import build
from safetensors.torch import load_file

from erasers.erase import Lora, describe, erase
from erasers.erase._files import peft_keys
from erasers.erase._kohya import TRANSFORMERS, fused, kohya_keys
from erasers.prompts import InputError

# Of every family with such files, the Linears that diffusers drops, does not know, or (*) knows at one size only.
FLUX = {
    *(f"time_text_embed.{part}_embedder.linear_{n}" for part in ("timestep", "guidance", "text") for n in (1, 2)),
    *("context_embedder", "x_embedder", "norm_out.linear", "proj_out"),
}
FUSED = [f"single_transformer_blocks.0.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]  # *
FLUX_2 = {
    *(f"{part}.linear" for part in ("double_stream_modulation_img", "double_stream_modulation_txt", "norm_out")),
    *("single_stream_modulation.linear", *(f"time_guidance_embed.guidance_embedder.linear_{n}" for n in (1, 2))),
}
GUIDE = {f"distilled_guidance_layer.{n}" for n in ("in_proj", "layers.0.linear_1", "layers.0.linear_2", "out_proj")}
REFUSED = {
    "flux": FLUX.union(FUSED),
    "flux_cfg": FLUX.union(FUSED),
    "chroma": FLUX.union(FUSED, GUIDE),
    "flux2": FLUX_2,
    "flux2_klein": FLUX_2,
    "qwen_image": set(),
    "z_image": {f"all_{n}" for n in ("x_embedder.2-1", "final_layer.2-1.linear", "final_layer.2-1.adaLN_modulation.1")},
}


def output(backbone):
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.denoise(x, torch.tensor([500]), backbone.encode(["a moon"]))


def split(backbone, family):
    """(Linears that a kohya file holds, Linears that it does not), by full name."""
    every = backbone.modules("all")
    lost = {n for n in every if n.removeprefix("transformer.") in REFUSED[family]}
    return {n: m for n, m in every.items() if n not in lost}, {n: every[n] for n in lost}


def random_pairs(layers, rank=2):
    g = torch.Generator().manual_seed(0)
    return {
        n: (torch.randn(rank, m.in_features, generator=g), 0.2 * torch.randn(m.out_features, rank, generator=g))
        for n, m in layers.items()
    }


def eraser_of(backbone, pairs):
    return replace(erase("moon", backbone), payload=Lora(pairs))


def loaded(backbone, file):
    """What the network gives with a file that diffusers' own loader took in, and the Linears that it reached."""
    backbone.pipe.load_lora_weights(str(file), adapter_name="x")
    reached = {f"transformer.{n}" for n, m in backbone.denoiser.named_modules() if hasattr(m, "lora_A")}
    return output(backbone), reached


@pytest.mark.parametrize("some", ["every", "keys and values", "ranks differ"])
@pytest.mark.parametrize("family", REFUSED)
def test_diffusers_reads_what_peft_gives(family, some, tmp_path):
    backbone = build(family)
    held, _ = split(backbone, family)
    if some == "keys and values":
        held = {n: m for n, m in held.items() if re.search(r"(to|add)_[kv]", n)}
    pairs = random_pairs(held)
    if some == "ranks differ":
        pairs = {n: (a[: 1 + k % 2], b[:, : 1 + k % 2]) for k, (n, (a, b)) in enumerate(pairs.items())}
    eraser = eraser_of(backbone, pairs)
    bare = output(backbone)
    want, there = loaded(backbone, eraser.export(tmp_path / "peft.safetensors"))
    fresh = build(family)
    assert torch.equal(output(fresh), bare)
    have, reached = loaded(fresh, eraser.export(tmp_path / "kohya.safetensors", "kohya"))
    assert there == set(pairs)
    assert there <= reached
    assert some != "every" or there == reached
    assert (want - bare).norm() > 0.01 * bare.norm()
    if family == "z_image":  # diffusers gives each of q, k and v the whole of the fused layer's A
        assert (have - want).norm() < 1e-6 * want.norm()
    else:
        assert torch.equal(have, want)


@pytest.mark.parametrize("family", ["flux2", "flux2_klein", "qwen_image", "z_image"])
def test_the_closed_form_too(family, tmp_path):
    backbone = build(family)
    bare, eraser = output(backbone), erase("moon", backbone)
    with eraser.attached(backbone):
        want = output(backbone)
    have, reached = loaded(backbone, eraser.export(tmp_path / "kohya.safetensors", "kohya"))
    assert reached == set(eraser.payload.factors)
    assert torch.equal(have, want)
    assert not torch.equal(have, bare)


@pytest.mark.parametrize("only", ["", "proj_mlp", "to_v"])
def test_the_fused_layer_of_flux_at_its_own_width(only):
    """diffusers' reader splits it at fixed rows, which no small network has: look at what it makes of the file."""
    block = "transformer.single_transformer_blocks.37"
    names = {f"{block}.attn.to_{x}": 3072 for x in "qkv"} | {f"{block}.proj_mlp": 12288}
    g = torch.Generator().manual_seed(0)
    pairs = {
        n: (torch.randn(2, 3072, generator=g), torch.randn(rows, 2, generator=g))
        for n, rows in names.items()
        if only in n
    }
    keys = kohya_keys(pairs, "flux")
    stem = "lora_unet_single_blocks_37_linear1"
    assert set(keys) == {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"}
    read, want = FluxPipeline.lora_state_dict(keys), peft_keys(pairs)
    assert set(want) <= set(read)
    assert all(torch.equal(read[k], want[k]) if k in want else not read[k].any() for k in read)


@pytest.mark.parametrize("family", REFUSED)
def test_what_diffusers_would_not_read_is_refused_by_name(family, tmp_path):
    backbone = build(family)
    held, lost = split(backbone, family)
    assert {n.removeprefix("transformer.") for n in lost} <= REFUSED[family]
    some = random_pairs(dict([next(iter(held.items()))]))
    for name, layer in lost.items():
        file = tmp_path / "folder" / "x.safetensors"
        with pytest.raises(InputError) as caught:
            eraser_of(backbone, {**some, **random_pairs({name: layer})}).export(file, "kohya")
        (line,) = str(caught.value).splitlines()
        short = name.removeprefix("transformer.")
        rows = {FUSED[3]: 12288}.get(short, 3072)
        said = f"take {rows} rows for {name}, got" if short in FUSED else f"for {name.replace('.0.', '.#.', 1)}: "
        assert said in line
        assert "export to peft instead" in line
        assert not file.parent.exists()


@pytest.mark.parametrize("layers", ["upsampler", "upsampler and attention", "pooled"])
def test_layers_of_sdxl_that_go_by_their_first_names(layers, tmp_path):
    """The upsampler is in the file twice, for A1111; diffusers takes it in once."""
    backbone = build("sdxl")
    named = {"upsampler": ["up_blocks.0.upsamplers.0.conv"], "pooled": ["add_embedding.linear_1"]}
    named["upsampler and attention"] = [*named["upsampler"], "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
    g, pairs = torch.Generator().manual_seed(0), {}
    for name in named[layers]:
        weight = backbone.denoiser.get_submodule(name).weight
        a = torch.randn(2, *weight.shape[1:], generator=g)
        pairs[f"unet.{name}"] = a, 0.2 * torch.randn(len(weight), 2, *(1 for _ in weight.shape[2:]), generator=g)
    eraser, bare = eraser_of(backbone, pairs), output(backbone)
    file = eraser.export(tmp_path / "kohya.safetensors", "kohya")
    assert sum("output_blocks" in k for k in load_file(file)) == 3 * ("upsampler" in layers)
    want, _ = loaded(backbone, eraser.export(tmp_path / "peft.safetensors"))
    torch.testing.assert_close(loaded(build("sdxl"), file)[0], want, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(want, bare, atol=1e-3)
    whole = sum((b.flatten(1) @ a.flatten(1)).square().sum().item() for a, b in pairs.values()) ** 0.5
    assert describe(file)["norm"] == pytest.approx(whole, rel=1e-3)


def test_refusals(tmp_path):
    with pytest.raises(InputError, match=r"flux have no name .* for transformer\.context_embedder, .*, which ComfyUI"):
        erase("moon", build("flux")).export(tmp_path / "x.safetensors", "kohya")
    with pytest.raises(InputError, match=r"no name for 'transformer': export to peft instead$"):
        erase("moon", build("sana")).export(tmp_path / "x.safetensors", "kohya")
    qkv = [f"transformer.layers.0.attention.to_{x}" for x in "qkv"]
    pairs = {n: (torch.ones(1, 4), torch.ones(4 if "q" in n else 2, 1)) for n in qkv}
    with pytest.raises(InputError, match=r"take 4 rows for \S+to_k, got 2: export to peft"):
        kohya_keys(pairs, "z-image")
    with pytest.raises(InputError, match=r"text_encoder\.text_model"):
        kohya_keys({"text_encoder.text_model.x": (torch.ones(1, 4), torch.ones(4, 1))}, "flux")
    assert list(tmp_path.iterdir()) == []


def test_names():
    """A few of each family, as other programs write them."""
    for family, path, name in (
        ("flux", "transformer_blocks.18.attn.add_k_proj", "double_blocks_18_txt_attn_qkv"),
        ("flux", "transformer_blocks.0.norm1_context.linear", "double_blocks_0_txt_mod_lin"),
        ("flux", "transformer_blocks.0.ff.net.0.proj", "double_blocks_0_img_mlp_0"),
        ("flux-cfg", "single_transformer_blocks.3.proj_out", "single_blocks_3_linear2"),
        ("chroma", "transformer_blocks.1.attn.to_out.0", "double_blocks_1_img_attn_proj"),
        ("flux2", "single_transformer_blocks.47.attn.to_qkv_mlp_proj", "single_blocks_47_linear1"),
        ("flux2-klein", "context_embedder", "txt_in"),
        ("qwen-image", "transformer_blocks.59.attn.to_out.0", "transformer_blocks_59_attn_to_out_0"),
        ("qwen-image", "transformer_blocks.0.txt_mlp.net.0.proj", "transformer_blocks_0_txt_mlp_net_0_proj"),
        ("z-image", "context_refiner.1.attention.to_v", "context_refiner_1_attention_qkv"),
        ("z-image", "layers.29.attention.to_out.0", "layers_29_attention_out"),
        ("z-image", "cap_embedder.1", "cap_embedder_1"),
    ):
        keys = kohya_keys({f"transformer.{path}": (torch.ones(1, 4), torch.ones(4, 1))}, family)
        assert {k.partition(".")[0] for k in keys} == {f"lora_unet_{name}"}
    assert {build(f).family for f in REFUSED} == set(TRANSFORMERS)


def test_a_fused_layer_is_the_updates_of_its_linears_one_below_the_other():
    """As programs see it that keep the layer whole."""
    g = torch.Generator().manual_seed(0)
    q, v = ((torch.randn(2, 5, generator=g), torch.randn(4, 2, generator=g)) for _ in range(2))
    a, b = fused([q, None, v], [4, 4, 4])
    assert a.shape == (6, 5)
    assert b.shape == (12, 6)
    torch.testing.assert_close(b @ a, torch.cat([q[1] @ q[0], torch.zeros(4, 5), v[1] @ v[0]]))


def test_alpha_stays_exact_in_any_precision(tmp_path):
    """bfloat16 has no 513."""
    backbone = build("flux2_klein")
    held = {n: m for n, m in backbone.modules("all").items() if "add_v_proj" in n}
    eraser = eraser_of(backbone, random_pairs(held, rank=171))
    file = eraser.export(tmp_path / "x.safetensors", "kohya", dtype=torch.bfloat16)
    alphas = [v for k, v in load_file(file).items() if k.endswith(".alpha")]
    assert [(v.dtype, v.item()) for v in alphas] == [(torch.float32, 513)]
    assert describe(file)["dtype"] == "bfloat16"
