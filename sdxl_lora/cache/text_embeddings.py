"""Cache of text embeddings on disk."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from sdxl_lora.cache.records import Workers, is_whole, read_record, record_path, write_record
from sdxl_lora.errors import DataError
from sdxl_lora.models.text_encoders import CHUNK, encode_prompts, token_count

TextParts: TypeAlias = tuple[Sequence[CLIPTokenizer], Sequence[CLIPTextModel]]  # two of each


class TextCache:
    """Embeddings of prompts: `prompt_embeds` (77 * chunks, D) and `pooled_embeds` (P,), each prompt stored once.

    With `live_parts`, tokenizers and encoders, prompts that are not stored are encoded on reading.
    With `load_parts`, which loads these, a record found damaged is made again, on the CPU.
    """

    def __init__(
        self,
        folder: Path,
        encoders_key: str,
        chunks: int = 1,
        live_parts: TextParts | None = None,
        load_parts: Callable[[], TextParts] | None = None,
    ):
        self.folder, self.encoders_key, self.chunks = folder / "text", encoders_key, chunks
        self.live_parts, self.load_parts = live_parts, load_parts

    def path(self, prompt: str) -> Path:
        more = (self.chunks,) if self.chunks > 1 else ()
        return record_path(self.folder, prompt, self.encoders_key, *more)

    def read(self, prompt: str) -> dict[str, torch.Tensor]:
        if self.live_parts and not self.path(prompt).exists():
            return self.encode(prompt, *self.live_parts)
        try:
            return read_record(self.path(prompt))
        except DataError:
            if self.load_parts is None:
                raise
            warnings.warn(f"{self.path(prompt)} is damaged and will be made again", stacklevel=2)
            write_record(self.path(prompt), self.encode(prompt, *self.load_parts()))
            return read_record(self.path(prompt))

    def missing(self, prompts: Iterable[str], workers: Workers) -> list[str]:
        """Return this process's share of the prompts whose records are missing or incomplete."""
        return [prompt for prompt in workers.share(sorted(set(prompts))) if not is_whole(self.path(prompt))]

    def encode(self, prompt: str, tokenizers, text_encoders) -> dict[str, torch.Tensor]:
        """Encode one prompt alone: in a batch the last bits would depend on the other prompts."""
        prompt_embeds, pooled_embeds = encode_prompts([prompt], tokenizers, text_encoders, self.chunks)
        return {"prompt_embeds": prompt_embeds[0].cpu(), "pooled_embeds": pooled_embeds[0].cpu()}

    def fill(self, prompts: Iterable[str], tokenizers, text_encoders, workers: Workers) -> int:
        """Encode this process's share of the missing prompts; return their number."""
        missing = self.missing(prompts, workers)
        for prompt in tqdm(missing, desc="caching text embeddings", disable=workers.rank > 0 or not missing):
            if workers.should_stop():
                break
            write_record(self.path(prompt), self.encode(prompt, tokenizers, text_encoders))
        return len(missing)


def warn_of_long_prompts(prompts: Iterable[str], tokenizer, chunks: int) -> None:
    counts = {prompt: token_count(prompt, tokenizer) for prompt in set(prompts)}
    long = [prompt for prompt, count in counts.items() if count > CHUNK * chunks]
    if long:
        longest = max(counts.values())
        warnings.warn(
            f"{len(long)} prompts are longer than {CHUNK * chunks} tokens and are cut off there, such as "
            f"{min(long)[:60]!r}; --max_caption_chunks {-(-longest // CHUNK)} reads them in full",
            stacklevel=3,
        )
