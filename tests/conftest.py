"""The tiny SDXL and the real photographs that the tests share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Path of a diffusers folder with the tiny random SDXL."""
    from examples.tiny_sdxl import tiny_sdxl

    folder = tmp_path_factory.mktemp("models") / "tiny-sdxl"
    tiny_sdxl().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Path of a folder with four real photographs from scikit-image, of different sizes, as .png and .jpg."""
    from PIL import Image
    from skimage import data

    folder = tmp_path_factory.mktemp("raw")
    for name, suffix in [("astronaut", "png"), ("chelsea", "jpg"), ("coffee", "png"), ("rocket", "jpg")]:
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.{suffix}")
    return folder


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
