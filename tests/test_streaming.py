"""A stream of pictures: nothing lost, nothing repeated, and a resumed run meets what an uninterrupted one does."""

import io
import json
import tarfile
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sdxl_lora.config import TrainConfig
from sdxl_lora.data import TrainingPictures
from sdxl_lora.errors import CheckpointError, ConfigError, DataError
from sdxl_lora.events import read_events
from sdxl_lora.streaming import StreamedBatches, StreamedPictures, open_stream, plain_row

from .forked import launch

PICTURES, SHARDS = 20, 4


def png(width, height, seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder of four Parquet files as preprocess writes them: 20 pictures of two sizes."""
    folder = tmp_path_factory.mktemp("shards")
    features = {"image": datasets.Image(), "text": datasets.Value("string")}
    features |= {name: [datasets.Value("int64")] for name in ("original_size", "crop_top_left")}
    for shard in range(SHARDS):
        rows = [
            {
                "image": {"bytes": png(96 if number % 3 == 0 else 64, 64, number), "path": f"{number}.png"},
                "text": f"picture {number}", "original_size": [80, 128], "crop_top_left": [number, 0],
            }
            for number in range(shard * 5, shard * 5 + 5)
        ]  # fmt: skip
        dataset = datasets.Dataset.from_list(rows, features=datasets.Features(features))
        dataset.to_parquet(folder / f"shard-{shard}.parquet")
    return folder


def batches_of(folder, batch_size=2, micro_steps=1, rank=0, world=1):
    pictures = StreamedPictures(lambda rows: TrainingPictures(rows, "image", "text", 64), None, "key")
    stream = open_stream(str(folder), None)
    return StreamedBatches(stream, pictures, "image", "text", batch_size, micro_steps, rank, world)


def steps_of(batches, first, number):
    """Captions and epochs of the turns, and their sizes; None for those of other processes."""
    steps = []
    for _, (_, turns) in zip(range(number), batches.from_step(first), strict=False):
        own = [batches.examples[turn.example] if turn else None for turn in turns]
        steps.append([one and (one.caption, turn.epoch, one.target_size) for one, turn in zip(own, turns, strict=True)])
    return steps


def test_every_picture_comes_once_in_each_pass_in_micro_batches_of_one_size(shards):
    steps = steps_of(batches_of(shards, micro_steps=2), 0, 10)
    assert all(step[0][2] == step[1][2] and step[2][2] == step[3][2] for step in steps)
    seen = Counter(turn[:2] for step in steps for turn in step)
    assert sum(epoch == 0 for _, epoch in seen) == PICTURES and set(seen.values()) == {1}


def test_reading_goes_on_exactly_from_any_step_also_with_steps_read_ahead(shards, tmp_path):
    whole = steps_of(batches_of(shards), 0, 45)
    assert {epoch for step in whole for _, epoch, _ in step} >= {0, 1, 2, 3}
    for stop in range(0, 35, 3):
        folder = tmp_path / str(stop)
        folder.mkdir()
        batches = batches_of(shards)
        steps_of(batches, 0, stop + 2)
        batches.save(folder, stop)
        resumed = batches_of(shards)
        resumed.load(folder)
        assert steps_of(resumed, stop, 8) == whole[stop : stop + 8]
    resumed = batches_of(shards)
    resumed.load(folder)
    rows = resumed.from_step(stop)
    next(rows)
    again = tmp_path / "again"
    again.mkdir()
    resumed.save(again, stop)
    assert sorted(p.name for p in again.iterdir()) == sorted(p.name for p in folder.iterdir())
    assert json.loads((again / "stream-0.json").read_text()) == json.loads((folder / "stream-0.json").read_text())


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_out_a_pass(shards, world):
    """By whole files where they are enough for all, else picture by picture."""
    parts = [steps_of(batches_of(shards, 1, 1, rank, world), 0, 6) for rank in range(world)]
    for rank, steps in enumerate(parts):
        assert all([place for place, turn in enumerate(step) if turn] == [rank] for step in steps)
    seen = Counter(turn[:2] for steps in parts for step in steps for turn in step if turn)
    assert set(seen.values()) == {1}


def test_a_webdataset_has_the_columns_of_its_suffixes_and_its_json(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        sizes = b'{"original_size": [80, 80], "crop_top_left": [8, 0]}'
        for name, data in {"a.png": png(64, 64, 0), "a.txt": b"a picture", "a.json": sizes}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    row = plain_row(next(iter(open_stream(str(tmp_path), None))), "image", "text")
    assert row["image"]["bytes"] == png(64, 64, 0) and row["text"] == "a picture"
    assert (row["original_size"], row["crop_top_left"]) == ([80, 80], [8, 0])
    [[turn]] = steps_of(batches_of(tmp_path, batch_size=1), 0, 1)
    assert turn == ("a picture", 0, (64, 64))


def test_what_preprocess_writes_is_a_stream_too(captioned_photographs, tmp_path):
    for path in captioned_photographs.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = [{"file_name": path.name, "text": path.stem} for path in sorted(tmp_path.glob("*.png"))]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [plain_row(row, "image", "text") for row in open_stream(str(tmp_path), None)]
    assert [row["text"] for row in rows] == ["astronaut", "coffee"]
    assert rows[0]["image"]["bytes"] == (captioned_photographs / "astronaut.png").read_bytes()


def test_what_is_no_stream_is_refused(tmp_path, shards, captioned_photographs):
    with pytest.raises(DataError, match=r"no \.tar and no \.parquet files in"):
        open_stream(str(captioned_photographs), None)
    with pytest.raises(DataError, match="no column text; its columns are image, original_size"):
        batches = batches_of(shards)
        batches.stream = batches.stream.remove_columns("text")
        next(batches.from_step(0))
    for settings, words in [
        ({}, "needs max_train_steps"),
        ({"max_train_steps": 3, "validation_split": 0.1}, "does not go with validation_split"),
    ]:
        with pytest.raises(ConfigError, match=words):
            TrainConfig("run", train_data_dir="data", dataset_streaming=True, **settings)
    (tmp_path / "0.parquet").write_bytes((shards / "shard-0.parquet").read_bytes())
    batches = batches_of(tmp_path)
    batches.stream = batches.stream.take(0)
    with pytest.raises(DataError, match="no pictures in the part of the stream that process 0 of 1 reads"):
        next(batches.from_step(0))


def weights_of(run, step):
    return load_file(run / f"checkpoint-{step}" / "lora_state.safetensors")


def settings_of(shards, **more):
    return {
        "train_data_dir": str(shards), "dataset_streaming": True, "max_train_steps": 6, "checkpointing_steps": 2,
        "random_flip": True, "proportion_empty_prompts": 0.3, "train_batch_size": 2, **more,
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
    with pytest.raises(CheckpointError, match="dataset_streaming"):
        train(train_data_dir=str(shards), train_batch_size=2, random_flip=True, output_dir=str(parts))


def test_two_processes_on_a_stream_go_on_exactly_and_one_is_refused(train_config, shards, tmp_path):
    settings = settings_of(shards, train_batch_size=1)
    one, two = (train_config(**settings, output_dir=str(tmp_path / name)) for name in ("whole", "parts"))
    assert launch(one, tmp_path / "log", world=2)[0] == [0, 0]
    codes, printed = launch(two, tmp_path / "log", world=2, TRAINER_FAULT="term@step=3")
    assert codes == [0, 0], printed
    alone = train_config(**{**settings, "train_batch_size": 2}, output_dir=str(tmp_path / "parts"))
    codes, printed = launch(alone, tmp_path / "log")
    assert codes == [4] and "a stream of 4 files, read by 2 processes" in printed, printed
    assert launch(two, tmp_path / "log", world=2)[0] == [0, 0]
    whole, parts = (weights_of(tmp_path / name, 6) for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
