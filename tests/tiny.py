"""Small random pipelines of the real diffusers classes: the same code paths as the real models, in milliseconds."""

import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from erasers.pipelines.canvas.models import vocabulary

WORDS = ["a moon and a star in the style of van gogh", "a picture of a cat, a dog and a house", "circle ring nothing"]
SIDE = 8
"""Of the latents."""


def tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary(WORDS, Path(folder))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def text_encoder(size: int, width: int, cls: type = CLIPTextModel) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=width,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    return cls(config).eval()


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
    ).eval()


def sd(prediction: str = "epsilon", scheduler: type = PNDMScheduler, seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 1.x (epsilon) or 2.x (v_prediction, linear projections)."""
    torch.manual_seed(seed)
    tok = tokenizer()
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=prediction == "v_prediction",
    ).eval()
    pipe = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(len(tok), 32),
        tokenizer=tok,
        unet=unet,
        scheduler=scheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction,
            steps_offset=1,
            **({"skip_prk_steps": True} if scheduler is PNDMScheduler else {}),
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd2() -> StableDiffusionPipeline:
    return sd("v_prediction", DDIMScheduler)


def sdxl() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    tok = tokenizer()
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        norm_num_groups=8,
    ).eval()
    pipe = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder(len(tok), 32),
        text_encoder_2=text_encoder(len(tok), 32, CLIPTextModelWithProjection),
        tokenizer=tok,
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def t5_tokenizer() -> T5Tokenizer:
    words = sorted({f"▁{w.strip(',')}" for line in WORDS for w in line.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), *((w, -1.0) for w in words)]
    return T5Tokenizer(vocab=[*pieces, *((c, -4.0) for c in "abcdefghijklmnopqrstuvwxyz,.")], model_max_length=77)


def t5(size: int, width: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=size, d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).eval()


def sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5: three text encoders, normalised queries and keys, a second attention in the first block."""
    torch.manual_seed(0)
    tok, tok_3 = tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=SIDE,
        pos_embed_max_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    ).eval()
    for p in transformer.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    autoencoder = vae()
    autoencoder.register_to_config(shift_factor=0.06)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder,
        text_encoder=text_encoder(len(tok), 32, CLIPTextModelWithProjection),
        tokenizer=tok,
        text_encoder_2=text_encoder(len(tok), 32, CLIPTextModelWithProjection),
        tokenizer_2=tokenizer(),
        text_encoder_3=t5(len(tok_3), 64),
        tokenizer_3=tok_3,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


FAMILIES = {"sd": sd, "sd2": sd2, "sdxl": sdxl, "sd3": sd3}
