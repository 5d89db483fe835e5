"""Trainings on a stream: resumed, by two processes, and from the Hub."""

import shutil

import datasets
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from sdxl_lora.data.stream_reader import open_stream
from sdxl_lora.errors import CheckpointError, DataError
from sdxl_lora.run.events import read_events
from tests.helpers.hub_server import Hub
from tests.helpers.launch import launch
from tests.helpers.streams import batches_of, steps_of


def weights_of(run, step):
    return load_file(run / f"checkpoint-{step}" / "lora_state.safetensors")


def settings_of(shards, **more):
    return {
        "train_data_dir": str(shards), "dataset_streaming": True, "max_train_steps": 6, "checkpointing_steps": 2,
        "random_flip": True, "proportion_empty_prompts": 0.3, "train_batch_size": 2,
        "shuffle_buffer_size": 6, **more,
    }  # fmt: skip


def test_a_resumed_run_on_a_stream_equals_an_uninterrupted_one(train, shards, tmp_path):
    settings = settings_of(shards, validation_prompt=("a cat",), num_validation_images=1, validation_inference_steps=1)
    whole = train(**settings, output_dir=str(tmp_path / "whole"))
    parts = tmp_path / "parts"
    train(**{**settings, "max_train_steps": 4}, output_dir=str(parts))
    train(**settings, output_dir=str(parts))
    assert all(torch.equal(tensor, weights_of(parts, 6)[name]) for name, tensor in weights_of(whole, 6).items())
    losses = [[step["loss"] for step in read_events(run / "events.jsonl", "step")] for run in (whole, parts)]
    assert losses[0] == losses[1] and len(set(losses[0])) == 6
    with pytest.raises(CheckpointError, match="6 images shuffled at a time"):
        train(**{**settings, "shuffle_buffer_size": 7}, output_dir=str(parts))
    with pytest.raises(CheckpointError, match="dataset_streaming"):
        train(train_data_dir=str(shards), train_batch_size=2, random_flip=True, output_dir=str(parts))


@pytest.fixture
def hub(tmp_path, monkeypatch, shards):
    """A Hub with the shards as the private dataset me/cat."""
    server = Hub(tmp_path / "hub", "hf_token")
    shutil.copytree(shards, tmp_path / "hub" / "me" / "cat")
    for module, name, value in [
        (huggingface_hub.constants, "ENDPOINT", server.endpoint),
        (
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        ),
        (huggingface_hub.constants, "HF_HUB_OFFLINE", False),
        (huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub cache")),
        (datasets.config, "HF_ENDPOINT", server.endpoint),
        (datasets.config, "HF_HUB_OFFLINE", False),
        (datasets.config, "STREAMING_READ_MAX_RETRIES", 1),
        (datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0),
    ]:
        monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    yield server
    server.close()


def test_a_private_dataset_on_the_hub_trains_as_its_files_do_and_goes_on_exactly(train, hub, shards, tmp_path):
    settings = settings_of(shards, max_train_steps=4)
    train(**settings, output_dir=str(tmp_path / "files"))
    settings |= {"train_data_dir": None, "dataset_name": "me/cat"}
    train(**{**settings, "max_train_steps": 2}, output_dir=str(tmp_path / "run"))
    train(**settings, output_dir=str(tmp_path / "run"))
    files, run = (weights_of(tmp_path / name, 4) for name in ("files", "run"))
    assert all(torch.equal(tensor, run[name]) for name, tensor in files.items())


def test_a_hub_that_does_not_answer_is_named_at_the_start_and_on_the_way(hub, monkeypatch):
    batches = batches_of(None, batch_size=1, dataset_name="me/cat")
    hub.refuse = "/resolve/"
    with pytest.raises(DataError, match=r"cannot read any further in the stream: .*(403|permission)"):
        steps_of(batches, 0, 8)
    hub.refuse = ""
    batches = batches_of(None, batch_size=1, dataset_name="me/cat")
    hub.close()
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's attempts, half a minute in all
    with pytest.raises(DataError, match="cannot read any further in the stream: "):
        steps_of(batches, 0, 8)
    with pytest.raises(DataError, match="cannot open the stream me/cat: "):
        open_stream(None, "me/cat")


def test_two_processes_on_a_stream_go_on_exactly_and_one_is_refused(train_config, shards, tmp_path):
    settings = settings_of(shards, train_batch_size=1)
    one, two = (train_config(**settings, output_dir=str(tmp_path / name)) for name in ("whole", "parts"))
    assert launch(one, tmp_path / "log", world_size=2)[0] == [0, 0]
    codes, printed = launch(two, tmp_path / "log", world_size=2, TRAINER_FAULT="term@step=3")
    assert codes == [0, 0], printed
    alone = train_config(**{**settings, "train_batch_size": 2}, output_dir=str(tmp_path / "parts"))
    codes, printed = launch(alone, tmp_path / "log")
    assert codes == [4] and "a stream of 4 files, read by 2 processes" in printed, printed
    assert launch(two, tmp_path / "log", world_size=2)[0] == [0, 0]
    whole, parts = (weights_of(tmp_path / name, 6) for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
