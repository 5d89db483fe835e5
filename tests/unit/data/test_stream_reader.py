"""Rows of a stream: in shuffled blocks, whole in each pass, and what is no stream."""

import json
from contextlib import closing
from itertools import islice

import datasets
import pytest

from sdxl_lora.data.stream_reader import Place, open_stream, plain_row, shuffled_rows
from sdxl_lora.errors import ConfigError, DataError
from tests.helpers.configs import flat_train_config
from tests.helpers.streams import IMAGES, batches_of, png, steps_of


def captions_of(folder, block_size, number, seed=0):
    rows = shuffled_rows(open_stream(str(folder), None), Place(), ("image", "text"), block_size, seed)
    with closing(rows):
        return [row["text"] for row, _ in islice(rows, number)]


@pytest.mark.parametrize("block_size", [1, 6, 256])
def test_blocks_are_shuffled_and_each_pass_brings_every_picture_once(shards, block_size):
    stored = captions_of(shards, 1, 3 * IMAGES)
    assert stored[:IMAGES] == [f"picture {number}" for number in range(IMAGES)]
    shuffled = captions_of(shards, block_size, 3 * IMAGES)
    for start in range(0, 3 * IMAGES, IMAGES):
        for block in range(start, start + IMAGES, block_size):
            end = min(block + block_size, start + IMAGES)
            assert sorted(shuffled[block:end]) == sorted(stored[block:end])
    assert (shuffled == stored) == (block_size == 1)
    assert shuffled == captions_of(shards, block_size, 3 * IMAGES)
    if block_size > 1:
        orders = [shuffled[start : start + IMAGES] for start in range(0, 3 * IMAGES, IMAGES)]
        assert orders[0] != orders[1] != orders[2] != captions_of(shards, block_size, IMAGES, seed=1) != orders[0]


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
    with pytest.raises(DataError, match="no images in the part of the stream that this process reads"):
        next(batches.from_step(0))


def test_a_stream_that_breaks_off_ends_with_a_word(shards, tmp_path):
    for number in (0, 1):
        data = (shards / f"shard-{number}.parquet").read_bytes()
        (tmp_path / f"{number}.parquet").write_bytes(data if number == 0 else data[:-100])
    batches = batches_of(tmp_path, batch_size=1)
    with pytest.raises(DataError, match="cannot read any further in the stream: "):
        steps_of(batches, 0, 8)


def test_a_damaged_picture_in_a_stream_ends_it_with_its_name(tmp_path):
    rows = [{"image": {"bytes": png(64, 64, 0)[:6000], "path": "half.png"}, "text": "half"}]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "0.parquet")
    batches = batches_of(tmp_path, batch_size=1)
    _, [sample] = next(batches.from_step(0))
    with pytest.raises(DataError, match=r"half\.png: truncated"):
        batches.examples.read(sample.example)
