"""Prompts to SDXL's two text conditions. Knows no files."""

import torch

from sdxl_lora.errors import DataError


@torch.no_grad()
def encode_prompts(prompts, tokenizers, text_encoders):
    """What StableDiffusionXLPipeline.encode_prompt gives for the prompts.

    Args:
        prompts: B strings; what exceeds 75 tokens is cut off (see `token_count`).
        tokenizers, text_encoders: SDXL's two of each, in order.
    Returns:
        prompt_embeds (B, 77, D1 + D2): penultimate hidden states of both encoders side by side;
        pooled_embeds (B, P): the projected output of the second.
    """
    hidden_states = []
    for tokenizer, encoder in zip(tokenizers, text_encoders, strict=True):
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        output = encoder(tokens.input_ids.to(encoder.device), output_hidden_states=True)
        hidden_states.append(output.hidden_states[-2])
    return torch.cat(hidden_states, dim=-1), output.text_embeds


def token_count(prompt: str, tokenizer) -> int:
    """CLIP tokens of a prompt without its start and end marks; SDXL reads 75."""
    if not isinstance(prompt, str):
        raise DataError(f"a caption must be text, this one is {prompt!r}")
    return len(tokenizer(prompt, add_special_tokens=False).input_ids)
