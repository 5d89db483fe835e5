"""Bad input in a person's folder: every row of a table, each file made by the test."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from tests.helpers.png import png_header
from tests.helpers.preparing import noise, opened, preprocess, report_of, rows_of


@pytest.fixture
def raw(tmp_path):
    """A folder with one good picture."""
    folder = tmp_path / "raw"
    folder.mkdir()
    noise(seed=99).save(folder / "good.png")
    return folder


def encoded(kind, image=None, **options):
    stream = io.BytesIO()
    (image or noise()).save(stream, kind, **options)
    return stream.getvalue()


def half(kind):
    data = encoded(kind)
    return data[: len(data) // 2]


SKIPPED = {
    "empty.png": (b"", "empty file (0 bytes)"),
    "text.png": (b"this is a text", "not an image"),
    "half.jpg": (half("JPEG"), "truncated JPEG"),
    "half.png": (half("PNG"), "truncated PNG"),
    "half.webp": (half("WEBP"), "truncated WEBP"),
    "half.gif": (half("GIF"), "truncated GIF"),
    "huge.png": (png_header(30000, 30000), "900 MP exceeds the limit"),
    "large.png": (png_header(12000, 12000), "144 MP exceeds the limit"),
    "phone.heic": (b"\0\0\0\x18ftypheic", "unsupported format HEIC"),
    "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0", "unsupported format HEIC"),
    "drawing.svg": (b"<svg/>", "unsupported format SVG"),
    "layers.psd": (b"8BPS", "unsupported format PSD"),
    "scan.tiff": (encoded("TIFF"), "unsupported format TIFF"),
    "raw.NEF": (b"II*\0", "unsupported format NEF"),
    "small.png": (encoded("PNG", noise(40, 32)), "smaller than its"),
    "one_pixel.png": (encoded("PNG", Image.new("RGB", (1, 1))), "smaller than its"),
    "._mac.png": (b"\0\5\x16\7", "a hidden file"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_what_cannot_be_used_is_left_out_and_named(name, raw, tmp_path, capsys):
    content, reason = SKIPPED[name]
    (raw / name).write_bytes(content)
    assert preprocess(raw, tmp_path / "out") == 0
    (left_out,) = report_of(tmp_path / "out")["left_out"]
    assert (left_out["source"] == name and left_out["reason"].startswith(reason)) or reason in left_out["reason"]
    assert name in capsys.readouterr().out
    assert [row["source"] for row in rows_of(tmp_path / "out")] == ["good.png"]


@pytest.mark.parametrize("name", SKIPPED)
def test_strict_turns_every_skip_into_an_error(name, raw, tmp_path, capsys):
    (raw / name).write_bytes(SKIPPED[name][0])
    assert preprocess(raw, tmp_path / "out", "--strict") == 3
    assert name in capsys.readouterr().err
    assert not (tmp_path / "out" / "metadata.jsonl").exists() and not (tmp_path / "out" / "images").exists()
    assert report_of(tmp_path / "out")["left_out"]


def test_directories_and_links_are_left_out_and_named(raw, tmp_path):
    (raw / "x.png").mkdir()
    (raw / ".hidden").mkdir()
    (raw / ".DS_Store").write_bytes(b"\0")
    (raw / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(raw / "pipe.png")
    assert preprocess(raw, tmp_path / "out") == 0
    left_out = {entry["source"]: entry["reason"] for entry in report_of(tmp_path / "out")["left_out"]}
    assert left_out["x.png/"].startswith("a directory, not a file")
    assert report_of(tmp_path / "out")["not_pictures"] == [".DS_Store", ".hidden/"]
    assert left_out["dangling.png"] == "dangling link"
    assert left_out["pipe.png"] == "a device or a pipe, not a file"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_left_out_and_named(raw, tmp_path):
    noise().save(raw / "secret.png")
    (raw / "secret.png").chmod(0)
    assert preprocess(raw, tmp_path / "out") == 0
    assert "cannot be read" in report_of(tmp_path / "out")["left_out"][0]["reason"]


def test_a_folder_that_cannot_be_read_is_named(raw, tmp_path, monkeypatch):
    (raw / "locked").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert preprocess(raw, tmp_path / "out") == 0
    left_out = {"source": "locked/", "reason": "cannot be read (Permission denied)"}
    assert report_of(tmp_path / "out")["left_out"] == [left_out]


def test_links_to_folders_are_followed_once(raw, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    noise(seed=1).save(other / "linked.png")
    (raw / "there").symlink_to(other)
    (raw / "round").symlink_to(raw)
    assert preprocess(raw, tmp_path / "out") == 0
    assert [row["source"] for row in rows_of(tmp_path / "out")] == ["good.png", "there/linked.png"]


def used(name, content, raw, tmp_path, *flags):
    """The example that `datasets` gives for this file, and its warnings."""
    (raw / name).write_bytes(content)
    assert preprocess(raw, tmp_path / "out", "--buckets", "off", "--fallback_caption", "a thing", *flags) == 0
    warnings = [w["message"] for w in report_of(tmp_path / "out")["warnings"] if w["source"] == name]
    (example,) = [e for e in opened(tmp_path / "out", tmp_path) if e["source"] == name]
    return example, [message for message in warnings if "no caption" not in message]


def test_sixteen_bit_grey_is_scaled(raw, tmp_path):
    values = np.linspace(0, 65535, 128 * 128).reshape(128, 128).astype(np.uint16)
    example, _ = used("grey.png", encoded("PNG", Image.fromarray(values)), raw, tmp_path)
    grey = np.asarray(example["image"], float)
    assert grey.shape == (64, 64, 3) and abs(grey.mean() - 127.5) < 2


def test_cmyk_and_grey_are_converted(raw, tmp_path):
    cmyk = Image.new("RGB", (80, 80), (200, 30, 30)).convert("CMYK")
    example, _ = used("cmyk.jpg", encoded("JPEG", cmyk), raw, tmp_path)
    assert np.abs(np.asarray(example["image"], float).mean((0, 1)) - [200, 30, 30]).max() < 30
    example, _ = used("grey.jpg", encoded("JPEG", Image.new("L", (80, 80), 77)), raw, tmp_path)
    assert example["image"].getpixel((3, 3)) == (77, 77, 77)


def test_alpha_is_composited_on_the_chosen_background(raw, tmp_path):
    hidden = encoded("PNG", Image.new("RGBA", (80, 80), (255, 0, 0, 0)))
    example, _ = used("alpha.png", hidden, raw, tmp_path, "--background", 10, 20, 30)
    assert example["image"].getpixel((5, 5)) == (10, 20, 30)


def test_exif_turns_the_picture_and_its_sizes_once(raw, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: stored lying, shown standing
    example, _ = used("turned.jpg", encoded("JPEG", noise(160, 96), exif=exif), raw, tmp_path)
    assert example["original_size"] == [160, 96]
    shown = noise(160, 96).transpose(Image.Transpose.ROTATE_270).resize((64, 107), Image.Resampling.LANCZOS)
    top, left = example["crop_top_left"]
    expected = shown.crop((left, top, left + 64, top + 64))
    assert np.abs(np.asarray(example["image"], float) - np.asarray(expected, float)).mean() < 12


def test_of_an_animation_the_first_frame_is_used(raw, tmp_path):
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "blue")]
    for kind, name in [("GIF", "a.gif"), ("WEBP", "b.webp")]:
        data = encoded(kind, frames[0], save_all=True, append_images=frames[1:])
        example, warnings = used(name, data, raw, tmp_path)
        assert "2 frames; the first is used" in warnings and example["image"].getpixel((5, 5))[0] > 240


@pytest.mark.parametrize(
    "name", ["with space.png", "emoji 😀.jpg", "quo'te\".png", "-rf.png", "ünïcödé.PNG", "a.b.c.jpeg"]
)
def test_odd_names_are_used(name, raw, tmp_path):
    example, warnings = used(name, encoded("PNG"), raw, tmp_path)
    assert example["source"] == name and not warnings


def test_a_name_that_is_no_unicode_is_used(raw, tmp_path):
    with open(os.fsencode(raw) + b"/latin-\xe9.png", "wb") as file:
        file.write(encoded("PNG"))
    assert preprocess(raw, tmp_path / "out") == 0
    assert len(opened(tmp_path / "out", tmp_path)) == 2


def test_two_pictures_for_one_caption_stop_the_run(raw, tmp_path, capsys):
    noise().save(raw / "a.png")
    noise().save(raw / "a.jpg")
    (raw / "a.txt").write_text("which one?")
    assert preprocess(raw, tmp_path / "out") == 3
    assert "a.jpg and a.png both map to a.txt" in capsys.readouterr().err
    (raw / "a.txt").rename(raw / "a.png.txt")
    (raw / "a.jpg.txt").write_text("the other one")
    assert preprocess(raw, tmp_path / "out") == 0
    texts = {row["source"]: row["text"] for row in rows_of(tmp_path / "out")}
    assert texts["a.png"] == "which one?" and texts["a.jpg"] == "the other one"


def test_a_caption_that_is_not_utf8_stops_the_run_with_byte_and_position(raw, tmp_path, capsys):
    (raw / "good.txt").write_bytes("caf\u00e9".encode("cp1252"))
    assert preprocess(raw, tmp_path / "out") == 3
    assert "good.txt is not UTF-8: byte 0xe9 at position 3" in capsys.readouterr().err


def test_empty_and_missing_captions_are_counted_and_warned_of(raw, tmp_path):
    (raw / "good.txt").write_text("\n")
    noise().save(raw / "other.png")
    assert preprocess(raw, tmp_path / "out", "--fallback_caption", "a thing", "--trigger_word", "sks") == 0
    assert [row["text"] for row in rows_of(tmp_path / "out")] == ["sks", "sks, a thing"]
    report = report_of(tmp_path / "out")
    assert report["counts"]["empty_captions"] == 1
    warnings = {w["source"]: w["message"] for w in report["warnings"]}
    assert warnings["good.png"] == "good.txt is empty" and "the fallback is used" in warnings["other.png"]


def test_nothing_usable_says_what_was_there(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(7):
        (raw / f"{i}.jpg").write_bytes(half("JPEG"))
    for i in range(5):
        noise(20, 20).save(raw / f"small{i}.png")
    assert preprocess(raw, tmp_path / "out") == 3
    assert "12 found, 12 rejected (7 truncated, 5 too small)" in capsys.readouterr().err
    assert len(report_of(tmp_path / "out")["left_out"]) == 12


@pytest.mark.parametrize("line", ["{not json", '"a string"', '{"file_name": "a"'])
def test_a_broken_metadata_line_stops_the_run_with_its_place(line, raw, tmp_path, capsys):
    (raw / "metadata.jsonl").write_text('{"file_name": "good.png", "text": "fine"}\n' + line)
    assert preprocess(raw, tmp_path / "out") == 3
    assert "metadata.jsonl:2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", " ", "a\0b"])
def test_an_invalid_output_name_is_refused(name, raw, capsys):
    with pytest.raises(SystemExit) as stop:
        preprocess(raw, name)
    assert stop.value.code == 2 and "invalid name" in "".join(capsys.readouterr())


def test_a_folder_of_strangers_is_not_touched(raw, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    noise().save(out / "images" / "mine.png")
    assert preprocess(raw, out) == 2 and "choose an empty output_dir" in capsys.readouterr().err
    (out / "metadata.jsonl").write_text('{"file_name": "images/mine.png", "text": "mine"}\n')
    assert preprocess(raw, out) == 2 and "preprocess did not write it" in capsys.readouterr().err
    assert [path.name for path in (out / "images").iterdir()] == ["mine.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE")
def test_a_full_disk_ends_with_code_5_and_the_old_dataset(raw, tmp_path, capsys):
    import resource
    import signal

    assert preprocess(raw, tmp_path / "out") == 0
    before = rows_of(tmp_path / "out")
    noise(640, 640, seed=3).save(raw / "more.png")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        assert preprocess(raw, tmp_path / "out", "--buckets", "off", resolution=512) == 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    error = capsys.readouterr().err
    assert "cannot write" in error and "MB are free" in error
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    assert rows_of(tmp_path / "out") == before and len(opened(tmp_path / "out", tmp_path)) == 1
    assert preprocess(raw, tmp_path / "out") == 0 and len(rows_of(tmp_path / "out")) == 2
