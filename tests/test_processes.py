"""Two real processes (gloo, no GPU): the one-process result at the same images per step."""

import os
import socket
import subprocess
import sys

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sdxl_lora.config import to_yaml
from sdxl_lora.events import read_events

from .conftest import ROOT


def launch(config, tmp_path, processes=2):
    """Run train_sdxl_lora.py under `accelerate launch` as the README says; returns the finished process."""
    file = tmp_path / "launched.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "accelerate.commands.launch",
        "--config_file", "accelerate_configs/cpu_two_processes.yaml",
        "--num_processes", str(processes), "--main_process_port", str(port),
        "train_sdxl_lora.py", "--config", str(file),
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def two_sizes(photographs, tmp_path_factory):
    """Path of a saved dataset of prepared pictures: three of 64x64, two of 96x64."""
    folder = tmp_path_factory.mktemp("two_sizes")
    rows = {"image": [], "text": [], "original_size": [], "crop_top_left": []}
    for number, path in enumerate([*sorted(photographs.iterdir()), min(photographs.iterdir())]):
        width = 64 if number < 3 else 96
        with Image.open(path) as photograph:
            photograph.resize((width, 64)).save(folder / f"{number}.png")
        rows["image"].append(str(folder / f"{number}.png"))
        rows["text"].append(f"photograph {number}")
        rows["original_size"].append([512, 8 * width])
        rows["crop_top_left"].append([0, number])
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.save_to_disk(folder / "disk")
    return folder / "disk"


def test_two_processes_give_the_one_process_result(train, train_config, two_sizes, tmp_path):
    """Two sizes, short last steps, samples and checkpoints included. Two epochs: 6 + 4 turns in steps of 4."""
    settings = {
        "train_data_dir": None, "dataset_name": str(two_sizes), "max_train_steps": None, "num_train_epochs": 2,
        "adam_epsilon": 1e-4, "checkpointing_steps": 1, "checkpoints_total_limit": 2, "random_flip": True,
        "validation_prompt": ("a cat",), "num_validation_images": 2, "validation_inference_steps": 2,
    }  # fmt: skip
    one = train(**settings, train_batch_size=4, output_dir=str(tmp_path / "one"))
    two = tmp_path / "two"
    result = launch(
        train_config(**settings, train_batch_size=2, output_dir=str(two), cache_dir=str(tmp_path / "cache of two")),
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert next(read_events(two / "events.jsonl", "started"))["processes"] == 2

    steps = [list(read_events(run / "events.jsonl", "step")) for run in (one, two)]
    assert [len(of_run) for of_run in steps] == [3, 3]
    for ours, theirs in zip(*steps, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)
        assert theirs["learning_rate"] == ours["learning_rate"]
    weights = [load_file(run / "checkpoint-3" / "lora_state.safetensors") for run in (one, two)]
    assert max((weights[0][name] - weights[1][name]).abs().max() for name in weights[0]) < 1e-6

    for run in (one, two):
        assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
        assert len(list((run / "samples").glob("step-000003-*.png"))) == 2
    caches = [{path.name: load_file(path) for path in folder.rglob("*.safetensors")} for folder in
              (tmp_path / "cache", tmp_path / "cache of two")]  # fmt: skip
    assert caches[0].keys() == caches[1].keys()
    for name, record in caches[0].items():
        assert all(torch.equal(record[key], caches[1][name][key]) for key in record)


def test_an_error_on_one_process_ends_both_with_its_words(train_config, tmp_path):
    result = launch(train_config(train_data_dir="nowhere"), tmp_path)
    assert result.returncode != 0
    assert "error: no such folder: nowhere" in result.stderr
