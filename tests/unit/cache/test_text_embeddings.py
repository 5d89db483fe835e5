"""Text embeddings on disk, each prompt once."""

import pytest
import torch

from sdxl_lora.cache.records import Workers, write_record
from sdxl_lora.cache.text_embeddings import TextCache
from sdxl_lora.errors import DataError
from sdxl_lora.models.loading import Base, load_text_parts


def test_without_encoders_a_damaged_record_is_named(tmp_path):
    texts = TextCache(tmp_path, "key")
    write_record(texts.path("a cat"), {"prompt_embeds": torch.ones(77, 8)})
    path = texts.path("a cat")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=f"{path.name} is a damaged cache record"):
        texts.read("a cat")


def test_prompts_are_stored_once(tmp_path, tiny_base):
    parts = load_text_parts(Base(str(tiny_base)), torch.float32)
    assert TextCache(tmp_path, "key").fill(["a", "b", "a"], *parts, Workers()) == 2
