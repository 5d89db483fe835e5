"""The tiny SDXL, the real photographs and the in-process training that the tests share."""

import gc
import json
import os

from tests.helpers.configs import flat_train_config

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs in three processes, which wait a third of their time
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # many tests compare bits, see processes.set_arithmetic
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

from pathlib import Path

import pytest

from tests.helpers.building import build, forget_accelerators  # noqa: F401
from tests.helpers.fixtures import (  # noqa: F401
    five_of_two_sizes,
    nine_images,
    tiny_blip,
    tiny_florence2,
    two_layers,
    two_sizes,
)

LONGEST = (  # files that begin first: else all wait for them at the end
    "test_browser", "test_learning", "test_faults", "test_ranks", "test_captions", "test_train", "test_processes",
    "test_launchers", "test_machines", "test_proxy", "test_stops", "test_full_disks", "test_streams",
)  # fmt: skip
CAPTIONS = {
    "astronaut": "a woman in an orange suit",
    "chelsea": "a tabby cat",
    "coffee": "a cup of coffee on a table",
    "rocket": "a rocket on its launch pad",
}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Path of a diffusers folder with the tiny random SDXL, of one layer a level: it trains in two thirds of the time.

    Tests that need SDXL's two layers take `two_layers`; where a whole file does, it is the file's own `tiny_base`.
    """
    from examples.tiny_sdxl import tiny_sdxl

    folder = tmp_path_factory.mktemp("models") / "tiny-sdxl"
    tiny_sdxl(layers=1).save_pretrained(folder)
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


@pytest.fixture(scope="session")
def captioned_photographs(photographs, tmp_path_factory):
    """The photographs with a .txt caption beside each."""
    folder = tmp_path_factory.mktemp("captioned")
    for path in photographs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / f"{path.stem}.txt").write_text(CAPTIONS[path.stem], encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def full_configs(tmp_path_factory):
    """A folder with configs and tokenizers of the full SDXL, and no weights."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler

    from examples.full_sdxl import full_sdxl
    from examples.tiny_sdxl import tiny_tokenizer

    folder = tmp_path_factory.mktemp("full")
    names = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "EulerDiscreteScheduler"}
    names |= {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    index = {
        name: ["diffusers" if name in ("unet", "vae", "scheduler") else "transformers", names[name]] for name in names
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline", **index}))
    for name, model in full_sdxl().items():
        (model.save_config if name == "unet" else model.config.save_pretrained)(folder / name)
    types = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **types).save_config(folder / "vae")
    EulerDiscreteScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    for name in ("tokenizer", "tokenizer_2"):
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture
def tried_base(tiny_base):
    """What a run on the tiny base keeps in memo.json of what it predicts: nothing shows. To try costs a fifth of a
    short run."""
    from sdxl_lora.models.base_weights import base_sha256
    from sdxl_lora.models.prediction import facts_of_trial

    return {"|".join(facts_of_trial(base_sha256(str(tiny_base)))): {"readings": {}, "schedules": {}}}


@pytest.fixture
def train_config(tiny_base, tried_base, captioned_photographs, tmp_path):
    """A function from settings to the TrainConfig of a short run on the tiny base, into tmp_path / "run".

    What the base predicts is not tried, unless its cache has a memo.json before.
    """

    def make(**settings):
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "pretrained_model_name_or_path": str(tiny_base),
            "train_data_dir": str(captioned_photographs),
            "cache_dir": str(tmp_path / "cache"),
            "resolution": 64,
            "rank": 4,
            "target_modules": "attention",
            "learning_rate": 1e-3,
            "max_train_steps": 4,
            "mixed_precision": "no",
            "report_to": "none",
            "save_precision": "fp32",
        }
        config = flat_train_config(**{**defaults, **settings})
        memo = config.cache_folder / "memo.json"
        if config.model.pretrained_model_name_or_path == str(tiny_base) and not memo.exists():
            memo.parent.mkdir(parents=True, exist_ok=True)
            memo.write_text(json.dumps(tried_base), encoding="utf-8")
        return config

    return make


@pytest.fixture
def train(train_config):
    """A function that trains in this process with the given settings and returns the run's folder.

    Its attribute `trained` is what the last training was made of, a `Trained`; None where it was stopped or failed.
    """
    import train_sdxl_lora

    def run(**settings):
        gc.freeze()  # else each of a run's two collections walks half a second through the imports
        forget_accelerators()
        run.trained = None
        config = train_config(**settings)
        run.trained = train_sdxl_lora.train(config)
        return Path(config.output_dir)

    return run


def pytest_collection_finish():
    gc.freeze()  # what the imports have made stays: no collection looks at it again
    gc.set_threshold(50_000, 20, 50)  # models are made and dropped all the time; collections took a twentieth of it


def pytest_collection_modifyitems(items):
    import torch  # here: the process that shares out the tests collects none, and needs no torch

    items.sort(key=lambda item: (*LONGEST, item.path.stem).index(item.path.stem))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
