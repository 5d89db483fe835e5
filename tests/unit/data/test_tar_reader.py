"""WebDataset tars: their columns, and what cannot be read of them."""

import json
import tarfile

import pytest

from sdxl_lora.data.stream_reader import open_stream, plain_row
from sdxl_lora.data.tar_reader import samples
from sdxl_lora.errors import DataError
from tests.helpers.streams import add_to_tar, batches_of, png, steps_of


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
    pairs_of_all = [("a.png", "a.txt"), ("b.PNG", "b.json"), ("c.jpg", "c.caption"), ("d.jfif", "d.txt")]
    for number, pairs in enumerate((pairs_of_all[:3], pairs_of_all[3:])):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for image, caption in pairs:
                words = f"of {image[0]}"
                add_to_tar(tar, image, png(64, 64, ord(image[0])))
                add_to_tar(tar, caption, (json.dumps({"caption": words}) if "json" in caption else words).encode())
    rows = [plain_row(row, "image", "text") for row in open_stream(str(tmp_path), None)]
    assert [row["text"] for row in rows] == ["of a", "of b", "of c", "of d"]
    assert [row["image"]["bytes"] for row in rows] == [png(64, 64, ord(name)) for name in "abcd"]


def test_samples_without_a_picture_are_counted_and_named(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in {"a.txt": b"alone", "b.png": png(64, 64, 0), "b.txt": b"a picture", "c.tif": b"II*"}.items():
            add_to_tar(tar, name, data)
    with pytest.warns(UserWarning, match=r"0\.tar: 2 samples without an image are not used, the first is a$"):
        assert [row["__key__"] for row in samples([str(tmp_path / "0.tar")])] == ["b"]


@pytest.mark.parametrize("kind", ["cut", "no images", "JSON", "UTF-8"])
def test_a_tar_that_cannot_be_read_is_named(kind, tars, tmp_path):
    whole = (tars / "shard-0.tar").read_bytes()
    (tmp_path / "bad.tar").write_bytes(whole[: len(whole) // 2])
    if kind != "cut":
        with tarfile.open(tmp_path / "bad.tar", "w") as tar:
            if kind != "no images":
                add_to_tar(tar, "a.png", png(64, 64, 0))
            add_to_tar(tar, "a.json" if kind == "JSON" else "a.txt", b"caf" if kind == "no images" else b"caf\xe9")
    with pytest.raises(DataError, match=rf"bad\.tar.*({kind}|damaged)"):
        steps_of(batches_of(tmp_path, batch_size=1), 0, 20)
