"""Streams of images: the same twenty in Parquet files and in tars, and the samples read from them."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

from sdxl_lora.data.image_dataset import ImageDataset
from sdxl_lora.data.stream_dataset import StreamDataset, StreamSampler
from sdxl_lora.data.stream_reader import open_stream

IMAGES, SHARDS = 20, 4
ENCODED = datasets.Image(decode=False)


def png(width, height, seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Folder of four Parquet files as preprocess writes them: 20 images of two sizes."""
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
    """Folder of four WebDataset tars with the same images."""
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
    images = StreamDataset(lambda rows: ImageDataset(rows, "image", "text", 64), None, "key", lambda _: False)
    stream = open_stream(folder and str(folder), dataset_name)
    return StreamSampler(stream, images, "image", "text", batch_size, micro_steps, rank, world_size, block_size, seed=0)


def steps_of(batches, first, number):
    """Return captions, epochs and sizes by step; None for samples of other processes."""
    steps = []
    for _, (_, samples) in zip(range(number), batches.from_step(first), strict=False):
        own = [batches.examples[sample.example] if sample else None for sample in samples]
        steps.append(
            [one and (one.caption, sample.epoch, one.target_size) for one, sample in zip(own, samples, strict=True)]
        )
    return steps
