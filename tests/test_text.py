"""Text conditions against the pipeline's own."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from sdxl_lora.errors import DataError
from sdxl_lora.models import Base, load_text_parts
from sdxl_lora.text import encode_prompts, token_count

PROMPTS = ["a tabby cat", "", "sks, A Photo: of (something) 日本 — " + "very " * 40]


def test_embeddings_are_those_of_the_pipeline(tiny_base):
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_base)
    embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    ours = encode_prompts(PROMPTS, *load_text_parts(Base(str(tiny_base)), torch.float32))
    torch.testing.assert_close(ours, (embeds, pooled), rtol=0, atol=0)
    assert ours[0].shape == (3, 77, 24 + 32) and ours[1].shape == (3, 32)


def test_token_count_leaves_out_start_and_end(tiny_base):
    tokenizer = load_text_parts(Base(str(tiny_base)), torch.float32)[0][0]
    assert token_count("sks, a", tokenizer) == 5  # one token a letter, and the comma
    with pytest.raises(DataError, match="must be text"):
        token_count(None, tokenizer)
