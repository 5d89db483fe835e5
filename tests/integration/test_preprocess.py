"""python -m preprocess, from a person's folder to a dataset that `datasets` opens."""

import hashlib
import os
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from preprocess.__main__ import main
from tests.helpers.preparing import noise, opened, preprocess, report_of, rows_of, snapshot

COLUMNS = ["file_name", "text", "original_size", "crop_top_left", "source", "sha256"]


def test_photographs_become_a_dataset_that_datasets_opens(photographs, tmp_path):
    out = tmp_path / "cat"
    before = snapshot(photographs)
    assert preprocess(photographs, out, "--trigger_word", "sks", "--fallback_caption", "a photo") == 0
    assert snapshot(photographs) == before
    rows, data = rows_of(out), opened(out, tmp_path)
    assert [list(row) for row in rows] == [COLUMNS] * 4
    assert data.column_names == ["image", *COLUMNS[1:]]
    for row, example in zip(rows, data, strict=True):
        source = Image.open(photographs / row["source"])
        assert row["original_size"] == [source.height, source.width]
        assert row["sha256"] == hashlib.sha256((photographs / row["source"]).read_bytes()).hexdigest()
        assert row["text"] == example["text"] == "sks, a photo"
        width, height = example["image"].size
        assert width % 16 == height % 16 == 0 and width * height <= 64 * 64
        scale = max(width / source.width, height / source.height)
        size = max(width, round(source.width * scale)), max(height, round(source.height * scale))
        top, left = row["crop_top_left"]
        expected = source.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        assert expected.crop((left, top, left + width, top + height)).tobytes() == example["image"].tobytes()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["trigger_word"] == "sks"


def test_without_buckets_every_picture_is_the_square(photographs, tmp_path):
    assert preprocess(photographs, tmp_path / "out", "--buckets", "off") == 0
    assert {example["image"].size for example in opened(tmp_path / "out", tmp_path)} == {(64, 64)}


@pytest.mark.parametrize("name", ["test.png", "train 01.png", "my_val.png", "dev/a.png", "x-eval-2.png"])
def test_no_name_makes_datasets_see_another_split(name, tmp_path):
    path = tmp_path / "raw" / name
    path.parent.mkdir(parents=True)
    noise().save(path)
    noise(seed=1).save(path.with_name("other.png"))
    assert preprocess(tmp_path / "raw", tmp_path / "out") == 0
    assert len(opened(tmp_path / "out", tmp_path)) == 2


def test_caption_files_win_and_the_trigger_word_comes_once(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    texts = {"a": "a tabby cat", "b": "photo of SKS cat", "c": "\ufeffünïcode\nin two lines", "d": "the asks of sksy"}
    for seed, (name, text) in enumerate(texts.items()):
        noise(seed=seed).save(raw / f"{name}.png")
        (raw / f"{name}.txt").write_text(text, encoding="utf-8")
    noise(seed=9).save(raw / "e.PNG")
    assert preprocess(raw, tmp_path / "out", "--trigger_word", "sks", "--fallback_caption", "something") == 0
    assert [row["text"] for row in rows_of(tmp_path / "out")] == [
        "sks, a tabby cat",
        "photo of SKS cat",
        "sks, ünïcode in two lines",
        "sks, the asks of sksy",
        "sks, something",
    ]


def test_small_pictures_are_left_out_or_enlarged(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    noise(40, 40).save(raw / "small.png")
    noise(100, 100).save(raw / "large.png")
    assert preprocess(raw, tmp_path / "out") == 0
    (left_out,) = report_of(tmp_path / "out")["left_out"]
    assert left_out["source"] == "small.png" and "40x40 px" in left_out["reason"]
    assert "--enlarge_small" in left_out["reason"] and "--no_upscale" in left_out["reason"]
    assert preprocess(raw, tmp_path / "large", "--enlarge_small") == 0
    rows = rows_of(tmp_path / "large")
    assert [row["original_size"] for row in rows] == [[100, 100], [40, 40]]
    assert any("enlarged 1.60 times" in w["message"] for w in report_of(tmp_path / "large")["warnings"])
    assert preprocess(raw, tmp_path / "inner", "--no_upscale") == 0
    assert [example["image"].size for example in opened(tmp_path / "inner", tmp_path)] == [(64, 64), (32, 32)]


def test_errors_come_as_one_message_with_their_code(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    cases = [
        ((tmp_path / "nowhere", tmp_path / "out"), 2, "is not a folder"),
        ((raw, tmp_path / "out"), 3, "no usable images in"),
        ((raw, raw), 2, "would overwrite source images"),
        ((raw, raw / "inside"), 2, "would overwrite source images"),
        ((raw, tmp_path), 2, "is inside output_dir"),
    ]
    for (source, target), code, message in cases:
        assert preprocess(source, target) == code
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert list(raw.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resolution", "1023"], "1016, 1024"),
        (["--no_upscale", "--enlarge_small"], "cannot be used together"),
        (["--max_aspect", "nan", "--caption_batch_size", "0"], "caption_batch_size is 0"),
        (["--bucket_step", "20"], "multiple of 8"),
        (["--background", "0", "0", "300"], "0 to 255"),
    ],
)
def test_impossible_settings_are_refused(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), *flags])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and message in " ".join((captured.err + captured.out).replace("│", " ").split())


def test_help_and_typos_are_answered():
    for flags, code in [(["--help"], 0), (["--input_dir", "a", "--output_dir", "b", "--trigger_wort", "x"], 2)]:
        environment = os.environ | {"COLUMNS": "120"}
        result = subprocess.run(
            [sys.executable, "-m", "preprocess", *flags], capture_output=True, text=True, env=environment
        )
        assert result.returncode == code and "trigger_word" in result.stdout + result.stderr
