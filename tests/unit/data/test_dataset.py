"""Columns, crops, size conditioning, and what is wrong with a dataset."""

import io
import os
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from sdxl_lora.data.dataset import open_dataset, trigger_word_of
from sdxl_lora.data.image_dataset import ImageDataset, check_class_images, dataset_key
from sdxl_lora.data.size_conditioning import mirrored_crop, time_ids
from sdxl_lora.errors import ConfigError, DataError
from tests.helpers.ramps import ramp


def test_time_ids_reproduce_the_crop(ramps):
    """Resizing the original and cutting at crop_top_left, as the time ids say, gives the trained pixels."""
    images = ImageDataset(open_dataset(str(ramps)), resolution=64, center_crop=False, seed=5)
    for index in range(3):
        record = images.load(index)
        ids = time_ids(record["original_size"], record["crop_top_left"], images.examples[index].target_size)[0]
        height, width, top, left, target_height, target_width = (int(value) for value in ids)
        with Image.open(ramps / f"{index}.png") as original:
            assert original.size == (width, height)
            scale = max(target_width / width, target_height / height)
            resized = original.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
        again = resized.crop((left, top, left + target_width, top + target_height))
        pixels = torch.from_numpy(np.array(again)).permute(2, 0, 1).float() / 127.5 - 1
        assert torch.equal(pixels, record["pixels"])


def test_prepared_pictures_are_trained_as_they_are(tmp_path):
    image = ramp(96, 64)
    image.save(tmp_path / "a.png")
    columns = {
        "image": [str(tmp_path / "a.png")],
        "text": ["a ramp"],
        "original_size": [[640, 960]],
        "crop_top_left": [[0, 7]],
    }
    images = ImageDataset(datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()), resolution=512)
    record = images.load(0)
    assert images.examples[0].target_size == (64, 96)
    assert record["pixels"].shape == (3, 64, 96)
    assert (record["original_size"].tolist(), record["crop_top_left"].tolist()) == ([640, 960], [0, 7])


def test_random_crop_is_the_same_in_every_epoch_and_changes_with_the_seed(ramps):
    def crops(seed):
        images = ImageDataset(open_dataset(str(ramps)), resolution=64, center_crop=False, seed=seed)
        return [images.load(index)["crop_top_left"].tolist() for index in range(3)]

    assert crops(1) == crops(1) != crops(2)


def test_mirrored_picture_tells_of_the_mirrored_crop(ramps):
    images = ImageDataset(open_dataset(str(ramps)), resolution=64, center_crop=False, seed=5)
    plain, mirrored = images.load(0), images.load(0, flip=True)
    assert torch.equal(mirrored["pixels"], plain["pixels"].flip(2))
    (top, left), (mirrored_top, mirrored_left) = plain["crop_top_left"].tolist(), mirrored["crop_top_left"].tolist()
    assert mirrored_top == top and left + 64 + mirrored_left == 128  # the resized picture is 128 wide
    assert mirrored_crop((100, 200), (0, 20), (64, 64)) == (0, 44)


def test_time_ids_are_original_crop_target_in_float32():
    ids = time_ids([[768, 1024], [512, 512]], [[0, 128], [3, 4]], [[512, 512], [512, 512]])
    assert ids.tolist() == [[768, 1024, 0, 128, 512, 512], [512, 512, 3, 4, 512, 512]] and ids.dtype == torch.float32
    for bad in ([[0, 5]], [[0, 0]], [[5, 5]]), ([[5, 5]], [[-1, 0]], [[5, 5]]), ([[5, 5]], [[0, 0]], [[5, 0]]):
        with pytest.raises(ValueError, match="at least"):
            time_ids(*bad)


def test_three_kinds_of_folder_give_the_same_examples(ramps, tmp_path):
    plain = open_dataset(str(ramps))
    plain.save_to_disk(tmp_path / "disk")
    (tmp_path / "parquet").mkdir()
    datasets.Dataset.from_dict(
        {"image": [{"bytes": (ramps / f"{i}.png").read_bytes(), "path": None} for i in range(3)], "text": plain["text"]}
    ).cast_column("image", datasets.Image()).to_parquet(tmp_path / "parquet" / "train.parquet")
    keys = {
        dataset_key(ImageDataset(open_dataset(str(folder)), resolution=64).examples)
        for folder in (ramps, tmp_path / "disk", tmp_path / "parquet")
    }
    assert len(keys) == 1
    assert len(open_dataset(dataset_name=str(tmp_path / "disk"), max_samples=2)) == 2


def test_dataset_key_changes_with_caption_pixels_and_size(ramps):
    def key(**settings):
        return dataset_key(ImageDataset(open_dataset(str(ramps)), **{"resolution": 64, **settings}).examples)

    first = key()
    assert key() == first and key(resolution=72) != first
    (ramps / "1.txt").write_text("another ramp")
    second = key()
    assert second != first
    ramp(65, 64).save(ramps / "2.png")
    assert key() not in (first, second)


def test_trigger_word_is_read_from_the_datasets_card(tmp_path):
    assert trigger_word_of(str(tmp_path)) == "" == trigger_word_of(None)
    (tmp_path / "README.md").write_text("---\ntrigger_word: sks\n---\n# cat\n")
    assert trigger_word_of(str(tmp_path)) == "sks"


def test_missing_and_empty_folders_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="no images"):
        open_dataset(str(tmp_path))


def test_wrong_columns_captions_and_sizes_are_named(tmp_path, ramps):
    plain = open_dataset(str(ramps))
    with pytest.raises(DataError, match="no column caption; its columns are image, text"):
        ImageDataset(plain, caption_column="caption")
    with pytest.raises(DataError, match=r"caption of .*0\.png must be text, it is 7"):
        ImageDataset(plain.map(lambda row: {"text": 7}))
    wrong = plain.map(lambda row: {"original_size": [64], "crop_top_left": [0, 0]})
    with pytest.raises(DataError, match=r"0\.png must be two whole numbers"):
        ImageDataset(wrong)
    odd = plain.map(lambda row: {"original_size": [64, 64], "crop_top_left": [0, 0]})
    with pytest.raises(DataError, match="200x100 px, width and height must be multiples of 8"):
        ImageDataset(odd)


def test_caption_file_in_another_encoding_is_named_and_a_byte_order_mark_is_not_a_caption(ramps):
    (ramps / "0.txt").write_bytes(b"\xef\xbb\xbframp")
    assert open_dataset(str(ramps))[0]["text"] == "ramp"
    (ramps / "0.txt").write_bytes("caf\xe9".encode("cp1252"))
    with pytest.raises(DataError, match=r"0\.txt is not UTF-8"):
        open_dataset(str(ramps))


def test_empty_captions_are_counted(ramps):
    (ramps / "1.txt").unlink()
    with pytest.warns(UserWarning, match=r"1 of 3 images have an empty caption: .*1\.png"):
        ImageDataset(open_dataset(str(ramps)), resolution=64)


def test_truncated_picture_is_named_when_it_is_read(ramps):
    data = (ramps / "0.png").read_bytes()
    (ramps / "0.png").write_bytes(data[: len(data) // 2])
    images = ImageDataset(open_dataset(str(ramps)), resolution=64)
    with pytest.raises(DataError, match=r"0\.png: truncated PNG"):
        images.load(0)


@pytest.fixture
def masked(ramps):
    """The first ramp with a mask, white on its right half; the second a class image, without a mask."""
    (ramps / "masks").mkdir()
    mask = Image.new("L", (200, 100), 0)
    mask.paste(255, (100, 0, 200, 100))
    mask.save(ramps / "masks" / "0.png")
    columns = {
        "image": [str(ramps / f"{i}.png") for i in range(2)],
        "mask": [str(ramps / "masks" / "0.png"), None],
        "is_class_image": [None, True],
        "text": ["a", "b"],
    }
    dataset = datasets.Dataset.from_dict(columns)
    return dataset.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())


def test_a_mask_is_cut_and_mirrored_like_its_picture(masked):
    images = ImageDataset(masked, resolution=64, masked=True)
    right = torch.zeros(1, 64, 64)
    right[:, :, 32:] = 1
    for flip, expected in ((False, right), (True, right.flip(2))):
        mask = images.load(0, flip)["mask"]
        assert (mask - expected).abs().max() <= 0.6 and (mask - expected).abs().mean() < 0.02  # Lanczos at the edge
    assert torch.equal(images.load(1)["mask"], torch.ones(1, 64, 64))
    assert [example.is_class_image for example in images.examples] == [False, True]


def test_masks_change_the_key_only_where_they_count(masked, ramps):
    def keys(**settings):
        return [example.key for example in ImageDataset(masked, resolution=64, **settings).examples]

    with pytest.warns(UserWarning, match="has masks, which are not used: --masked_loss"):
        plain = keys()
    with_masks = keys(masked=True)
    assert plain[0] != with_masks[0]
    Image.new("L", (200, 100), 255).save(ramps / "masks" / "0.png")
    assert keys(masked=True)[0] != with_masks[0] and keys(masked=True)[1] == with_masks[1]


def test_masks_that_cannot_be_used_are_named(masked, ramps):
    with pytest.raises(DataError, match=r"masked_loss needs a dataset with a column mask.*--masks alpha"):
        ImageDataset(masked.remove_columns("mask"), masked=True)
    for size, colour, words in [((10, 10), 255, "must have .200, 100. like the image"), ((200, 100), 0, "is black")]:
        Image.new("L", size, colour).save(ramps / "masks" / "0.png")
        with pytest.raises(DataError, match=words):
            ImageDataset(masked, resolution=64, masked=True).load(0)


def test_a_weight_for_class_images_needs_some(masked):
    examples = ImageDataset(masked, resolution=64, masked=True).examples
    check_class_images(examples, 0.5)
    check_class_images(examples[:1], 1.0)
    with pytest.raises(ConfigError, match=r"prior_loss_weight is 0\.5, but no image is marked"):
        check_class_images(examples[:1], 0.5)
    assert dataset_key(examples) != dataset_key([examples[0], replace(examples[1], is_class_image=False)])


def test_no_decoder_but_ours_opens_what_a_dataset_holds(monkeypatch):
    """Pillow's own would open TIFF, EPS, PSD ... in any column of a stranger's Parquet file."""
    reached = []
    Image.init()
    factory, accept = Image.OPEN["TIFF"]
    monkeypatch.setitem(Image.OPEN, "TIFF", (lambda *a: (reached.append("TIFF"), factory(*a))[1], accept))
    tiff, png = io.BytesIO(), io.BytesIO()
    ramp(64, 64).save(tiff, "TIFF")
    ramp(64, 64).save(png, "PNG")
    images = [{"bytes": stream.getvalue(), "path": None} for stream in (tiff, png)]
    columns = {"image": images, "text": ["a", "b"], "original_size": [[64, 64]] * 2, "crop_top_left": [[0, 0]] * 2}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    with pytest.raises(DataError, match="image 0: unsupported format TIFF"):
        ImageDataset(dataset, resolution=64)
    beside = datasets.Dataset.from_dict({"image": images[1:], "text": ["b"], "other": images[:1]})
    for name in ("image", "other"):
        beside = beside.cast_column(name, datasets.Image())
    assert ImageDataset(beside, resolution=64).load(0)["pixels"].shape == (3, 64, 64)
    lists = datasets.Dataset.from_dict({"image": images[1:], "text": [[png.getvalue()]]})
    lists = lists.cast(datasets.Features(image=datasets.Image(), text=datasets.List(datasets.Image())))
    with pytest.raises(DataError, match="the column text holds lists of images"):
        ImageDataset(lists, resolution=64)
    assert reached == []


def test_a_picture_that_changes_during_a_run_is_named_and_one_that_is_only_touched_is_used(ramps):
    images = ImageDataset(open_dataset(str(ramps)), resolution=64)
    os.utime(ramps / "0.png", (1, 1))
    before = images.load(0)["pixels"]
    ramp(120, 64).save(ramps / "0.png")
    with pytest.raises(DataError, match=r"0\.png or its mask has changed since the run began"):
        images.load(0)
    assert not torch.equal(ImageDataset(open_dataset(str(ramps)), resolution=64).load(0)["pixels"], before)


def test_a_mask_that_changes_during_a_run_is_named(masked, ramps):
    images = ImageDataset(masked, resolution=64, masked=True)
    Image.new("L", (200, 100), 255).save(ramps / "masks" / "0.png")
    with pytest.raises(DataError, match="has changed since the run began"):
        images.load(0)


def test_captions_with_a_nul_and_rows_without_a_picture_are_named(ramps):
    plain = open_dataset(str(ramps))
    with pytest.raises(DataError, match=r"caption of .*0\.png has a NUL at position 1"):
        ImageDataset(plain.map(lambda row: {"text": "a\0b"}))
    rows = datasets.Dataset.from_list([{"image": None, "text": "a"}], features=plain.features)
    with pytest.raises(DataError, match="row 0 of the dataset has no image"):
        ImageDataset(rows)
    (ramps / "1.txt").write_bytes("ramp".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"1\.txt is not UTF-8 text: NUL at position 1"):
        open_dataset(str(ramps))


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file that opens and cannot be read")
def test_a_picture_that_cannot_be_read_is_named(ramps):
    (ramps / "9.png").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"9\.png: cannot be read"):
        ImageDataset(open_dataset(str(ramps)), resolution=64)
