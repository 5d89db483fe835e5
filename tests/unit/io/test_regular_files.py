"""Files that never end, cannot be read, or hold no text: each is named, none is waited for."""

import json
import os
import sys

import pytest

from sdxl_lora.config.names import printable
from sdxl_lora.data.dataset import open_dataset
from sdxl_lora.errors import DataError
from sdxl_lora.folders.caption_files import read_caption
from sdxl_lora.images.decode import ImageError, image_header, looks_like_image, open_image
from sdxl_lora.io.regular_files import read_regular
from sdxl_lora.io.text_files import read_jsonl, read_text
from tests.helpers.paths import ROOT
from tests.helpers.png import encoded, gradient

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pipes, /dev and /proc")


def endless(folder):
    """Name and reason of what may never end, or opens and cannot be read."""
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "bad_sector").symlink_to("/proc/self/mem")
    (folder / "nowhere").symlink_to(folder / "none")
    (folder / "ring").symlink_to(folder / "ring")
    (folder / "directory").mkdir()
    (folder / "sparse").write_bytes(encoded(gradient(), "PNG"))
    os.truncate(folder / "sparse", 2**40)
    device = "a device or a pipe, not a file"
    return {
        "pipe": device,
        "zero": device,
        "bad_sector": "cannot be read (Input/output error)",
        "nowhere": "dangling link",
        "ring": "cannot be read (Too many levels of symbolic links)",
        "directory": "a directory, not a file",
        "sparse": "1,099,511.6 MB, it must be at most",
        "a\0b": "no such file",
    }


@needs_linux
def test_what_never_ends_or_cannot_be_read_is_named_by_every_reader(tmp_path):
    for name, reason in endless(tmp_path).items():
        path = tmp_path / name
        for read in (read_regular, open_image, lambda path: image_header(path, path), read_caption, read_jsonl):
            with pytest.raises(DataError) as error:
                read(path)
            assert str(error.value).startswith(f"{printable(path)}: {reason}"), (name, read)
        assert looks_like_image(path) == (name == "sparse")


@needs_linux
@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl", "shard.parquet"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "dangling"])
def test_the_trainer_opens_no_pipe_and_misses_no_caption_in_silence(name, kind, tmp_path):
    gradient(64, 64).save(tmp_path / "a.png")
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(kind if kind == "/dev/zero" else tmp_path / "none")
    if (name, kind) == ("shard.parquet", "dangling"):
        return
    with pytest.raises(DataError, match=rf"{name}: (a device or a pipe, not a file|dangling link)"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a red cat".encode("utf-16-le"), "NUL at position 1, as in UTF-16"),
        ("a red cat".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("a red cat".encode("utf-32-be"), "NUL at position 0"),
        ("a red cat".encode("utf-32"), "is UTF-32, not UTF-8"),
        (b"\0\0\xfe\xff" + "a red cat".encode("utf-32-be"), "is UTF-32, not UTF-8"),
        ("\ufeffa red cat".encode("utf-16-be"), "is UTF-16, not UTF-8"),
        (b"a cat\0", "NUL at position 5"),
        ("caf\u00e9".encode("cp1252"), "not UTF-8: byte 0xe9 at position 3"),
        (b"x" * 1_000_001, r"1\.0 MB, it must be at most 1\.0 MB"),
    ],
)
def test_a_caption_that_is_no_utf8_text_is_named_with_the_place(data, words, tmp_path):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.txt.*{words}"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (r'{"text": "a cat \ud83d"}', r"\\ud83d is half a character"),
        (r'{"note": {"deep": ["\udc00"]}}', r"\\udc00 is half a character"),
        (r'{"\ud83d": 1}', r"\\ud83d is half a character"),
        (r'{"text": "a\u0000b"}', "a NUL at position 1"),
        ('{"n": ' + "1" * 5000 + "}", "cannot be read"),
        ('{"n": ' + "[" * 100_000 + "}", "cannot be read"),
        ("7", "every line must be a JSON object"),
    ],
)
def test_a_line_of_metadata_that_is_no_text_is_named_with_its_number(line, words, tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"text": "fine \\ud83d\\ude00 \\u00e9"}\n' + line, encoding="utf-8")
    with pytest.raises(DataError, match=rf"metadata\.jsonl:2.*{words}"):
        read_jsonl(path)
    path.write_text(json.dumps({"text": "\U0001f600"}) + "\n")
    assert read_jsonl(path) == [{"text": "\U0001f600"}]


def test_names_are_shown_as_one_line_that_moves_no_cursor():
    assert printable("a\nb\x1b[2J\x7f\u202egnp.png") == r"a\nb\x1b[2J\x7f\u202egnp.png"
    assert printable(os.fsdecode(b"caf\xe9 \xf0\x9f\x98\x80.png")) == "caf\\xe9 \U0001f600.png"
    ordinary = "Screenshot 1.00\u202fPM \u3000na\u00efve \U0001f469\u200d\U0001f680.png"
    assert printable(ordinary) == ordinary
    with pytest.raises(ImageError, match=r"^a\\nb: no such file"):
        open_image("a\nb")


def test_an_image_is_known_by_its_content_whatever_its_name(tmp_path):
    for name, content in {
        "noending": encoded(gradient(), "JPEG"),
        "a.jpg_large": encoded(gradient(), "WEBP"),
        "b.txt": b"a cat",
        "c.tif": encoded(gradient(), "TIFF"),
        "d": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
    assert sorted(path.name for path in tmp_path.iterdir() if looks_like_image(path)) == ["a.jpg_large", "noending"]


def test_pillow_opens_a_file_in_one_module_alone():
    files = [path for folder in ("sdxl_lora", "preprocess", "webui") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in files if "Image.open(" in path.read_text(encoding="utf-8")] == ["decode.py"]
