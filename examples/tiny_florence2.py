"""A Florence-2 of random weights, built at once: the real classes and file layout, no download.

    python -m examples.tiny_florence2 models/tiny-florence2

Its captions are real words in a meaningless order: it tests plumbing, not sight.
"""

import sys
from pathlib import Path

import torch
from transformers import (
    BartConfig,
    BartTokenizer,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Florence2VisionConfig,
    GenerationConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SIDE = 64  # pixels; the four stages of the vision tower shrink it to 2x2
WORDS = [
    "a", "an", "the", "of", "on", "in", "with", "and", "red", "blue", "green", "white", "black", "small", "large",
    "cat", "dog", "tree", "house", "sky", "street", "water",
]  # fmt: skip
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>"]


def byte_letters() -> list[str]:
    """Return the 256 letters in which a byte-level vocabulary writes bytes."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(code) for code in [*visible, *range(256, 256 + 256 - len(visible))]]


def tiny_florence2_tokenizer() -> BartTokenizer:
    """Return a tokenizer that writes any text letter by letter; its words make captions readable."""
    tokens = [*SPECIAL, *byte_letters(), *("Ġ" + word for word in WORDS)]
    return BartTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=256,
    )


def tiny_florence2_processor() -> Florence2Processor:
    images = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_center_crop=False
    )
    images.image_seq_length = (SIDE // 32) ** 2 + 1
    return Florence2Processor(image_processor=images, tokenizer=tiny_florence2_tokenizer())


def tiny_florence2(seed: int = 0) -> Florence2ForConditionalGeneration:
    """Return a model of 0.1 M weights in float32, random from `seed`; the caller's random state is left alone."""
    tokenizer = tiny_florence2_tokenizer()
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = Florence2Config(
        vision_config=Florence2VisionConfig(
            depths=(1, 1, 1, 1),
            embed_dim=(8, 8, 16, 16),
            num_heads=(1, 1, 2, 2),
            num_groups=(1, 1, 2, 2),
            window_size=4,
            projection_dim=32,
            max_position_embeddings=8,
            max_temporal_embeddings=4,
            drop_path_rate=0.0,
        ),
        text_config=BartConfig(
            vocab_size=len(tokenizer),
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=256,
            init_std=0.5,
            forced_eos_token_id=2,
            **ids,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.5,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Florence2ForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        num_beams=3,
        no_repeat_ngram_size=1,
        forced_eos_token_id=2,
        suppress_tokens=[i for i in range(len(tokenizer) - len(WORDS)) if i != 2],
        **ids,
    )
    return model


def save_tiny_florence2(folder: Path | str) -> None:
    """Save a folder that AutoProcessor and Florence2ForConditionalGeneration open."""
    tiny_florence2().save_pretrained(folder)
    tiny_florence2_processor().save_pretrained(folder)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "models/tiny-florence2")
    save_tiny_florence2(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
