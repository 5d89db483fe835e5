"""Prompts to SDXL's two text conditions. Knows no files."""

import torch

from sdxl_lora.errors import DataError

CHUNK = 75  # tokens that CLIP reads at once, beside its start and end marks


@torch.no_grad()
def encode_prompts(prompts, tokenizers, text_encoders, chunks=1):
    """What StableDiffusionXLPipeline.encode_prompt gives for the prompts, and more of long ones.

    With several chunks each 75 tokens are read by themselves and the results stand one behind the other, as in A1111
    and ComfyUI; a prompt that fills fewer chunks goes on with those of the empty prompt, so that all have one length.

    Args:
        prompts: B strings; what exceeds 75 tokens per chunk is cut off (see `token_count`).
        tokenizers, text_encoders: SDXL's two of each, in order.
    Returns:
        prompt_embeds (B, 77 * chunks, D1 + D2): penultimate hidden states of both encoders side by side;
        pooled_embeds (B, P): the projected output of the second, for the first chunk.
    """
    hidden_states = []
    for tokenizer, encoder in zip(tokenizers, text_encoders, strict=True):
        tokens = torch.tensor([chunk for prompt in prompts for chunk in token_chunks(prompt, tokenizer, chunks)])
        output = encoder(tokens.to(encoder.device), output_hidden_states=True)
        hidden_states.append(output.hidden_states[-2].unflatten(0, (-1, chunks)).flatten(1, 2))
    return torch.cat(hidden_states, dim=-1), output.text_embeds[::chunks]


def token_chunks(prompt: str, tokenizer, chunks: int) -> list[list[int]]:
    """`chunks` rows of 77 tokens: start, up to 75 of the prompt's, end, padding."""
    tokens = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    parts = [tokens[CHUNK * i : CHUNK * (i + 1)] for i in range(chunks)]
    rows = [[tokenizer.bos_token_id, *part, tokenizer.eos_token_id] for part in parts]
    return [row + [tokenizer.pad_token_id] * (CHUNK + 2 - len(row)) for row in rows]


def token_count(prompt: str, tokenizer) -> int:
    """CLIP tokens of a prompt without its start and end marks; SDXL reads 75 per chunk."""
    if not isinstance(prompt, str):
        raise DataError(f"a caption must be text, this one is {prompt!r}")
    return len(tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)
