"""A checkpoint that an earlier version wrote goes on as if that version had been this one.

tests/data/former_checkpoint holds it after two of the four steps, without its LoRA files, and the images it has seen.
"""

import json
import shutil

import pytest
from safetensors.torch import load_file

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.models.base_weights import base_sha256
from tests.helpers.paths import ROOT
from tests.helpers.runs import column, largest_difference, weights_of

FORMER = ROOT / "tests" / "data" / "former_checkpoint"


def test_a_checkpoint_of_an_earlier_version_goes_on(train, tmp_path):
    base = tmp_path / "base"
    tiny_sdxl(depth=2).save_pretrained(base)
    facts = json.loads((FORMER / "checkpoint-2" / "manifest.json").read_text())["facts"]
    if base_sha256(str(base)) != facts["base"]:
        pytest.skip("the tiny base has other weights here than where the checkpoint was written")
    settings = {
        "pretrained_model_name_or_path": str(base),
        "train_data_dir": str(FORMER / "images"), "rank": 1, "block_ranks": ("down=0", "mid=0"), "adam_epsilon": 1e-4,
        "validation_split": 0.34, "validation_steps": 1, "random_flip": True, "lora_dropout": 0.1, "ema_decay": 0.9,
        "shuffle_caption": True, "caption_separator": " ", "max_train_steps": 4, "deterministic": True,
    }  # fmt: skip
    whole = train(**settings, target_modules="attention", output_dir=str(tmp_path / "whole"))
    shutil.copytree(FORMER / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    run = train(**settings, target_modules="auto")  # which was attention then, and is so here
    assert column(run, "step") == [3, 4]
    assert column(run, "loss") == pytest.approx(column(whole, "loss")[2:], rel=1e-4)
    assert largest_difference(weights_of(run, 4), weights_of(whole, 4)) < 1e-5
    averages = [load_file(folder / "checkpoint-4" / "ema_state.safetensors") for folder in (run, whole)]
    assert largest_difference(*averages) < 1e-5
    best, expected = (json.loads((folder / "checkpoint-4" / "best.json").read_text()) for folder in (run, whole))
    assert best.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-4) and best == expected
