"""Steps of a run from its folder, and the weights in its checkpoints."""

import shutil

import torch
from safetensors.torch import load_file

from sdxl_lora.run.events import read_events


def steps_of(run):
    return list(read_events(run / "events.jsonl", "step"))


def column(run, name):
    return [step[name] for step in steps_of(run)]


def weights_of(run, step):
    return load_file(run / f"checkpoint-{step}" / "lora_state.safetensors")


def assert_equal_weights(one, two):
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def assert_resumes_exactly(train, folder, **settings):
    """Assert that three steps equal two and a resumed third; return the run of three."""
    settings |= {"max_train_steps": 3, "checkpointing_steps": 2}
    whole = train(**settings, output_dir=str(folder / "whole"))
    shutil.copytree(whole / "checkpoint-2", folder / "parts" / "checkpoint-2")
    parts = train(**settings, output_dir=str(folder / "parts"))
    assert [step["step"] for step in steps_of(parts)] == [3]
    assert_equal_weights(weights_of(parts, 3), weights_of(whole, 3))
    return whole


def largest_difference(one, two):
    return max((one[name] - two[name]).abs().max().item() for name in one)


def first_batch(trained):
    """Return the first step's batch of a `Trained`, on the device."""
    train_step = trained.train_step
    return train_step.on_device(trained.data.collator(train_step.shape)(trained.data.sampler.epoch(0)[0]))
