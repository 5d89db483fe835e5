"""Choice of the crops to caption, and messages about those without captions."""

import json

import pytest
from datasets import load_dataset
from PIL import Image

from preprocess.captions import captioner as caption_module
from preprocess.captions.caption_all import caption_batch
from tests.helpers.preparing import noise, report_of, rows_of
from tests.helpers.preparing import preprocess as run_preprocess
from tests.helpers.taggers import save_tiny_tagger


def test_only_pictures_without_words_are_captioned(tiny_florence2, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for seed, name in enumerate("abc"):
        noise(seed=seed).save(raw / f"{name}.png")
    (raw / "b.txt").write_text("a person's words")
    flags = ["--caption_model", tiny_florence2, "--caption_max_new_tokens", 8, "--trigger_word", "sks"]
    assert run_preprocess(raw, tmp_path / "out", *flags) == 0
    a, b, c = (row["text"] for row in rows_of(tmp_path / "out"))
    assert b == "sks, a person's words" and a.startswith("sks, ") and c.startswith("sks, ") and a != c
    report = report_of(tmp_path / "out")
    assert report["counts"]["text_from"] == {"captioner": 2, "b.txt": 1} and report["counts"]["new_captions"] == 2


def test_one_picture_that_the_captioner_fails_on_costs_the_others_nothing():
    calls = []

    def caption(images):
        calls.append(len(images))
        if any(image.width == 13 for image in images):
            raise RuntimeError("no")
        return ["" if image.width == 7 else f"width {image.width}" for image in images]

    caption.may_be_empty = False
    images = [Image.new("RGB", (width, 8)) for width in (5, 7, 13)]
    texts = caption_batch(caption, images)
    assert texts[0] == ("width 5", "") and texts[1] == ("", "the captioner returned no text, twice")
    assert texts[2][0] == "" and "failed twice (RuntimeError: no)" in texts[2][1]
    assert calls == [3, 1, 1, 1]


def test_cleaned_captions_are_shown_in_the_report(tmp_path, monkeypatch, tiny_florence2):
    raw = tmp_path / "raw"
    raw.mkdir()
    noise().save(raw / "a.png")
    monkeypatch.setattr(caption_module, "describe", lambda m, p, images, o: ["The image shows a cat"] * len(images))
    assert run_preprocess(raw, tmp_path / "out", "--caption_model", tiny_florence2) == 0
    (row,) = report_of(tmp_path / "out")["rows"]
    assert row["text"] == "a cat" and row["raw_caption"] == "The image shows a cat"
    assert run_preprocess(raw, tmp_path / "out", "--caption_model", tiny_florence2, "--no_clean_captions") == 0
    assert rows_of(tmp_path / "out")[0]["text"] == "The image shows a cat"


def test_writing_in_pictures_is_warned_of(tiny_florence2, tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    noise(64, 64, seed=1).save(raw / "a.png")
    Image.new("RGB", (64, 64), "black").save(raw / "b.png")
    asked = []

    def describe(model, processor, images, options):
        asked.extend([options.caption_task] * len(images))
        return ["STOCK" if options.caption_task == "<OCR>" and sum(i.getpixel((9, 9))) else "" for i in images]

    monkeypatch.setattr(caption_module, "describe", describe)
    (raw / "a.txt").write_text("a")
    (raw / "b.txt").write_text("b")
    flags = ["--caption_model", tiny_florence2, "--ocr"]
    assert run_preprocess(raw, tmp_path / "out", *flags) == run_preprocess(raw, tmp_path / "out", *flags) == 0
    said = [(w["source"], w["message"]) for w in report_of(tmp_path / "out")["warnings"] if "text in" in w["message"]]
    assert said == [("a.png", "text in the image: 'STOCK'")] and asked == ["<OCR>"] * 2  # nothing is read twice
    with pytest.raises(SystemExit):
        run_preprocess(raw, tmp_path / "out", "--ocr")


@pytest.fixture
def tagger(tmp_path):
    save_tiny_tagger(tmp_path / "tagger")
    return tmp_path / "tagger"


def one_picture(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    noise().save(raw / "a.png")
    return raw


def test_two_captioners_write_one_caption_or_two(tiny_florence2, tagger, tmp_path, monkeypatch):
    monkeypatch.setattr(caption_module, "describe", lambda m, p, images, o: ["This is a cat."] * len(images))
    raw, small = one_picture(tmp_path), ["--trigger_word", "sks", "--tag_threshold", 0.5]

    def run(out, *flags):
        assert run_preprocess(raw, tmp_path / out, *flags, *small) == 0
        return rows_of(tmp_path / out)[0], report_of(tmp_path / out)

    row, _ = run("tags", "--caption_model", tagger)
    tags = row["text"].removeprefix("sks, ")
    assert "captions" not in row and len(tags.split(", ")) == 2
    row, report = run("both", "--caption_model", tagger, tiny_florence2)
    assert row["text"] == f"sks, {tags}, a cat." and report["counts"]["new_captions"] == 2
    row, report = run("both", "--caption_model", tiny_florence2, tagger, "--caption_join", "several")
    assert row["text"] == "sks, a cat." and row["captions"] == ["sks, a cat.", f"sks, {tags}"]
    assert report["counts"]["new_captions"] == 0  # each captioner's words are kept by its own content
    assert load_dataset("imagefolder", data_dir=str(tmp_path / "both"), split="train")[0]["captions"] == row["captions"]
    row, _ = run("both", "--caption_model", tagger, tiny_florence2)
    assert "captions" not in row and row["text"] == f"sks, {tags}, a cat."


def test_a_person_may_edit_any_of_several_captions(tiny_florence2, tagger, tmp_path, monkeypatch):
    monkeypatch.setattr(caption_module, "describe", lambda m, p, images, o: ["a cat"] * len(images))
    raw, out = one_picture(tmp_path), tmp_path / "out"
    flags = ["--caption_model", tiny_florence2, tagger, "--caption_join", "several", "--tag_threshold", 0.5]

    def edited(**columns):
        (row,) = rows_of(out)
        (out / "metadata.jsonl").write_text(json.dumps(row | columns) + "\n")
        assert run_preprocess(raw, out, *flags) == 0
        return rows_of(out)[0]

    assert run_preprocess(raw, out, *flags) == 0
    first, tags = rows_of(out)[0]["captions"]
    row = edited(captions=[first, "my tags"])
    assert row["text"] == first and row["captions"] == [first, "my tags"]
    row = edited(text="my cat")
    assert row["text"] == "my cat" and row["captions"] == ["my cat", "my tags"]
    row = edited(captions=None)
    assert row["text"] == "my cat" and "captions" not in row
    assert run_preprocess(raw, out, *flags, "--recaption") == 0 and rows_of(out)[0]["captions"] == [first, tags]


def test_lines_of_a_caption_file_are_captions_where_that_is_asked_for(tmp_path):
    raw = one_picture(tmp_path)
    (raw / "a.txt").write_text("a cat\n\n cat, solo \n")
    flags = ["--trigger_word", "sks"]
    assert run_preprocess(raw, tmp_path / "out", *flags) == 0
    (row,) = rows_of(tmp_path / "out")
    assert row["text"] == "sks, a cat cat, solo" and "captions" not in row
    assert run_preprocess(raw, tmp_path / "out", *flags, "--captions_per_line") == 0
    (row,) = rows_of(tmp_path / "out")
    assert row["text"] == "sks, a cat" and row["captions"] == ["sks, a cat", "sks, cat, solo"]
    (raw / "a.txt").unlink()
    (raw / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "captions": ["one", "two"]}))
    assert run_preprocess(raw, tmp_path / "table") == 0
    assert rows_of(tmp_path / "table")[0]["captions"] == ["one", "two"]
