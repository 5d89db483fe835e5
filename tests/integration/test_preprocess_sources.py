"""Folders as people have them: kohya's repeats, other tools' captions, class images, masks."""

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from tests.helpers.preparing import noise, opened, preprocess, report_of, rows_of


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def test_kohyas_folders_repeat_and_name_their_pictures(raw, tmp_path):
    for name in ("3_sks cat", "1_sks dog", "0_zero"):
        (raw / name).mkdir()
    noise(seed=1).save(raw / "3_sks cat" / "a.png")
    noise(seed=2).save(raw / "3_sks cat" / "b.png")
    (raw / "3_sks cat" / "b.caption").write_text("a cat asleep")
    noise(seed=3).save(raw / "1_sks dog" / "c.png")
    noise(seed=4).save(raw / "0_zero" / "d.png")
    assert preprocess(raw, tmp_path / "out", "--trigger_word", "sks") == 0
    assert [(row["source"], row["text"]) for row in rows_of(tmp_path / "out")] == [
        ("1_sks dog/c.png", "sks dog"),
        *[("3_sks cat/a.png", "sks cat")] * 3,
        *[("3_sks cat/b.png", "sks, a cat asleep")] * 3,
    ]
    assert len(opened(tmp_path / "out", tmp_path)) == 7
    left_out = {"source": "0_zero/d.png", "reason": "its folder 0_zero asks for 0 repeats"}
    assert report_of(tmp_path / "out")["left_out"] == [left_out]


def test_images_that_a_person_does_not_want_are_named_everywhere_and_come_back(raw, tmp_path, capsys):
    for seed, name in enumerate("abc"):
        noise(seed=seed).save(raw / f"{name}.png")
    (raw / "b.txt").write_text("a bird")
    out, flags = tmp_path / "out", ["--strict", "--leave_out", "b.png", "gone.png"]
    assert preprocess(raw, out, *flags, "--dry_run") == 0
    plan = capsys.readouterr().out
    assert plan.startswith("2 images, 0 would be left out") and "b.png: not wanted: --leave_out names it" in plan
    assert "gone.png: --leave_out names it, but there is no such image" in plan
    assert preprocess(raw, out, *flags) == 0
    assert "b.png: not wanted: --leave_out names it" in capsys.readouterr().out
    assert [row["source"] for row in rows_of(out)] == ["a.png", "c.png"] and (raw / "b.png").exists()
    assert report_of(out)["other_files"] == [{"source": "b.png", "reason": "not wanted: --leave_out names it"}]
    assert preprocess(raw, out) == 0
    assert [row["text"] for row in rows_of(out) if row["source"] == "b.png"] == ["a bird"]
    assert preprocess(raw, tmp_path / "none", "--leave_out", "a.png", "b.png", "c.png") == 3
    assert not (tmp_path / "none").exists()


def test_one_repeat_may_be_edited_alone(raw, tmp_path):
    (raw / "2_cat").mkdir()
    noise().save(raw / "2_cat" / "a.png")
    assert preprocess(raw, tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out")
    rows[1]["text"] = "another view of it"
    (tmp_path / "out" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert preprocess(raw, tmp_path / "out", "--trigger_word", "sks") == 0
    assert [row["text"] for row in rows_of(tmp_path / "out")] == ["sks, cat", "another view of it"]


def test_captions_of_a_source_metadata_file_are_used_and_txt_wins(raw, tmp_path):
    for seed, name in enumerate("abc"):
        noise(seed=seed).save(raw / f"{name}.png")
    lines = [{"file_name": f"{name}.png", "text": f"from metadata {name}"} for name in "abx"]
    (raw / "metadata.jsonl").write_text("\ufeff" + "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (raw / "b.txt").write_text("from txt")
    (raw / "b.caption").write_text("from caption")
    (raw / "orphan.txt").write_text("of nobody")
    (raw / "film.mp4").write_bytes(b"film")
    assert preprocess(raw, tmp_path / "out", "--fallback_caption", "fallback") == 0
    assert [row["text"] for row in rows_of(tmp_path / "out")] == ["from metadata a", "from txt", "fallback"]
    report = report_of(tmp_path / "out")
    messages = {(w["source"], w["message"]) for w in report["warnings"]}
    assert ("b.png", "b.caption is not used: b.txt is there") in messages
    assert ("metadata.jsonl", "names 'x.png', which is not there") in messages
    assert report["not_pictures"] == ["film.mp4", "orphan.txt"]


def test_what_preprocess_wrote_can_be_its_input(raw, tmp_path):
    noise().save(raw / "a.png")
    (raw / "a.txt").write_text("a thing")
    assert preprocess(raw, tmp_path / "one") == preprocess(tmp_path / "one", tmp_path / "two") == 0
    assert rows_of(tmp_path / "two")[0]["text"] == "a thing"


def test_class_images_are_marked_and_get_no_trigger_word(raw, tmp_path):
    noise(seed=1).save(raw / "a.png")
    others = tmp_path / "class"
    others.mkdir()
    noise(seed=2).save(others / "a.png")
    (others / "a.txt").write_text("a cat")
    noise(20, 20).save(others / "small.png")
    flags = ["--class_images", others, "--trigger_word", "sks", "--fallback_caption", "cat"]
    assert preprocess(raw, tmp_path / "out", *flags) == 0
    data = opened(tmp_path / "out", tmp_path)
    assert list(zip(data["source"], data["is_class_image"], data["text"], strict=True)) == [
        ("a.png", False, "sks, cat"),
        ("class_images/a.png", True, "a cat"),
    ]
    assert report_of(tmp_path / "out")["left_out"][0]["source"] == "class_images/small.png"
    assert preprocess(raw, tmp_path / "other", "--class_images", tmp_path / "nowhere") == 2
    assert preprocess(raw, others / "inside", "--class_images", others) == 2
    assert preprocess(tmp_path, tmp_path.parent / "x", "--class_images", others) == 2


def test_masks_from_alpha_are_cut_like_the_picture(raw, tmp_path):
    image = noise(200, 100).convert("RGBA")
    alpha = Image.new("L", image.size, 0)
    alpha.paste(255, (50, 0, 150, 100))
    image.putalpha(alpha)
    image.save(raw / "a.png")
    noise(100, 100, seed=2).save(raw / "opaque.png")
    assert preprocess(raw, tmp_path / "out", "--masks", "alpha", "--buckets", "off") == 0
    data = opened(tmp_path / "out", tmp_path)
    assert data.column_names[0] == "image" and "mask" in data.column_names
    for example in data:
        mask = np.asarray(example["mask"])
        assert example["mask"].size == example["image"].size == (64, 64) and mask.ndim == 2
        assert mask.min() > 240  # the crop lies inside what is opaque
    assert preprocess(raw, tmp_path / "wide", "--masks", "alpha", "--max_aspect", 2) == 0
    wide = np.asarray(opened(tmp_path / "wide", tmp_path)[0]["mask"], float)
    assert 0.4 < wide.mean() / 255 < 0.65


def test_masks_from_a_folder_turn_with_nothing_but_themselves(raw, tmp_path, capsys):
    (raw / "masks").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(160, 96).save(raw / "turned.jpg", exif=exif, quality=95)
    half = Image.new("L", (96, 160), 0)
    half.paste(255, (0, 0, 96, 80))
    half.save(raw / "masks" / "turned.png")
    noise(100, 100).save(raw / "none.png")
    assert preprocess(raw, tmp_path / "out", "--masks", "folder") == 0
    none, turned = opened(tmp_path / "out", tmp_path)
    assert np.asarray(none["mask"]).min() == 255
    mask = np.asarray(turned["mask"], float)
    assert mask[: len(mask) // 2 - 1].min() > 250 and mask[len(mask) // 2 + 1 :].max() < 5
    before = rows_of(tmp_path / "out")
    half.transpose(Image.Transpose.ROTATE_180).save(raw / "masks" / "turned.png")
    assert preprocess(raw, tmp_path / "out", "--masks", "folder") == 0
    assert rows_of(tmp_path / "out")[1]["file_name"] != before[1]["file_name"]  # another mask, another example
    half.resize((10, 10)).save(raw / "masks" / "turned.png")
    assert preprocess(raw, tmp_path / "out", "--masks", "folder") == 0
    assert "its mask" in report_of(tmp_path / "out")["left_out"][0]["reason"]


def test_masks_from_a_background_remover(raw, tmp_path, monkeypatch, capsys):
    noise(96, 80).save(raw / "a.png")
    noise(80, 80, seed=1).save(raw / "b.png")
    if importlib.util.find_spec("rembg") is None:
        assert preprocess(raw, tmp_path / "out", "--masks", "remover") == 2
        assert "pip install" in capsys.readouterr().err and not (tmp_path / "out").exists()

    def remove(image, session, only_mask):  # the package's interface; its weights need a download
        assert only_mask and session == "session"
        if image.width == 80:
            raise RuntimeError("no model")
        return image.convert("L").point(lambda value: 255 * (value > 128))

    stand_in = types.SimpleNamespace(
        remove=remove, new_session=lambda: "session", __spec__=importlib.util.find_spec("os")
    )
    monkeypatch.setitem(sys.modules, "rembg", stand_in)
    assert preprocess(raw, tmp_path / "out", "--masks", "remover", "--buckets", "off") == 0
    (example,) = opened(tmp_path / "out", tmp_path)
    gray, mask = np.asarray(example["image"].convert("L"), float), np.asarray(example["mask"], float)
    assert np.corrcoef(gray.ravel(), mask.ravel())[0, 1] > 0.7
    assert (
        "the background remover failed (RuntimeError: no model)" in report_of(tmp_path / "out")["left_out"][0]["reason"]
    )


def test_a_folder_called_masks_is_a_folder_like_others_without_the_flag(raw, tmp_path):
    (raw / "masks").mkdir()
    noise().save(raw / "masks" / "carnival.png")
    assert preprocess(raw, tmp_path / "out") == 0
    assert rows_of(tmp_path / "out")[0]["source"] == "masks/carnival.png"


def test_masks_count_where_they_are_white_and_opaque(raw, tmp_path):
    for name, empty in (("a.png", (255, 255, 255, 0)), ("b.png", (0, 0, 0, 0))):
        noise(96, 96, seed=ord(name[0])).save(raw / name)
        mask = Image.new("RGBA", (96, 96), empty)
        mask.paste((255, 255, 255, 255), (0, 0, 48, 96))
        (raw / "masks").mkdir(exist_ok=True)
        mask.save(raw / "masks" / name)
    assert preprocess(raw, tmp_path / "out", "--masks", "folder", "--buckets", "off") == 0
    for example in opened(tmp_path / "out", tmp_path):
        mask = np.asarray(example["mask"])
        assert mask[:, :28].min() > 250 and mask[:, 36:].max() < 5


def test_a_mask_that_leaves_nothing_leaves_its_picture_out_and_one_without_effect_is_named(raw, tmp_path, capsys):
    (raw / "masks").mkdir()
    corner = Image.new("L", (192, 96), 0)
    corner.paste(255, (0, 0, 8, 96))  # a crop from the centre has none of it
    masks = {"black": Image.new("L", (96, 96), 0), "white": Image.new("L", (96, 96), 255), "corner": corner}
    for seed, (name, mask) in enumerate(masks.items()):
        noise(*mask.size, seed=seed).save(raw / f"{name}.png")
        mask.save(raw / "masks" / f"{name}.png")
    noise(96, 96, seed=9).save(raw / "none.png")
    assert preprocess(raw, tmp_path / "out", "--masks", "folder", "--buckets", "off") == 0
    report, said = report_of(tmp_path / "out"), capsys.readouterr().out
    reasons = {entry["source"]: entry["reason"] for entry in report["left_out"]}
    assert "is black everywhere: paint what" in reasons["black.png"] and "in crop 1" in reasons["corner.png"]
    messages = {(entry["source"], entry["message"]) for entry in report["warnings"]}
    assert ("white.png", "its mask is white everywhere: all of it counts") in messages
    assert ("none.png", "no mask: it counts everywhere") in messages and "no mask" in said
    assert preprocess(raw, tmp_path / "alpha", "--masks", "alpha") == 0
    assert "no transparency to use as a mask" in capsys.readouterr().out


def test_a_damaged_mask_is_named_as_the_mask(raw, tmp_path):
    noise(96, 96).save(raw / "a.png")
    noise(96, 96, seed=1).save(raw / "b.png")
    (raw / "masks").mkdir()
    (raw / "masks" / "a.png").write_bytes(b"text")
    assert preprocess(raw, tmp_path / "out", "--masks", "folder") == 0
    (left_out,) = report_of(tmp_path / "out")["left_out"]
    assert left_out["reason"].startswith("its mask") and left_out["reason"].endswith("not an image")


def test_folders_other_files_and_orphans_are_named_on_console_report_and_page(raw, tmp_path, capsys):
    (raw / "3_sks cat").mkdir()
    (raw / "2023_Italy").mkdir()
    noise(seed=1).save(raw / "3_sks cat" / "a.png")
    noise(seed=2).save(raw / "2023_Italy" / "b.png")
    (raw / "orphan.txt").write_text("of nobody")
    (raw / "film.mp4").write_bytes(b"film")
    assert preprocess(raw, tmp_path / "out", "--dry_run") == 0
    plan = capsys.readouterr().out
    assert preprocess(raw, tmp_path / "out") == 0
    console = capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    names = ("3_sks cat/", "3 times per epoch", "2023 is a year", "orphan.txt", "film.mp4")
    for text in (plan, console, page):
        assert all(name in text for name in names)
    assert "2 images, 4 with repeats" in plan and len(rows_of(tmp_path / "out")) == 4
    report = report_of(tmp_path / "out")
    reasons = {entry["source"]: entry["reason"] for entry in report["other_files"]}
    assert reasons == {"orphan.txt": "a caption, but no image has this name", "film.mp4": "not an image"}


def test_several_lines_of_metadata_for_one_picture_are_named(raw, tmp_path):
    noise().save(raw / "a.png")
    lines = [{"file_name": "a.png", "text": text} for text in ("one", "two")]
    (raw / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert preprocess(raw, tmp_path / "out") == 0
    assert [row["text"] for row in rows_of(tmp_path / "out")] == ["one"]
    assert any("2 lines of metadata name it" in entry["message"] for entry in report_of(tmp_path / "out")["warnings"])
