"""Bases in the forms that people share: the tiny one in single files and folders, changed at will."""

import json
import shutil
import warnings

import pytest
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.errors import ConfigError
from sdxl_lora.models.loading import Base, check_base
from tests.helpers.original_layout import write_original_layout

UNET = "model.diffusion_model."
FIRST_CONVOLUTION = UNET + "input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def original(tiny_base, tmp_path_factory):
    """Tensors of the tiny base by their original names."""
    path = tmp_path_factory.mktemp("original") / "tiny.safetensors"
    write_original_layout(StableDiffusionXLPipeline.from_pretrained(tiny_base), path)
    return load_file(path)


@pytest.fixture
def base_of(tiny_base, tmp_path):
    """Function from tensors to a Base of one file with them."""

    def make(tensors, name="model.safetensors", metadata=None, **more):
        save_file(tensors, tmp_path / name, metadata)
        return Base(str(tmp_path / name), config_path=str(tiny_base), **more)

    return make


@pytest.fixture
def folder(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "folder")


def set_config(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def one_line(base):
    """Return the one-line message with which check_base refuses the base."""
    with pytest.raises(ConfigError) as raised:
        check_base(base)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def notes_of(base):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_base(base)
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


@pytest.fixture(scope="module")
def bases(tiny_base, tmp_path_factory):
    """The tiny base as a diffusers folder and as one file in the original layout."""
    single = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    write_original_layout(tiny_sdxl(), single)
    return {"folder": tiny_base, "single": single}
