"""A stream of pictures: nothing lost, nothing repeated, and a resumed run meets what an uninterrupted one does."""

import io
import json
import shutil
import tarfile
import time
from collections import Counter
from contextlib import closing
from itertools import islice

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sdxl_lora.data.image_dataset import ImageDataset
from sdxl_lora.data.stream_dataset import StreamDataset, StreamSampler
from sdxl_lora.data.stream_reader import Place, open_stream, plain_row, shuffled_rows
from sdxl_lora.errors import CheckpointError, ConfigError, DataError
from sdxl_lora.run.events import read_events
from tests.helpers.configs import flat_train_config
from tests.helpers.hub_server import Hub
from tests.helpers.launch import launch

PICTURES, SHARDS = 20, 4
ENCODED = datasets.Image(decode=False)


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


def add_to_tar(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="session")
def tars(shards, tmp_path_factory):
    """The same as four WebDataset tars."""
    folder = tmp_path_factory.mktemp("tars")
    for shard in sorted(shards.glob("*.parquet")):
        with tarfile.open(folder / f"{shard.stem}.tar", "w") as tar:
            for number, row in enumerate(datasets.Dataset.from_parquet(str(shard)).cast_column("image", ENCODED)):
                sizes = {name: row[name] for name in ("original_size", "crop_top_left")}
                add_to_tar(tar, f"{number}.png", row["image"]["bytes"])
                add_to_tar(tar, f"{number}.txt", row["text"].encode())
                add_to_tar(tar, f"{number}.json", json.dumps(sizes).encode())
    return folder


def batches_of(folder, batch_size=2, micro_steps=1, rank=0, world_size=1, block_size=1, dataset_name=None):
    pictures = StreamDataset(lambda rows: ImageDataset(rows, "image", "text", 64), None, "key", lambda _: False)
    stream = open_stream(folder and str(folder), dataset_name)
    return StreamSampler(
        stream, pictures, "image", "text", batch_size, micro_steps, rank, world_size, block_size, seed=0
    )


def steps_of(batches, first, number):
    """Captions and epochs of the turns, and their sizes; None for those of other processes."""
    steps = []
    for _, (_, samples) in zip(range(number), batches.from_step(first), strict=False):
        own = [batches.examples[sample.example] if sample else None for sample in samples]
        steps.append(
            [one and (one.caption, sample.epoch, one.target_size) for one, sample in zip(own, samples, strict=True)]
        )
    return steps


def test_every_picture_comes_once_in_each_pass_in_micro_batches_of_one_size(shards):
    steps = steps_of(batches_of(shards, micro_steps=2), 0, 10)
    assert all(step[0][2] == step[1][2] and step[2][2] == step[3][2] for step in steps)
    seen = Counter(sample[:2] for step in steps for sample in step)
    assert sum(epoch == 0 for _, epoch in seen) == PICTURES and set(seen.values()) == {1}


def captions_of(folder, block_size, number, seed=0):
    rows = shuffled_rows(open_stream(str(folder), None), Place(), ("image", "text"), block_size, seed)
    with closing(rows):
        return [row["text"] for row, _ in islice(rows, number)]


@pytest.mark.parametrize("block_size", [1, 6, 256])
def test_blocks_are_shuffled_and_each_pass_brings_every_picture_once(shards, block_size):
    stored = captions_of(shards, 1, 3 * PICTURES)
    assert stored[:PICTURES] == [f"picture {number}" for number in range(PICTURES)]
    shuffled = captions_of(shards, block_size, 3 * PICTURES)
    for start in range(0, 3 * PICTURES, PICTURES):
        for block in range(start, start + PICTURES, block_size):
            end = min(block + block_size, start + PICTURES)
            assert sorted(shuffled[block:end]) == sorted(stored[block:end])
    assert (shuffled == stored) == (block_size == 1)
    assert shuffled == captions_of(shards, block_size, 3 * PICTURES)
    if block_size > 1:
        orders = [shuffled[start : start + PICTURES] for start in range(0, 3 * PICTURES, PICTURES)]
        assert orders[0] != orders[1] != orders[2] != captions_of(shards, block_size, PICTURES, seed=1) != orders[0]


@pytest.mark.parametrize("kind, block_size", [("shards", 1), ("shards", 6), ("shards", 256), ("tars", 6)])
def test_reading_goes_on_exactly_from_any_step_also_with_steps_read_ahead(request, tmp_path, kind, block_size):
    source = request.getfixturevalue(kind)
    whole = steps_of(batches_of(source, block_size=block_size), 0, 45)
    assert {epoch for step in whole for _, epoch, _ in step} >= {0, 1, 2, 3}
    for stop in range(0, 35, 3):
        folder = tmp_path / str(stop)
        folder.mkdir()
        batches = batches_of(source, block_size=block_size)
        steps_of(batches, 0, stop + 2)
        batches.save(folder, stop)
        resumed = batches_of(source, block_size=block_size)
        resumed.load(folder)
        assert steps_of(resumed, stop, 8) == whole[stop : stop + 8]
    resumed = batches_of(source, block_size=block_size)
    resumed.load(folder)
    rows = resumed.from_step(stop)
    next(rows)
    again = tmp_path / "again"
    again.mkdir()
    resumed.save(again, stop)
    assert sorted(p.name for p in again.iterdir()) == sorted(p.name for p in folder.iterdir())
    assert json.loads((again / "stream-0.json").read_text()) == json.loads((folder / "stream-0.json").read_text())


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_out_a_pass(shards, world_size):
    """By whole files where they are enough for all, else picture by picture."""
    parts = [steps_of(batches_of(shards, 1, 1, rank, world_size), 0, 6) for rank in range(world_size)]
    for rank, steps in enumerate(parts):
        assert all([place for place, sample in enumerate(step) if sample] == [rank] for step in steps)
    seen = Counter(sample[:2] for steps in parts for step in steps for sample in step if sample)
    assert set(seen.values()) == {1}


def test_a_webdataset_has_the_columns_of_its_suffixes_and_its_json(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        sizes = b'{"original_size": [80, 80], "crop_top_left": [8, 0]}'
        for name, data in {"a.png": png(64, 64, 0), "a.txt": b"a picture", "a.json": sizes}.items():
            add_to_tar(tar, name, data)
    row = plain_row(next(iter(open_stream(str(tmp_path), None))), "image", "text")
    assert row["image"]["bytes"] == png(64, 64, 0) and row["text"] == "a picture"
    assert (row["original_size"], row["crop_top_left"]) == ([80, 80], [8, 0])
    [[sample]] = steps_of(batches_of(tmp_path, batch_size=1), 0, 1)
    assert sample == ("a picture", 0, (64, 64))


def test_a_webdataset_may_mix_endings_and_leave_captions_to_its_json(tmp_path):
    samples = [("a.png", "a.txt"), ("b.PNG", "b.json"), ("c.jpg", "c.caption"), ("d.jpeg", "d.txt")]
    for number, pairs in enumerate((samples[:3], samples[3:])):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for picture, caption in pairs:
                words = f"of {picture[0]}"
                add_to_tar(tar, picture, png(64, 64, ord(picture[0])))
                add_to_tar(tar, caption, (json.dumps({"caption": words}) if "json" in caption else words).encode())
    rows = [plain_row(row, "image", "text") for row in open_stream(str(tmp_path), None)]
    assert [row["text"] for row in rows] == ["of a", "of b", "of c", "of d"]
    assert [row["image"]["bytes"] for row in rows] == [png(64, 64, ord(name)) for name in "abcd"]


@pytest.mark.parametrize("kind", ["cut", "no pictures", "JSON", "UTF-8"])
def test_a_tar_that_cannot_be_read_is_named(kind, tars, tmp_path):
    whole = (tars / "shard-0.tar").read_bytes()
    (tmp_path / "bad.tar").write_bytes(whole[: len(whole) // 2])
    if kind != "cut":
        with tarfile.open(tmp_path / "bad.tar", "w") as tar:
            if kind != "no pictures":
                add_to_tar(tar, "a.png", png(64, 64, 0))
            add_to_tar(tar, "a.json" if kind == "JSON" else "a.txt", b"caf" if kind == "no pictures" else b"caf\xe9")
    with pytest.raises(DataError, match=rf"bad\.tar.*({kind}|damaged)"):
        steps_of(batches_of(tmp_path, batch_size=1), 0, 20)


def test_files_beside_a_stream_are_named(tars, tmp_path):
    (tmp_path / "a.tar").write_bytes((tars / "shard-0.tar").read_bytes())
    (tmp_path / "a.parquet").write_bytes(b"statistics")
    (tmp_path / "picture.png").write_bytes(png(64, 64, 0))
    with pytest.warns(UserWarning, match=r"a\.parquet, picture\.png: not used beside \.tar files"):
        open_stream(str(tmp_path), None)


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
        ({"max_train_steps": 3, "shuffle_buffer_size": 0}, "shuffle_buffer_size is 0, it must be above 0"),
    ]:
        with pytest.raises(ConfigError, match=words):
            flat_train_config("run", train_data_dir="data", dataset_streaming=True, **settings)
    (tmp_path / "0.parquet").write_bytes((shards / "shard-0.parquet").read_bytes())
    batches = batches_of(tmp_path)
    batches.stream = batches.stream.take(0)
    with pytest.raises(DataError, match="no pictures in the part of the stream that this process reads"):
        next(batches.from_step(0))


def test_pictures_of_the_next_steps_are_read_and_decoded_while_one_is_trained_on(shards, monkeypatch):
    loaded, load = [], ImageDataset.load

    def noting(self, *of_picture):
        loaded.append(self.examples[0].caption)
        return load(self, *of_picture)

    monkeypatch.setattr(ImageDataset, "load", noting)
    batches = batches_of(shards)
    _, samples = next(batches.from_step(0))
    until = time.monotonic() + 10
    while len(loaded) < 3 * len(samples):
        assert time.monotonic() < until, loaded
        time.sleep(0.01)
    trained = [batches.examples[sample.example].caption for sample in samples]
    assert loaded[:2] == trained and not set(loaded[2:]) & set(trained)
    before = len(loaded)
    monkeypatch.setattr("sdxl_lora.models.vae.vae_moments", lambda _, pixels: {"mean": pixels[0], "std": pixels[0]})
    assert batches.examples.read(samples[0].example)["mean"].shape[0] == 3
    assert len(loaded) == before, "what was decoded is not decoded again"


def test_a_stream_that_breaks_off_ends_with_a_word(shards, tmp_path):
    for number in (0, 1):
        data = (shards / f"shard-{number}.parquet").read_bytes()
        (tmp_path / f"{number}.parquet").write_bytes(data if number == 0 else data[:-100])
    batches = batches_of(tmp_path, batch_size=1)
    with pytest.raises(DataError, match="cannot read on in the stream: "):
        steps_of(batches, 0, 8)


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
    with pytest.raises(CheckpointError, match="6 pictures shuffled at a time"):
        train(**{**settings, "shuffle_buffer_size": 7}, output_dir=str(parts))
    with pytest.raises(CheckpointError, match="dataset_streaming"):
        train(train_data_dir=str(shards), train_batch_size=2, random_flip=True, output_dir=str(parts))


def test_a_damaged_picture_in_a_stream_ends_it_with_its_name(tmp_path):
    rows = [{"image": {"bytes": png(64, 64, 0)[:6000], "path": "half.png"}, "text": "half"}]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "0.parquet")
    batches = batches_of(tmp_path, batch_size=1)
    _, [sample] = next(batches.from_step(0))
    with pytest.raises(DataError, match=r"half\.png: truncated"):
        batches.examples.read(sample.example)


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
    with pytest.raises(DataError, match=r"cannot read on in the stream: .*(403|permission)"):
        steps_of(batches, 0, 8)
    hub.refuse = ""
    batches = batches_of(None, batch_size=1, dataset_name="me/cat")
    hub.close()
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's attempts, half a minute in all
    with pytest.raises(DataError, match="cannot read on in the stream: "):
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
