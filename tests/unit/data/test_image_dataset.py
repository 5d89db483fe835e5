"""Several captions of one picture, from a list or by lines."""

import json
from dataclasses import replace

import pytest

from sdxl_lora.config.dataset_spec import DatasetEntry
from sdxl_lora.data.concat_dataset import ConcatDataset
from sdxl_lora.data.dataset import open_dataset
from sdxl_lora.data.image_dataset import ImageDataset, dataset_key
from sdxl_lora.errors import DataError


def several_captions(folder):
    """Three pictures: one with a list of captions, one with a text of two lines, one with neither."""
    rows = [
        {"file_name": "0.png", "text": "a ramp", "captions": ["a ramp", "gradient, simple"]},
        {"file_name": "1.png", "text": "first\n\n second ", "captions": None},
        {"file_name": "2.png", "text": "ramp 2"},
    ]
    for number in range(3):
        (folder / f"{number}.txt").unlink()
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_several_captions_come_from_a_list_and_by_lines_where_that_is_asked_for(ramps):
    before = dataset_key(ImageDataset(open_dataset(str(ramps)), resolution=64).examples)
    assert dataset_key(ImageDataset(open_dataset(str(ramps)), resolution=64, captions_per_line=True).examples) == before
    several_captions(ramps)
    dataset = open_dataset(str(ramps))
    images = ImageDataset(dataset, resolution=64)
    assert [example.captions for example in images.examples] == [
        ("a ramp", "gradient, simple"), ("first\n\n second ",), ("ramp 2",),
    ]  # fmt: skip
    by_line = ImageDataset(dataset, resolution=64, captions_per_line=True)
    assert by_line.examples[1].captions == ("first", "second") and by_line.examples[1].caption == "first"
    chosen = ImageDataset(dataset.select([0]), caption_column="captions", resolution=64).examples[0]
    assert chosen.captions == images.examples[0].captions
    keys = {dataset_key(images.examples), dataset_key(by_line.examples)}
    keys.add(dataset_key([replace(images.examples[0], more_captions=()), *images.examples[1:]]))
    assert len(keys) == 3
    (ramps / "metadata.jsonl").unlink()
    (ramps / "1.txt").write_text("one\ntwo\n")
    lines = ImageDataset(open_dataset(str(ramps)), resolution=64, captions_per_line=True).examples
    assert [example.captions for example in lines] == [("",), ("one", "two"), ("",)]


def test_a_list_of_captions_alone_will_do_and_an_edited_text_beside_it_is_named(ramps):
    several_captions(ramps)
    rows = [json.loads(line) for line in (ramps / "metadata.jsonl").read_text().splitlines()]
    (ramps / "metadata.jsonl").write_text(json.dumps(rows[0] | {"text": "edited"}) + "\n")
    for number in (1, 2):
        (ramps / f"{number}.png").unlink()
    with pytest.warns(UserWarning, match="1 of 1 images have a text that is not among their captions.*0.png"):
        ImageDataset(open_dataset(str(ramps)), resolution=64)
    del rows[0]["text"]
    (ramps / "metadata.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (example,) = ImageDataset(open_dataset(str(ramps)), resolution=64).examples
    assert example.captions == ("a ramp", "gradient, simple")
    (ramps / "metadata.jsonl").write_text(json.dumps(rows[0] | {"text": "a", "captions": [1, 2]}) + "\n")
    with pytest.raises(DataError, match=r"the caption of .*0.png must be text, it is \[1, 2\]"):
        ImageDataset(open_dataset(str(ramps)), resolution=64)


def test_the_trigger_word_of_a_dataset_is_in_front_of_each_of_its_captions(ramps):
    images = ImageDataset(open_dataset(str(several_captions(ramps))), resolution=64)
    entry = DatasetEntry(str(ramps), None, None, trigger_word="sks")
    first = ConcatDataset([images], [entry]).examples[0]
    assert first.captions == ("sks, a ramp", "sks, gradient, simple")
