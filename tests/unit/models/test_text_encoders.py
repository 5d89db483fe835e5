"""Text conditions against the pipeline's own."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from sdxl_lora.errors import DataError
from sdxl_lora.models.loading import Base, load_text_parts
from sdxl_lora.models.text_encoders import encode_prompts, token_chunks, token_count

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


def test_long_prompts_are_chunks_read_by_themselves(tiny_base):
    parts = load_text_parts(Base(str(tiny_base)), torch.float32)
    first, second = "a" * 75, "tail of it"
    embeds, pooled = encode_prompts([first + " " + second, "short"], *parts, chunks=3)
    assert embeds.shape == (2, 231, 24 + 32) and pooled.shape == (2, 32)
    whole = token_chunks(first + " " + second, parts[0][0], 3)
    assert [len(row) for row in whole] == [77] * 3
    assert whole[1] == token_chunks(second, parts[0][0], 1)[0] and whole[2] == token_chunks("", parts[0][0], 1)[0]
    for prompt, row in ((first + " " + second, 0), ("short", 1)):
        embeds, pooled = encode_prompts([prompt], *parts, chunks=3)
        alone = [encode_prompts([text], *parts) for text in ((first, second, "") if row == 0 else ("short", "", ""))]
        torch.testing.assert_close(embeds[0], torch.cat([one[0][0] for one in alone]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(pooled, alone[0][1], atol=1e-5, rtol=1e-5)
