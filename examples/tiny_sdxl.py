"""A Stable Diffusion XL of 0.1 M random weights, built at once: the real classes and file layout, no download.

    python -m examples.tiny_sdxl models/tiny-sdxl

It has SDXL's three UNet levels, two text encoders and 8-pixel latents, so names, shapes and files are those of the full
model. It tests plumbing, not learning.
"""

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

HIDDEN = (24, 32)  # of the text encoders; unequal, since loaders of single files tell them apart by it


def tiny_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """Return CLIP's tokenizer with an alphabet and no merges: every letter is a token, so any text can be written."""
    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad_token, model_max_length=77)


def tiny_text_config(tokenizer: CLIPTokenizer, hidden_size: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        projection_dim=hidden_size,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_sdxl(
    seed: int = 0, prediction_type: str = "epsilon", depth: int = 1, layers: int = 2
) -> StableDiffusionXLPipeline:
    """Return the whole pipeline in float32, weights random from `seed` (the caller's random state is left alone).

    Args:
        depth: transformer blocks in each transformer of the UNet's lowest level, where SDXL has ten.
        layers: in each of the UNet's levels. SDXL has two, which LoRA files with kohya's names require.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_tokenizer(pad_token="!")
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32, 32),
            layers_per_block=layers,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, depth),
            attention_head_dim=(2, 4, 4),
            cross_attention_dim=sum(HIDDEN),
            use_linear_projection=True,
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + HIDDEN[1],
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=64,
            scaling_factor=0.13025,
        )
        return StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(tiny_text_config(tokenizer, HIDDEN[0])),
            text_encoder_2=CLIPTextModelWithProjection(tiny_text_config(tokenizer_2, HIDDEN[1])),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                timestep_spacing="leading",
                steps_offset=1,
                prediction_type=prediction_type,
            ),
        )


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "models/tiny-sdxl")
    tiny_sdxl().save_pretrained(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
