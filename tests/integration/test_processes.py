"""Two real processes (gloo, no GPU): the one-process result at the same images per step."""

import os
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from sdxl_lora.config.cli import to_yaml
from sdxl_lora.run.checkpoints import problem_with
from sdxl_lora.run.events import read_events
from sdxl_lora.run.session import read_status
from tests.helpers.launch import free_port, launch
from tests.helpers.marks import slow
from tests.helpers.paths import ROOT


def start(config, tmp_path, launch_file):
    """Start train_sdxl_lora.py under `accelerate launch` as the README says; it prints to tmp_path/printed."""
    file = tmp_path / "launched.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{launch_file}",
        "--main_process_port", free_port(), "train_sdxl_lora.py", "--config", str(file),
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "printed", "w", encoding="utf-8") as printed:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=printed, stderr=printed)


def test_two_processes_give_the_one_process_result(train, train_config, five_of_two_sizes, tmp_path):
    """Two sizes, short last steps, samples and checkpoints included. Two epochs: 6 + 4 turns in steps of 4."""
    settings = {
        "train_data_dir": None, "datasets": (f"{{dataset_name: '{five_of_two_sizes}', trigger_word: sks}}",),
        "max_train_steps": None, "num_train_epochs": 2, "output_preservation": 0.5,
        "adam_epsilon": 1e-4, "checkpointing_steps": 1, "checkpoints_total_limit": 2, "random_flip": True,
        "validation_prompt": ("a cat",), "num_validation_images": 2, "validation_inference_steps": 2,
        "ema_decay": 0.9, "snr_gamma": 5.0, "noise_offset": 0.05, "proportion_empty_prompts": 0.3,
        "train_text_encoder": True,
    }  # fmt: skip
    one = train(**settings, train_batch_size=4, output_dir=str(tmp_path / "one"))
    two = tmp_path / "two"
    config = train_config(**settings, train_batch_size=2, output_dir=str(two), cache_dir=str(tmp_path / "cache of two"))
    codes, printed = launch(config, tmp_path / "log", world_size=2)
    assert codes == [0, 0], printed
    assert next(read_events(two / "events.jsonl", "started"))["processes"] == 2

    steps = [list(read_events(run / "events.jsonl", "step")) for run in (one, two)]
    assert [len(of_run) for of_run in steps] == [3, 3]
    for ours, theirs in zip(*steps, strict=True):
        # absolute where the base is preserved, whose loss is a difference of what is nearly equal
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5, abs=1e-9)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4, abs=1e-6)
        assert theirs["learning_rate"] == ours["learning_rate"]
        by_timestep = [{k: v for k, v in step.items() if k.startswith("loss_timesteps")} for step in (ours, theirs)]
        assert by_timestep[1] == pytest.approx(by_timestep[0], rel=1e-5)
        assert bool(by_timestep[0]) is ("preservation_loss" not in ours)
    assert 0 < sum("preservation_loss" in step for step in steps[0]) < 3
    for file in ("lora_state.safetensors", "ema_state.safetensors"):
        weights = [load_file(run / "checkpoint-3" / file) for run in (one, two)]
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
    codes, printed = launch(train_config(train_data_dir="nowhere"), tmp_path / "log", world_size=2)
    assert codes == [3, 3]
    assert "error: no such folder: nowhere" in printed


@pytest.mark.parametrize("launch_file", ["cpu.yaml", *slow("cpu_two_processes.yaml")])
def test_a_launcher_that_is_ended_leaves_a_saved_run_and_nothing_running(train_config, tmp_path, launch_file):
    """accelerate's launcher for one process dies of SIGTERM without a word to its worker; that for several tells."""
    run = tmp_path / "run"
    launcher = start(train_config(max_train_steps=100_000, output_dir=str(run)), tmp_path, launch_file)
    until = time.time() + 120
    while not (run / "events.jsonl").exists() or not list(read_events(run / "events.jsonl", "step")):
        assert time.time() < until and launcher.poll() is None, (tmp_path / "printed").read_text()
        time.sleep(0.2)
    workers = psutil.Process(launcher.pid).children(recursive=True)
    launcher.terminate()
    launcher.wait(60)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    status = read_status(run)
    assert status["state"] == "stopped" and status["last_checkpoint"] == f"checkpoint-{status['step']}"
    assert problem_with(run / status["last_checkpoint"]) is None
