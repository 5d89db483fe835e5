"""preprocess/images/crop.py and saliency.py: what of a picture is cut out, and that the numbers say so."""

import numpy as np
import pytest
from PIL import Image

from preprocess.images.crop import bucket_of, crop_image, note_on_square, random_positions, sizes_of
from preprocess.images.saliency import attention_position
from sdxl_lora.config.sections.preprocess import SizeConfig
from tests.helpers.preparing import noise, preprocess, rows_of


def marked(width, height, x, y):
    """A calm picture with one thing in it, at x, y."""
    values = np.full((height, width, 3), 120, np.uint8)
    values[y - 12 : y + 12, x - 12 : x + 12] = np.asarray(noise(24, 24, seed=3))
    return Image.fromarray(values)


@pytest.mark.parametrize(("x", "y", "size"), [(40, 60, (300, 120)), (260, 60, (300, 120)), (60, 260, (120, 300))])
def test_attention_keeps_what_stands_out(x, y, size):
    image = marked(*size, x, y)
    position = attention_position(image, (96, 96))
    (crop,) = crop_image(image, (96, 96), [position])
    top, left = crop.crop_top_left
    scale = 96 / min(size)
    assert left <= (x - 12) * scale and (x + 12) * scale <= left + 96
    assert top <= (y - 12) * scale and (y + 12) * scale <= top + 96
    (centre,) = crop_image(image, (96, 96), [(0.5, 0.5)])
    assert np.asarray(crop.image).std() > np.asarray(centre.image).std() + 5


def test_attention_stays_central_where_nothing_stands_out():
    assert attention_position(Image.new("RGB", (300, 100), "grey"), (64, 64)) == pytest.approx((0.5, 0.5), abs=0.02)
    assert attention_position(noise(96, 96), (64, 64)) == (0.5, 0.5)


def test_mask_and_picture_are_cut_at_the_same_place():
    image = noise(200, 100)
    mask = Image.eval(image.convert("L"), lambda value: value)
    for crop in crop_image(image, (64, 64), random_positions(0, "f" * 64, 3), mask):
        difference = np.asarray(crop.image.convert("L"), float) - np.asarray(crop.mask, float)
        assert np.abs(difference).max() <= 2


def test_random_crops_are_a_function_of_seed_and_content(tmp_path):
    assert random_positions(0, "ab" * 32, 2) == random_positions(0, "ab" * 32, 2)
    assert random_positions(0, "ab" * 32, 2) != random_positions(1, "ab" * 32, 2)
    assert random_positions(0, "ab" * 32, 2) != random_positions(0, "cd" * 32, 2)
    raw = tmp_path / "raw"
    raw.mkdir()
    noise(300, 90).save(raw / "a.png")
    flags = ["--buckets", "off", "--crop", "random", "--crops_per_picture", 3]
    assert preprocess(raw, tmp_path / "one", *flags) == preprocess(raw, tmp_path / "two", *flags) == 0
    rows = rows_of(tmp_path / "one")
    assert rows == rows_of(tmp_path / "two") and len({row["file_name"] for row in rows}) == 3
    assert len({tuple(row["crop_top_left"]) for row in rows}) == 3
    assert preprocess(raw, tmp_path / "two", *flags, "--seed", 1) == 0
    assert rows_of(tmp_path / "two") != rows


def test_sizing_says_what_would_help_a_small_picture():
    with pytest.raises(ValueError, match=r"50x40 px, smaller than its 64x64 target: pass --enlarge_small to .*it$"):
        bucket_of(SizeConfig(64, buckets="off"), (50, 40))
    with pytest.raises(ValueError, match="--no_upscale for smaller buckets"):
        bucket_of(SizeConfig(64, bucket_step=16), (50, 40))
    with pytest.raises(ValueError, match="smaller --min_bucket_side"):
        bucket_of(SizeConfig(64, bucket_step=16, min_bucket_side=48, no_upscale=True), (50, 40))
    small = SizeConfig(64, bucket_step=16, min_bucket_side=16, no_upscale=True)
    assert bucket_of(small, (50, 40)) == (48, 32)
    large = SizeConfig(64, bucket_step=16, enlarge_small=True)
    assert bucket_of(large, (50, 40)) in sizes_of(large)


@pytest.mark.parametrize("image_format", ["png", "webp", "jpg"])
def test_formats_are_lossless_as_documented(image_format, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    noise(64, 64).save(raw / "a.png")
    assert preprocess(raw, tmp_path / "out", "--image_format", image_format) == 0
    written = Image.open(tmp_path / "out" / rows_of(tmp_path / "out")[0]["file_name"])
    difference = np.abs(np.asarray(written.convert("RGB"), float) - np.asarray(noise(64, 64), float))
    assert difference.max() == 0 if image_format != "jpg" else 0 < difference.mean() < 3


@pytest.mark.parametrize(("resolution", "said"), [(1000, "square images get"), (1024, None), (64, None)])
def test_a_resolution_without_a_square_bucket_is_said(resolution, said):
    note = note_on_square(SizeConfig(resolution=resolution))
    assert (note is None) if said is None else (said in note and "--resolution 960 gives squares" in note)
