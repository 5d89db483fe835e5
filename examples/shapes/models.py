"""Models of the shapes base: real diffusers and transformers classes in SDXL's architecture, at toy size.

Sizes are chosen for two CPU cores: at 64 px one UNet pass is about 0.3 GFLOP. Trains nothing; see train_base.py.
"""

import json

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from examples.shapes.world import BACKGROUNDS, COLOURS, RADII, SHAPES

HIDDEN = 64
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer():
    """Return a CLIP tokenizer in which each of the world's words is one token, and other text falls back to bytes."""
    words = [*SHAPES, *COLOURS, *BACKGROUNDS, *RADII, "shape", "background", "picture", "drawing", "front", "left"]
    words += ["right", "the", "with", "on", "in", "of", "a", "an"]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=10000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(words, trainer)
    merges = _merges(learner)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _merges(tokenizer):
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in merges]


def build_vae():
    """Return a VAE of factor 4 with 4 latent channels and an initial posterior deviation of 0.1; 1 would hide all."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,  # few: normalisation loses a group's mean, which holds flat colours
        sample_size=64,
    )
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0.0
        vae.quant_conv.bias[4:] = -4.5
    return vae


def build_text_encoders(tokenizer):
    """Return (CLIPTextModel, CLIPTextModelWithProjection); SDXL takes the hidden states before their last layers."""

    def config(layers):
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            projection_dim=HIDDEN,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    return CLIPTextModel(config(2)), CLIPTextModelWithProjection(config(3))


def build_unet():
    """Return SDXL's UNet: same block types and conditioning, channels (32, 64, 128) instead of (320, 640, 1280)."""
    time_ids_dim = 16
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(1, 2, 4),  # heads of 32 channels; the name is diffusers', for historical reasons
        cross_attention_dim=2 * HIDDEN,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_ids_dim,
        projection_class_embeddings_input_dim=6 * time_ids_dim + HIDDEN,
        norm_num_groups=4,  # at least 8 channels in a group; SDXL has 10
    )


def build_scheduler():
    """Return SDXL base's own scheduler."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
    )


def build_pipeline(vae, text_encoder, text_encoder_2, tokenizer, unet):
    """Return the pipeline; without a negative prompt it guides against zero embeddings, as the base is trained."""
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
