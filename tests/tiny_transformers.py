"""Small random pipelines of the real diffusers transformer families, with their own text encoders and tokenizers."""

import inspect
import re

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    LCMScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SchedulerMixin,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from tiny import WORDS, text_encoder, tokenizer, vae

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()-_/"

# The template Qwen-Image puts before a prompt, each of its words one token: the pipeline drops the first 34.
QWEN = [
    "system",
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships",
    " of the objects and background",
    "user",
    "assistant",
]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSTRUCT = (
    "<s>{% for message in messages %}{% set name = 'SYSTEM_PROMPT' if message.role == 'system' else 'INST' %}"
    "[{{ name }}]{% for part in message.content %}{{ part.text }}{% endfor %}[/{{ name }}]{% endfor %}"
)
NARROW = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}


@torch.no_grad()
def finish(pipe: DiffusionPipeline, gain: float = 1.0) -> DiffusionPipeline:
    """Draw what the transformer starts at zero (gates, last layers), so that the prompt reaches its output."""
    for parameter in pipe.transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
        if parameter.ndim > 1:
            parameter.mul_(gain)
    pipe.transformer.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flow(**shift: object) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**{"shift": 1.0, **shift})


def dynamic() -> FlowMatchEulerDiscreteScheduler:
    return flow(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )


def shifted_vae() -> AutoencoderKL:
    model = vae()
    model.register_to_config(scaling_factor=0.3611, shift_factor=0.1159)
    return model


def t5_tokenizer() -> T5Tokenizer:
    words = sorted({word.strip(",") for line in WORDS for word in line.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in words] + [(letter, -3.0) for letter in LETTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=77)


def t5_encoder(size: int, config: type = T5Config, cls: type = T5EncoderModel) -> T5EncoderModel:
    return cls(config(vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).eval()


def byte_pairs(space: str, letters: list[str], lines: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """A byte-pair vocabulary with a token for each word of `lines`, with its space or where it starts a line."""
    words = [space + word for line in lines for word in re.findall(r"[A-Za-z]+", line)]
    merges: dict[tuple[str, str], None] = {}
    for word in words + [re.match("[A-Za-z]*", line).group() for line in lines]:
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
    return [*letters, *dict.fromkeys(left + right for left, right in merges)], list(merges)


def byte_tokenizer(special: list[str], lines: list[str] = WORDS, **names: object) -> Qwen2Tokenizer:
    """The byte-level tokenizer of Qwen: every text has its tokens; the first special token pads."""
    vocabulary, merges = byte_pairs("Ġ", sorted(ByteLevel.alphabet()), lines)
    tok = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(special + vocabulary)},
        merges=merges,
        unk_token=special[0],
        eos_token=special[0],
        pad_token=special[0],
        **names,
    )
    tok.add_special_tokens({"additional_special_tokens": special[1:]})
    return tok


def fast_tokenizer(
    start: list[str], special: list[str], lines: list[str] = WORDS, **names: object
) -> PreTrainedTokenizerFast:
    """The same byte-level tokens in the class Llama, GLM and Mistral load as, with their tokens at the start."""
    tok = byte_tokenizer([*special, *start], lines).backend_tokenizer
    tok.post_processor = TemplateProcessing(
        single=[*start, "$A"], special_tokens=[(token, tok.token_to_id(token)) for token in start]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token=start[0], eos_token=special[0], pad_token=special[0], **names
    )


def gemma_tokenizer() -> GemmaTokenizer:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = ["\n", "▁", *map(chr, range(33, 127)), *(f"<0x{byte:02X}>" for byte in range(256))]
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    vocabulary, merges = byte_pairs("▁", letters, [*WORDS, *instruction])
    vocab = {token: index for index, token in enumerate(special + vocabulary)}
    return GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)


# The sizes of every language model below; a wide start makes the prompt visible beside the biases that follow it.
LANGUAGE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
}


def language(
    cls: type[PreTrainedModel], config: type[PreTrainedConfig], tok: object, **sizes: object
) -> PreTrainedModel:
    tokens = {"vocab_size": len(tok), "pad_token_id": tok.pad_token_id, "eos_token_id": tok.eos_token_id}
    return cls(config(**{**LANGUAGE, **tokens, "bos_token_id": None, **sizes})).eval()


def flux(guidance: bool = True) -> FluxPipeline:
    """Flux dev: the guidance is an input of the transformer."""
    torch.manual_seed(0)
    clip, t5 = tokenizer(), t5_tokenizer()
    return finish(
        FluxPipeline(
            scheduler=dynamic(),
            vae=shifted_vae(),
            text_encoder=text_encoder(len(clip), 32),
            tokenizer=clip,
            text_encoder_2=t5_encoder(len(t5)),
            tokenizer_2=t5,
            transformer=FluxTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                guidance_embeds=guidance,
                axes_dims_rope=(4, 6, 6),
            ),
        )
    )


def flux_cfg() -> FluxPipeline:
    """Flux without the guidance input, for `true_cfg_scale` with a negative prompt."""
    return flux(guidance=False)


def chroma() -> ChromaPipeline:
    torch.manual_seed(0)
    t5 = t5_tokenizer()
    return finish(
        ChromaPipeline(
            scheduler=flow(),
            vae=shifted_vae(),
            text_encoder=t5_encoder(len(t5)),
            tokenizer=t5,
            transformer=ChromaTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                axes_dims_rope=(4, 6, 6),
                approximator_num_channels=8,
                approximator_hidden_dim=32,
                approximator_layers=1,
            ),
        )
    )


def aura_flow() -> AuraFlowPipeline:
    torch.manual_seed(0)
    t5 = t5_tokenizer()
    return finish(
        AuraFlowPipeline(
            tokenizer=t5,
            text_encoder=t5_encoder(len(t5), UMT5Config, UMT5EncoderModel),
            vae=vae(),
            scheduler=flow(shift=1.73),
            transformer=AuraFlowTransformer2DModel(
                sample_size=8,
                in_channels=4,
                num_mmdit_layers=1,
                num_single_dit_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                caption_projection_dim=32,
                pos_embed_max_size=64,
            ),
        ),
        gain=1.5,
    )


def pixart(
    cls: type = PixArtSigmaPipeline, scheduler: type[SchedulerMixin] = DPMSolverMultistepScheduler
) -> PixArtSigmaPipeline:
    torch.manual_seed(0)
    t5 = t5_tokenizer()
    return finish(
        cls(
            tokenizer=t5,
            text_encoder=t5_encoder(len(t5)),
            vae=vae(),
            scheduler=scheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
            transformer=PixArtTransformer2DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=2,
                cross_attention_dim=32,
                sample_size=8,
                caption_channels=32,
            ),
        )
    )


def pixart_alpha() -> PixArtAlphaPipeline:
    """PixArt-LCM: in one step this pipeline takes its scheduler's second output, which the DPM solver lacks."""
    return pixart(PixArtAlphaPipeline, LCMScheduler)


def sana() -> SanaPipeline:
    torch.manual_seed(0)
    tok = gemma_tokenizer()
    blocks = (8, 8, 8, 8)
    return finish(
        SanaPipeline(
            tokenizer=tok,
            text_encoder=language(Gemma2Model, Gemma2Config, tok),
            vae=AutoencoderDC(
                latent_channels=4,
                encoder_block_out_channels=blocks,
                decoder_block_out_channels=blocks,
                encoder_layers_per_block=(1,) * 4,
                decoder_layers_per_block=(1,) * 4,
                encoder_qkv_multiscales=((),) * 4,
                decoder_qkv_multiscales=((),) * 4,
                scaling_factor=0.41407,
            ).eval(),
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            transformer=SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=2,
                num_cross_attention_heads=2,
                cross_attention_head_dim=16,
                cross_attention_dim=32,
                caption_channels=32,
                sample_size=8,
            ),
        )
    )


def lumina2() -> Lumina2Pipeline:
    torch.manual_seed(0)
    tok = gemma_tokenizer()
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=64,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    return finish(
        Lumina2Pipeline(
            tokenizer=tok,
            text_encoder=language(Gemma2Model, Gemma2Config, tok),
            vae=model.eval(),
            scheduler=flow(shift=6.0),
            transformer=Lumina2Transformer2DModel(
                sample_size=8,
                in_channels=4,
                hidden_size=32,
                num_layers=2,
                num_refiner_layers=1,
                num_attention_heads=2,
                num_kv_heads=1,
                multiple_of=16,
                axes_dim_rope=(4, 6, 6),
                cap_feat_dim=32,
            ),
        )
    )


def cogview4() -> CogView4Pipeline:
    torch.manual_seed(0)
    tok = fast_tokenizer(["[gMASK]", "<sop>"], ["<|endoftext|>"], padding_side="left")
    return finish(
        CogView4Pipeline(
            tokenizer=tok,
            text_encoder=language(GlmModel, GlmConfig, tok),
            vae=vae(),
            scheduler=flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
            transformer=CogView4Transformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                text_embed_dim=32,
                time_embed_dim=32,
                condition_dim=8,
                sample_size=8,
            ),
        )
    )


def hidream() -> HiDreamImagePipeline:
    """The pipeline stretches every size to 128 x 128 latents: large patches keep the transformer small."""
    torch.manual_seed(0)
    clip, t5 = tokenizer(), t5_tokenizer()
    config = text_encoder(len(clip), 32).config
    config.max_position_embeddings = 248
    tok = fast_tokenizer(["<|begin_of_text|>"], ["<|eot_id|>"], model_max_length=4096)
    return finish(
        HiDreamImagePipeline(
            scheduler=flow(shift=3.0),
            vae=shifted_vae(),
            text_encoder=CLIPTextModelWithProjection(config).eval(),
            tokenizer=clip,
            text_encoder_2=CLIPTextModelWithProjection(config).eval(),
            tokenizer_2=tokenizer(),
            text_encoder_3=t5_encoder(len(t5)),
            tokenizer_3=t5,
            text_encoder_4=language(LlamaForCausalLM, LlamaConfig, tok),
            tokenizer_4=tok,
            transformer=HiDreamImageTransformer2DModel(
                patch_size=16,
                in_channels=4,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                caption_channels=[32, 32],
                text_emb_dim=64,
                num_routed_experts=2,
                num_activated_experts=1,
                axes_dims_rope=(4, 6, 6),
                llama_layers=[0, 1],
            ),
        )
    )


def qwen_image() -> QwenImagePipeline:
    """The scheduler's `shift_terminal` divides nought by nought in a call of one step: never make one."""
    torch.manual_seed(0)
    tok = byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [*WORDS, *QWEN])
    config = Qwen2_5_VLConfig(
        text_config={
            **{key: size for key, size in LANGUAGE.items() if key != "head_dim"},
            "vocab_size": len(tok),
            "bos_token_id": None,
            "eos_token_id": tok.eos_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
    )
    return finish(
        QwenImagePipeline(
            scheduler=flow(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                base_image_seq_len=256,
                max_image_seq_len=8192,
                shift_terminal=0.02,
            ),
            vae=AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 2],
                num_res_blocks=1,
                temperal_downsample=[False],
                latents_mean=[-0.7, 0.1, 0.5, 1.5],
                latents_std=[2.8, 1.4, 2.3, 1.9],
            ).eval(),
            text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
            tokenizer=tok,
            transformer=QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                axes_dims_rope=(4, 6, 6),
            ),
        )
    )


def z_image() -> ZImagePipeline:
    torch.manual_seed(0)
    tok = byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [*WORDS, *QWEN])
    tok.chat_template = CHAT
    return finish(
        ZImagePipeline(
            scheduler=flow(shift=3.0),
            vae=shifted_vae(),
            text_encoder=language(Qwen3Model, Qwen3Config, tok),
            tokenizer=tok,
            transformer=ZImageTransformer2DModel(
                in_channels=4,
                dim=32,
                n_layers=2,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=32,
                axes_dims=[4, 6, 6],
            ),
        )
    )


def flux2_vae() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
    ).eval()


def flux2_transformer(guidance: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )


def flux2_klein() -> Flux2KleinPipeline:
    """The base model, which is not distilled; the pipeline stacks the states after 9, 18 and 27 layers."""
    torch.manual_seed(0)
    tok = byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [*WORDS, *QWEN])
    tok.chat_template = CHAT
    return finish(
        Flux2KleinPipeline(
            scheduler=dynamic(),
            vae=flux2_vae(),
            text_encoder=language(Qwen3ForCausalLM, Qwen3Config, tok, num_hidden_layers=28, **NARROW),
            tokenizer=tok,
            transformer=flux2_transformer(guidance=False),
        )
    )


def flux2() -> Flux2Pipeline:
    """Flux 2 dev: the guidance is an input; the pipeline stacks the states after 10, 20 and 30 layers."""
    torch.manual_seed(0)
    images = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tok = fast_tokenizer(
        ["<s>"],
        ["</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", *images],
        [*WORDS, *SYSTEM_MESSAGE.split("\n")],
    )
    config = Mistral3Config(
        text_config={
            "model_type": "mistral",
            **LANGUAGE,
            **NARROW,
            "num_hidden_layers": 31,
            "vocab_size": len(tok),
            "pad_token_id": tok.pad_token_id,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_index=tok.convert_tokens_to_ids("[IMG]"),
    )
    return finish(
        Flux2Pipeline(
            scheduler=dynamic(),
            vae=flux2_vae(),
            text_encoder=Mistral3ForConditionalGeneration(config).eval(),
            tokenizer=PixtralProcessor(PixtralImageProcessor(), tok, patch_size=14, chat_template=INSTRUCT),
            transformer=flux2_transformer(guidance=True),
        )
    )


# All of them are built and answer a stock call of one step. What differs from the released models besides the sizes:
# Qwen-Image has no `shift_terminal` and PixArt-alpha the LCM scheduler (see there), HiDream has large patches, and the
# tokenizers and chat templates are small ones of the same classes.
TRANSFORMERS = {
    "flux": flux,
    "flux_cfg": flux_cfg,
    "chroma": chroma,
    "aura_flow": aura_flow,
    "pixart": pixart,
    "pixart_alpha": pixart_alpha,
    "sana": sana,
    "lumina2": lumina2,
    "cogview4": cogview4,
    "hidream": hidream,
    "qwen_image": qwen_image,
    "z_image": z_image,
    "flux2_klein": flux2_klein,
    "flux2": flux2,
}

# What a stock call needs besides its prompt to be small and valid.
SMALL = {"height": 16, "width": 16, "max_sequence_length": 16}
CALLS: dict[str, dict[str, object]] = {
    "flux": SMALL,
    "flux_cfg": {**SMALL, "true_cfg_scale": 3.0, "negative_prompt": ["", ""]},
    "chroma": SMALL,
    "aura_flow": SMALL,
    "pixart": {**SMALL, "use_resolution_binning": False, "clean_caption": False},
    "pixart_alpha": {**SMALL, "use_resolution_binning": False, "clean_caption": False},
    "sana": {"height": 32, "width": 32, "max_sequence_length": 16, "use_resolution_binning": False},
    "lumina2": {},
    "cogview4": {"max_sequence_length": 16},
    "hidream": {"max_sequence_length": 16},
    "qwen_image": {"height": 16, "width": 16},
    "z_image": {"height": 16, "width": 16, "max_sequence_length": 32},
    "flux2_klein": {"height": 16, "width": 16, "max_sequence_length": 32},
    "flux2": {"height": 16, "width": 16, "max_sequence_length": 64},
}
