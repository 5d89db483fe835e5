"""A stream of pictures: nothing lost, nothing repeated, and a resumed run meets what an uninterrupted one does."""

import json
import time
from collections import Counter

import pytest

from sdxl_lora.data.image_dataset import ImageDataset
from sdxl_lora.data.stream_dataset import StreamDataset
from tests.helpers.marks import slow
from tests.helpers.streams import IMAGES, batches_of, png, steps_of


def test_every_picture_comes_once_in_each_pass_in_micro_batches_of_one_size(shards):
    steps = steps_of(batches_of(shards, micro_steps=2), 0, 10)
    assert all(step[0][2] == step[1][2] and step[2][2] == step[3][2] for step in steps)
    seen = Counter(sample[:2] for step in steps for sample in step)
    assert sum(epoch == 0 for _, epoch in seen) == IMAGES and set(seen.values()) == {1}


@pytest.mark.parametrize("kind, block_size", [*slow(("shards", 1), ("shards", 256)), ("shards", 6), ("tars", 6)])
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


def test_pictures_of_the_next_steps_are_read_and_decoded_while_one_is_trained_on(shards, monkeypatch):
    loaded, load = [], ImageDataset.load

    def noting(self, *of_image):
        loaded.append(self.examples[0].caption)
        return load(self, *of_image)

    monkeypatch.setattr(ImageDataset, "load", noting)
    batches = batches_of(shards)
    _, samples = next(batches.from_step(0))
    until = time.monotonic() + 120
    while len(loaded) < 3 * len(samples):
        assert time.monotonic() < until, loaded
        time.sleep(0.01)
    trained = [batches.examples[sample.example].caption for sample in samples]
    assert loaded[:2] == trained and not set(loaded[2:]) & set(trained)
    before = len(loaded)
    monkeypatch.setattr(batches.examples, "encode", lambda pixels, _: [{"mean": pixels[0], "std": pixels[0]}])
    assert batches.examples.read(samples[0].example)["mean"].shape[0] == 3
    assert len(loaded) == before, "what was decoded is not decoded again"


def test_a_stream_has_several_captions_by_list_and_by_line():
    images = StreamDataset(
        lambda rows: ImageDataset(rows, "image", "text", 64, captions_per_line=True), None, "key", lambda _: False
    )
    row = {"image": {"bytes": png(64, 64, 0), "path": None}, "text": "a\nb"}
    assert images.add(row).captions == ("a", "b")
    assert images.add(row | {"captions": ["c", "d"], "text": "c"}).captions == ("c", "d")
