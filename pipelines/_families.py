"""What differs between families of flow and diffusion transformers, one row each. Everything else is shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor


def as_is(t: Tensor, dtype: torch.dtype, config: Any) -> Tensor:  # noqa: ANN401
    """The scheduler's time, 1000 at pure noise, in float32."""
    return t.float()


def rounded(t: Tensor, dtype: torch.dtype, config: Any) -> Tensor:  # noqa: ANN401
    """From 1 at pure noise down to 0, of the time in the denoiser's precision."""
    return t.to(dtype) / 1000


def fraction(t: Tensor, dtype: torch.dtype, config: Any) -> Tensor:  # noqa: ANN401
    """From 1 at pure noise down to 0, in the denoiser's precision."""
    return (t.float() / 1000).to(dtype)


def scaled(t: Tensor, dtype: torch.dtype, config: Any) -> Tensor:  # noqa: ANN401
    """The scheduler's time, times what the denoiser's config says."""
    return t.float() * config.timestep_scale


def rising(t: Tensor, dtype: torch.dtype, config: Any) -> Tensor:  # noqa: ANN401
    """From 0 at pure noise up to 1."""
    return 1 - t.float() / 1000


def rising_too(t: Tensor, dtype: torch.dtype, config: Any) -> Tensor:  # noqa: ANN401
    """The same, rounded as Z-Image does."""
    return (1000 - t.float()) / 1000


Time = Callable[[Tensor, torch.dtype, Any], Tensor]

BOTH = ("prompt_embeds", "negative_prompt_embeds")
POOLED_BOTH = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
MASKED = (
    *("prompt_embeds", "prompt_attention_mask"),
    *("negative_prompt_embeds", "negative_prompt_attention_mask"),
)


@dataclass(frozen=True)
class Stream:
    """Rows of the prompt's states that come from one text encoder.

    Attributes:
        encoder: its name in the pipeline; where it is not there, neither are the rows (zeros are).
        tokenizer: its tokenizer's name.
        rows: how many; None is all that are left.
        skip: tokens before the first row; None where the rows are the first token and then the last ones.
        left: padded on the left.
    """

    encoder: str = "text_encoder"
    tokenizer: str = "tokenizer"
    rows: int | None = None
    skip: int | None = 0
    left: bool = False


@dataclass(frozen=True)
class Family:
    """How a family's stock pipeline talks to its denoiser. Names of layers are parts of their paths.

    Attributes:
        name: of the family; erasers of one are refused by the others.
        pipeline: the stock text-to-image class.
        keeps: arguments of the denoiser's call with a row for each prompt.
        shares: arguments without.
        text: the argument that carries the prompt's states.
        second: of `keeps`, those with the rows in their second dimension.
        positional: names of the call's positional arguments after the latent, if it has any.
        clock: name of the time argument.
        time: from the scheduler's time, the denoiser's precision and its config to that argument.
        sign: the denoiser answers sign * (eps - x0).
        warped: the denoiser is told the time before the shift that the noise follows.
        negative: where the stock call puts the other side of guidance: "first" or "second" half of one batched call;
            "next", a call of its own; "same", no such call, but what the empty prompt gives.
        returns: what `encode_prompt` returns, by the stock call's own names; of both sides of guidance where it
            returns both, where it is called once for each, of one.
        guidance: the stock call's argument that sets guidance.
        less: by how much that argument is below the usual guidance scale.
        embedded: guidance goes into the denoiser as a number (guidance-distilled).
        maskless: the mask of the prompt's states is left out where nothing is masked.
        guided: whether it knows any guidance.
        rescaled: the guided prediction gets the norm of the conditional one, along the last dimension.
        off: the arguments that switch guidance off.
        call: more arguments of every stock call.
        epsilon: a diffusion model that predicts epsilon, not a flow.
        doubled: the denoiser answers twice the channels, the second half being a variance.
        listed: the denoiser takes and gives lists of single latents with a frame dimension.
        streams: where the prompt's states come from; none where no closed form is known.
        text_in: Linears that act on the prompt's states.
        text_kv: keys and values of the text tokens.
        text_side: everything of the text tokens' own side.
        image: attention of the image tokens.
        pooled: the Linear that reads the pooled text vector.
        packed: latents are tokens of 2 x 2 patches.
        whitened: the patches are normalised by statistics that the autoencoder keeps (Flux.2).
    """

    name: str
    pipeline: str
    keeps: tuple[str, ...] = ("encoder_hidden_states",)
    shares: tuple[str, ...] = ()
    text: str = "encoder_hidden_states"
    second: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()
    clock: str = "timestep"
    time: Time = as_is
    sign: int = 1
    warped: bool = False
    negative: Literal["first", "second", "next", "same"] = "first"
    returns: tuple[str, ...] = BOTH
    guidance: str = "guidance_scale"
    less: float = 0.0
    embedded: bool = False
    guided: bool = True
    maskless: bool = False
    rescaled: bool = False
    off: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    call: Mapping[str, Any] = field(default_factory=dict)
    epsilon: bool = False
    doubled: bool = False
    listed: bool = False
    streams: tuple[Stream, ...] = (Stream(),)
    text_in: tuple[str, ...] = ("context_embedder",)
    text_kv: tuple[str, ...] = ("add_k_proj", "add_v_proj")
    text_side: tuple[str, ...] = (
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
        "norm_added_q",
        "norm_added_k",
        "ff_context",
        "norm1_context",
        "context_embedder",
    )
    image: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out")
    pooled: str | None = None
    packed: bool = False
    whitened: bool = False

    @property
    def shared(self) -> bool:
        """Whether both sides of guidance share one call of the denoiser."""
        return self.negative in ("first", "second") and not self.embedded


def cross_attention(caption: str) -> dict[str, Any]:
    """The layers of a family with cross-attention (attn2) and a projection of the prompt's states."""
    return {
        "text_in": (f"{caption}.linear_1",),
        "text_kv": ("attn2.to_k", "attn2.to_v"),
        "text_side": ("attn2", caption),
        "image": ("attn1",),
    }


POOLED = "transformer.time_text_embed.text_embedder.linear_1"
FLUX: dict[str, Any] = {
    "shares": ("txt_ids", "img_ids"),
    "time": rounded,
    "negative": "same",
    "returns": ("prompt_embeds", "pooled_prompt_embeds", "text_ids"),
    "streams": (Stream("text_encoder_2", "tokenizer_2"),),
    "pooled": POOLED,
    "packed": True,
}
FLUX_2: dict[str, Any] = {
    "time": rounded,
    "returns": ("prompt_embeds", "text_ids"),
    "packed": True,
    "whitened": True,
    "text_side": (
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k", "ff_context"),
        *("double_stream_modulation_txt", "context_embedder"),
    ),
    "image": ("to_q", "to_k", "to_v", "to_out", "to_qkv_mlp_proj"),
}
PIXART: dict[str, Any] = {
    "keeps": ("encoder_hidden_states", "encoder_attention_mask", "added_cond_kwargs"),
    "epsilon": True,
    "doubled": True,
    "returns": MASKED,
    **cross_attention("caption_projection"),
}

FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family(
            "sd3",
            "StableDiffusion3Pipeline",
            keeps=("encoder_hidden_states", "pooled_projections"),
            returns=BOTH + POOLED_BOTH,
            streams=(Stream(rows=77), Stream("text_encoder_3", "tokenizer_3")),
            pooled=POOLED,
        ),
        Family(
            "flux",
            "FluxPipeline",
            keeps=("encoder_hidden_states", "pooled_projections", "guidance"),
            embedded=True,
            **FLUX,
        ),
        Family(
            "flux-cfg",
            "FluxPipeline",
            keeps=("encoder_hidden_states", "pooled_projections"),
            guidance="true_cfg_scale",
            off={"true_cfg_scale": 1.0},
            **FLUX,
        ),
        Family(
            "flux2",
            "Flux2Pipeline",
            keeps=("encoder_hidden_states", "txt_ids", "img_ids", "guidance"),
            negative="same",
            embedded=True,
            **FLUX_2,
        ),
        Family(
            "flux2-klein",
            "Flux2KleinPipeline",
            keeps=("encoder_hidden_states", "txt_ids", "img_ids"),
            negative="next",
            **FLUX_2,
        ),
        Family(
            "chroma",
            "ChromaPipeline",
            keeps=("encoder_hidden_states", "attention_mask"),
            shares=("txt_ids", "img_ids"),
            time=rounded,
            negative="next",
            returns=(
                *("prompt_embeds", "text_ids", "prompt_attention_mask"),
                *("negative_prompt_embeds", "negative_text_ids", "negative_prompt_attention_mask"),
            ),
            packed=True,
        ),
        Family("aura-flow", "AuraFlowPipeline", time=fraction, returns=MASKED),
        Family("pixart-alpha", "PixArtAlphaPipeline", **PIXART),
        Family("pixart-sigma", "PixArtSigmaPipeline", **PIXART),
        Family(
            "sana",
            "SanaPipeline",
            keeps=("encoder_hidden_states", "encoder_attention_mask"),
            time=scaled,
            returns=MASKED,
            streams=(Stream(skip=None),),
            **cross_attention("caption_projection"),
        ),
        Family(
            "lumina2",
            "Lumina2Pipeline",
            keeps=("encoder_hidden_states", "encoder_attention_mask"),
            time=rising,
            sign=-1,
            negative="next",
            returns=MASKED,
            rescaled=True,
            text_in=("caption_embedder.1",),
            text_kv=("context_refiner.attn.to_k", "context_refiner.attn.to_v"),
            text_side=("caption_embedder", "context_refiner"),
            image=("attn",),
        ),
        Family(
            "cogview4",
            "CogView4Pipeline",
            keeps=("encoder_hidden_states", "original_size", "target_size", "crop_coords"),
            warped=True,
            negative="next",
            streams=(Stream(left=True),),
            text_in=("text_proj",),
            text_kv=("attn1.to_k", "attn1.to_v"),
            text_side=("text_proj",),
            image=("attn1",),
        ),
        Family(
            "qwen-image",
            "QwenImagePipeline",
            keeps=("encoder_hidden_states", "encoder_hidden_states_mask"),
            shares=("img_shapes",),
            time=rounded,
            negative="next",
            returns=("prompt_embeds", "prompt_embeds_mask"),
            guidance="true_cfg_scale",
            maskless=True,
            rescaled=True,
            off={"true_cfg_scale": 1.0},
            streams=(Stream(skip=34),),
            text_in=("txt_in",),
            text_side=(
                *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k"),
                *("txt_mlp", "txt_mod", "txt_in", "txt_norm"),
            ),
            packed=True,
        ),
        Family(
            "hidream",
            "HiDreamImagePipeline",
            keeps=("encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_embeds"),
            text="encoder_hidden_states_t5",
            second=("encoder_hidden_states_llama3",),
            clock="timesteps",
            sign=-1,
            returns=(
                *("prompt_embeds_t5", "negative_prompt_embeds_t5"),
                *("prompt_embeds_llama3", "negative_prompt_embeds_llama3"),
                *POOLED_BOTH,
            ),
            streams=(),
            text_in=("caption_projection",),
            text_kv=("to_k_t", "to_v_t"),
            text_side=(
                *("to_q_t", "to_k_t", "to_v_t", "to_out_t", "q_rms_norm_t", "k_rms_norm_t", "ff_t"),
                "caption_projection",
            ),
            pooled="transformer.p_embedder.pooled_embedder.linear_1",
        ),
        Family(
            "z-image",
            "ZImagePipeline",
            keeps=("cap_feats",),
            text="cap_feats",
            positional=("t", "cap_feats"),
            clock="t",
            time=rising_too,
            sign=-1,
            negative="second",
            less=1.0,
            off={"guidance_scale": 0.0},
            listed=True,
            text_in=("cap_embedder.1",),
            text_kv=("context_refiner.attention.to_k", "context_refiner.attention.to_v"),
            text_side=("cap_embedder", "context_refiner"),
            image=("attention",),
        ),
    )
}
