"""The quality gate: what the reports say of pictures and captions, and that report.html is one safe page."""

import json
import re

import pytest
from PIL import Image, ImageFilter

from examples.tiny_sdxl import tiny_tokenizer
from preprocess.captions.token_count import caption_problems, least_tokens, load_tokenizer
from preprocess.images.quality import duplicates, image_problems, measure
from preprocess.output.html_report import crop_in_percent
from sdxl_lora.errors import ConfigError
from tests.helpers.preparing import noise, preprocess, report_of


def photograph(name):
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")


def test_blur_and_fog_are_seen_and_photographs_pass():
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = photograph(name)
        image.thumbnail((512, 512))
        blurred = image.filter(ImageFilter.GaussianBlur(4))
        fog = Image.blend(image, Image.new("RGB", image.size, (200, 200, 200)), 0.85)
        assert image_problems(measure(image), 0.1) == []
        assert any("blurred" in problem for problem in image_problems(measure(blurred), 0))
        assert any("low contrast" in problem for problem in image_problems(measure(fog), 0))
    assert "40% of it is cut off" in image_problems(measure(image), 0.4)[0]


def test_equal_and_nearly_equal_pictures_are_named(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    cat = photograph("chelsea")
    cat.save(raw / "a.png")
    (raw / "b.png").write_bytes((raw / "a.png").read_bytes())
    cat.resize((300, 200)).save(raw / "c.jpg", quality=60)
    cat.crop((9, 6, 440, 290)).save(raw / "d.png")
    photograph("coffee").save(raw / "e.png")
    assert preprocess(raw, tmp_path / "out", "--fallback_caption", "x") == 0
    said = {
        w["source"]: w["message"] for w in report_of(tmp_path / "out")["warnings"] if "no caption" not in w["message"]
    }
    same = {"b.png": "duplicate of a.png", "c.jpg": "nearly the same as a.png", "d.png": "nearly the same as a.png"}
    assert said == same and report_of(tmp_path / "out")["counts"]["used"] == 5


def test_duplicates_are_those_that_came_before():
    names, shas = ["a", "b", "c"], ["1", "2", "1"]
    assert duplicates(names, shas, ["00ff00ff00ff00ff", "ff00ff00ff00ff00", "00ff00ff00ff00ff"]) == {
        "c": "duplicate of a"
    }
    assert duplicates([], [], []) == {}


def test_tokens_are_counted_by_clip_where_its_tokenizer_is_given(tmp_path, tiny_base):
    tokenize, exact = load_tokenizer(str(tiny_base))
    text = "sks, a tabby cat's 12 whiskers..."
    assert exact and tokenize(text) == tiny_tokenizer().tokenize(text)
    assert least_tokens(text) == ["sks", ",", "a", "tabby", "cat", "'s", "1", "2", "whiskers", "..."]
    assert load_tokenizer(None) in [(least_tokens, False)] or load_tokenizer(None)[1]
    with pytest.raises(ConfigError, match="tokenizer"):
        load_tokenizer(str(tmp_path))
    count, problems = caption_problems("a " * 80, "sks", least_tokens)
    assert count == 80 and len(problems) == 2
    assert "80 tokens, more than the 75" in problems[0] and "trigger word sks is missing" in problems[1]


def test_the_report_counts_sizes_tokens_and_repeated_captions(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for seed in range(3):
        noise(96, 80, seed=seed).save(raw / f"{seed}.png")
    noise(200, 100, seed=9).save(raw / "wide.png")
    (raw / "wide.txt").write_text("word " * 90)
    flags = ["--trigger_word", "sks", "--fallback_caption", "a thing", "--train_batch_size", 2]
    assert preprocess(raw, tmp_path / "out", *flags) == 0
    report = report_of(tmp_path / "out")
    sizes = {tuple(bucket["size"]): bucket["pictures"] for bucket in report["buckets"]}
    assert sizes == {(64, 64): 3, (80, 48): 1} or sum(sizes.values()) == 4
    assert report["repeated_texts"] == [{"text": "sks, a thing", "rows": 3}]
    assert [row["tokens"] for row in report["rows"]] == [4, 4, 4, 92]
    assert any("92 tokens" in warning["message"] for warning in report["warnings"])


def test_the_console_shows_sizes_and_those_under_a_batch(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    noise(96, 80).save(raw / "a.png")
    assert preprocess(raw, tmp_path / "out", "--train_batch_size", 2) == 0
    assert re.search(r"64x64 +1 +17%, 17% +fewer than a batch of 2", capsys.readouterr().out)


def test_the_page_is_self_contained_and_escapes_what_it_shows(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    evil = "<script>alert('x')</script>"
    noise().save(raw / "a&b.png")
    (raw / "a&b.txt").write_text(evil)
    noise(30, 30).save(raw / "small.png")
    (raw / "<i>.png").write_text("no image")
    (raw / "metadata.jsonl").write_text('{"file_name": "absent.png", "text": "x"}')
    assert preprocess(raw, tmp_path / "out", "--trigger_word", "<b>") == 0
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and "&lt;script&gt;" in html and "&lt;i&gt;.png" in html and "a&amp;b.png" in html
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", html) and "url(" not in html
    assert html.count("data:image/jpeg") == 2  # the used one, and the small one that was left out
    assert "absent.png" in html and html.index("Left out: 2") < html.index("Sizes")


def test_the_frame_on_the_page_is_the_crop():
    row = {"original_size": [100, 200], "bucket": [64, 64], "crop_top_left": [0, 32]}
    assert crop_in_percent(row) == pytest.approx((25, 0, 50, 100))


def test_the_report_is_json_that_lists_every_file(photographs, tmp_path):
    assert preprocess(photographs, tmp_path / "out") == 0
    text = (tmp_path / "out" / "preprocess_report.json").read_text(encoding="utf-8")
    report = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert {row["source"] for row in report["rows"]} == {path.name for path in photographs.iterdir()}
