"""Runs of six steps with faults, compared with an uninterrupted one."""

import time

import pytest
import torch
from safetensors.torch import load_file

from sdxl_lora.run.checkpoints import checkpoints, problem_with
from sdxl_lora.run.events import read_events
from tests.helpers.launch import launch

STEPS = 6


@pytest.fixture
def config(train_config, tmp_path):
    """Function from settings to the config of a run of six steps, a checkpoint every second step, two images a step."""

    def make(name="run", **settings):
        defaults = {"max_train_steps": STEPS, "checkpointing_steps": 2, "checkpoints_total_limit": 2}
        return train_config(
            **{**defaults, "gradient_accumulation_steps": 2, "output_dir": str(tmp_path / name), **settings}
        )

    return make


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Final weights of uninterrupted runs, by the settings that matter; each is trained once."""
    return {}


def weights(folder):
    return load_file(checkpoints(folder)[-1] / "lora_state.safetensors")


def assert_ends_as_uninterrupted(uninterrupted, config, folder, **settings):
    """Assert that the final weights are equal bit for bit."""
    key = str(sorted(settings.items()))
    if key not in uninterrupted:
        whole = config("whole", **settings)
        codes, printed = launch(whole, folder.parent / "whole.log")
        assert codes == [0], printed
        uninterrupted[key] = weights(folder.parent / "whole")
    ours = weights(folder)
    assert checkpoints(folder)[-1].name == f"checkpoint-{STEPS}"
    assert all(torch.equal(ours[name], tensor) for name, tensor in uninterrupted[key].items())


def assert_all_valid(folder):
    assert all(problem_with(path) is None for path in checkpoints(folder))


def wait_for_step(folder, step, seconds=90):
    until = time.time() + seconds
    while not ((folder / "events.jsonl").exists() and len(list(read_events(folder / "events.jsonl", "step"))) >= step):
        assert time.time() < until, "the run does not get to its steps"
        time.sleep(0.05)
