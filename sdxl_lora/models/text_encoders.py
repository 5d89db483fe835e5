"""Encode prompts into SDXL's two text conditions, with frozen or training encoders. Knows no files."""

from collections.abc import Mapping

import torch
from torch import nn

from sdxl_lora.errors import DataError

CHUNK = 75  # tokens that CLIP reads at once, without its start and end marks
TOKENS = ("tokens", "tokens_2")  # keys in a batch, one per encoder


@torch.no_grad()
def encode_prompts(prompts, tokenizers, text_encoders, chunks=1):
    """Return StableDiffusionXLPipeline.encode_prompt's embeddings, and longer ones for several chunks.

    Each chunk of 75 tokens is encoded separately and the results are concatenated, as in A1111 and ComfyUI; a shorter
    prompt is filled up with chunks of the empty prompt, so that all have one length.

    Args:
        prompts: B strings; tokens beyond 75 per chunk are cut off (see `token_count`).
        tokenizers, text_encoders: SDXL's two of each, in order.
    Returns:
        prompt_embeds (B, 77 * chunks, D1 + D2): penultimate hidden states of both encoders side by side;
        pooled_embeds (B, P): the projected output of the second, for the first chunk.
    """
    tokens = [prompt_tokens(prompts, tokenizer, chunks).to(text_encoders[0].device) for tokenizer in tokenizers]
    return encode_tokens(tokens, text_encoders, chunks)


def encode_tokens(tokens, text_encoders, chunks=1):
    """Encode like `encode_prompts`, with gradients, from tokens (B * chunks, 77) for each encoder."""
    hidden_states = []
    for of_encoder, encoder in zip(tokens, text_encoders, strict=True):
        output = encoder(of_encoder, output_hidden_states=True)
        hidden_states.append(output.hidden_states[-2].unflatten(0, (-1, chunks)).flatten(1, 2))
    return torch.cat(hidden_states, dim=-1), output.text_embeds[::chunks]


def prompt_tokens(prompts, tokenizer, chunks: int) -> torch.Tensor:
    """Tokens (B * chunks, 77) of the prompts."""
    return torch.tensor([chunk for prompt in prompts for chunk in token_chunks(prompt, tokenizer, chunks)])


def token_chunks(prompt: str, tokenizer, chunks: int) -> list[list[int]]:
    """Return `chunks` rows of 77 tokens: start, up to 75 of the prompt's tokens, end, padding."""
    tokens = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    parts = [tokens[CHUNK * i : CHUNK * (i + 1)] for i in range(chunks)]
    rows = [[tokenizer.bos_token_id, *part, tokenizer.eos_token_id] for part in parts]
    return [row + [tokenizer.pad_token_id] * (CHUNK + 2 - len(row)) for row in rows]


def token_count(prompt: str, tokenizer) -> int:
    """Return the number of a prompt's CLIP tokens without start and end marks; SDXL reads 75 per chunk."""
    if not isinstance(prompt, str):
        raise DataError(f"a caption must be text, this one is {prompt!r}")
    return len(tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)


class TextEncoders(nn.Module):
    """Both encoders as one module, so that training wrappers need to wrap only one."""

    def __init__(self, text_encoder: nn.Module, text_encoder_2: nn.Module):
        super().__init__()
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2

    def forward(self, tokens, tokens_2, chunks: int):
        return encode_tokens((tokens, tokens_2), (self.text_encoder, self.text_encoder_2), chunks)


class LiveTextEncoder:
    """Embeddings from text encoders in training, with their current weights; read like a TextCache."""

    def __init__(self, tokenizers, encoders: TextEncoders, encoders_key: str, chunks: int = 1):
        self.tokenizers, self.encoders, self.encoders_key, self.chunks = tokenizers, encoders, encoders_key, chunks

    def tokens_of(self, prompts) -> dict[str, torch.Tensor]:
        """Return tokens (B * chunks, 77) for each encoder, on its device."""
        device = next(self.encoders.text_encoder.parameters()).device
        return {
            name: prompt_tokens(prompts, tokenizer, self.chunks).to(device, non_blocking=True)
            for name, tokenizer in zip(TOKENS, self.tokenizers, strict=True)
        }

    def encode_tokens(self, tokens: Mapping[str, torch.Tensor], encoders: nn.Module) -> dict[str, torch.Tensor]:
        """Return prompt_embeds (B, 77 * chunks, D), pooled_embeds (B, P) with gradients; `encoders` may be wrapped."""
        prompt_embeds, pooled_embeds = encoders(*(tokens[name] for name in TOKENS), self.chunks)
        return {"prompt_embeds": prompt_embeds, "pooled_embeds": pooled_embeds}

    @torch.no_grad()
    def read(self, prompt: str) -> dict[str, torch.Tensor]:
        """Encode one prompt without dropout: prompt_embeds (77 * chunks, D) and pooled_embeds (P,) on the CPU."""
        was_training = self.encoders.training
        self.encoders.eval()
        try:
            encoded = self.encode_tokens(self.tokens_of([prompt]), self.encoders)
            return {name: tensor[0].cpu() for name, tensor in encoded.items()}
        finally:
            self.encoders.train(was_training)
