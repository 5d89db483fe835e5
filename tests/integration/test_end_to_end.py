"""The whole way as a person goes it: photographs, `python -m preprocess`, `accelerate launch`, a picture."""

import json
import os
import subprocess
import sys

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open

from sdxl_lora.run.events import read_events
from tests.conftest import CAPTIONS
from tests.helpers.paths import ROOT


@pytest.fixture(scope="session")
def tiny_base(two_layers):
    """LoRA files have kohya's names where each level has SDXL's two layers."""
    return two_layers


def run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_photographs_to_a_picture_drawn_with_the_lora(captioned_photographs, tiny_base, tmp_path):
    run(
        "-m", "preprocess", "--input_dir", captioned_photographs, "--output_dir", tmp_path / "dataset",
        "--trigger_word", "sks", "--resolution", 64, "--bucket_step", 16, "--caption_model", "none",
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "dataset" / "metadata.jsonl").read_text().splitlines()]
    assert {row["text"] for row in rows} == {f"sks, {caption}" for caption in CAPTIONS.values()}

    (tmp_path / "run.yaml").write_text(
        f"pretrained_model_name_or_path: {tiny_base}\ntrain_data_dir: {tmp_path / 'dataset'}\n"
        f"output_dir: {tmp_path / 'run'}\noutput_name: cat\nmixed_precision: 'no'\nlora_alpha: 8\nnum_train_epochs: 2\n"
        "validation_prompt: [sks a tabby cat]\nnum_validation_images: 1\nvalidation_inference_steps: 2\n"
    )
    printed = run(
        "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml", "train_sdxl_lora.py",
        "--config", tmp_path / "run.yaml", "--learning_rate", "1e-2",
    )  # fmt: skip
    assert "cat.safetensors" in printed and "trigger word: sks" in printed and "<lora:cat:1>" in printed
    steps = list(read_events(tmp_path / "run" / "events.jsonl", "step"))
    assert [step["step"] for step in steps] == list(range(1, 9)) and steps[0]["learning_rate"] == 1e-2
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    with safe_open(tmp_path / "run" / "cat.safetensors", framework="pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "sks"

    images = {}
    for name in (None, "cat.safetensors", "pytorch_lora_weights.safetensors"):
        pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_base)
        if name is not None:
            pipeline.load_lora_weights(tmp_path / "run", weight_name=name)
        images[name] = pipeline(
            "sks, a tabby cat", height=64, width=64, num_inference_steps=4, output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip
    both = images["cat.safetensors"], images["pytorch_lora_weights.safetensors"]
    assert (both[0] - images[None]).abs().mean() > 1e-3, "the LoRA changes the picture"
    torch.testing.assert_close(*both, atol=5e-3, rtol=0)  # fp16 rounding, drawn through four steps
