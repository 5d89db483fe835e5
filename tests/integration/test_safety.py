"""Side effects that a run must not have: write secrets, wait for W&B, grow."""

import getpass
import os
import time

import psutil
import pytest
import wandb
from safetensors import safe_open

from sdxl_lora.run.events import read_events
from tests.helpers.launch import Launched, launch
from tests.helpers.marks import slow

CANARIES = {
    "HF_TOKEN": "hf_canaryCanaryCanaryCanaryCanary01",
    "HUGGING_FACE_HUB_TOKEN": "hf_canaryCanaryCanaryCanaryCanary02",
    "WANDB_API_KEY": "canary0123456789012345678901234567890abc",
    "AWS_SECRET_ACCESS_KEY": "canarycanarycanarycanarycanarycanarycana",
}


def test_no_byte_that_a_run_writes_holds_a_token(train_config, tmp_path):
    settings = {"report_to": "all", "validation_prompt": ("a cat",), "num_validation_images": 1}
    codes, printed = launch(
        train_config(**settings, validation_inference_steps=1), tmp_path / "log", WANDB_MODE="offline", **CANARIES
    )
    assert codes == [0], printed
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("wandb" in str(path) for path in files) and any("tfevents" in path.name for path in files)
    for path in files:
        data = path.read_bytes()
        for canary in CANARIES.values():
            assert canary.encode() not in data, f"{path.relative_to(tmp_path)} holds {canary}"


@pytest.mark.parametrize("service", ["its own", *slow("of before")])
def test_wandb_that_is_not_reachable_costs_a_line_and_not_the_run(train_config, tmp_path, service):
    """The discard port of this machine in place of the server."""
    if service == "of before":  # as under a sweep
        wandb.setup().ensure_service()
    environment = {"WANDB_SERVICE": os.environ["WANDB_SERVICE"]} if service == "of before" else {}
    environment |= {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "5"}
    codes, printed = launch(
        train_config(report_to="wandb"), tmp_path / "log", WANDB_API_KEY=CANARIES["WANDB_API_KEY"], **environment
    )
    assert codes == [0], printed
    assert printed.count("W&B cannot be reached") == 1 and "wandb sync" in printed
    assert len(list(read_events(tmp_path / "run" / "events.jsonl", "step"))) == 4
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_nothing_private_is_in_the_lora_file(train_config, tmp_path):
    codes, printed = launch(train_config(), tmp_path / "log")
    assert codes == [0], printed
    for path in (tmp_path / "run").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            metadata = str(file.metadata())
        for private in (str(tmp_path), os.path.expanduser("~"), getpass.getuser()):
            assert private not in metadata


@pytest.mark.parametrize("steps", [120, *slow(2000)])
def test_memory_files_and_threads_do_not_grow(train_config, tmp_path, steps):
    """Between a quarter of the steps and their end, measured from outside."""
    config = train_config(
        max_train_steps=10_000, checkpointing_steps=25, checkpoints_total_limit=2, report_to="tensorboard"
    )
    launched = Launched(config, tmp_path / "log")
    process = psutil.Process(launched.processes[0].pid)
    measured = []
    for wanted in (steps // 4, steps):
        while count_steps(tmp_path / "run") < wanted:
            assert process.is_running(), launched.printed()
            time.sleep(0.2)
        measured.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
    (tmp_path / "run" / "stop").touch()
    assert launched.wait() == [0]
    (memory, files, threads), (memory_later, files_later, threads_later) = measured
    assert memory_later - memory < 32 * 2**20 and files_later <= files + 1 and threads_later <= threads


def count_steps(run):
    return sum(1 for _ in read_events(run / "events.jsonl", "step")) if (run / "events.jsonl").exists() else 0
