"""Caches of four photographs, filled by the tiny base."""

from pathlib import Path

import pytest
import torch

from sdxl_lora.cache.fill import fill_caches
from sdxl_lora.data.dataset import open_dataset
from sdxl_lora.data.image_dataset import ImageDataset
from sdxl_lora.models.loading import Base


@pytest.fixture
def images(captioned_photographs):
    return ImageDataset(open_dataset(str(captioned_photographs)), resolution=64)


def fill(folder, base, images, **settings):
    return fill_caches(
        folder, Base(str(base)), images, [""], (False, True), torch.device("cpu"), torch.float32, **settings
    )


def records(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def nothing_is_cached(folder: Path) -> bool:
    """Return whether the cache in a folder holds no more than facts about the base, see `tried_base`."""
    return all(path.name == "memo.json" for path in (folder / "cache").rglob("*"))
