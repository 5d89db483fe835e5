"""Reading of single files by preprocess: once, whole, regular ones alone, and only their pixels are passed on."""

import hashlib
import io
import os
import sys

import pytest
from PIL import Image

from preprocess.images import mask_files
from preprocess.images.prepare import Bytes, Job, identity, prepare_image
from preprocess.images.recipe import recipe_of
from sdxl_lora.images import icc
from sdxl_lora.images.decode import ImageError
from tests.helpers.configs import flat_preprocess_config
from tests.helpers.png import encoded, png_header
from tests.helpers.preparing import noise, preprocess, report_of, rows_of

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pipes and /proc")


@pytest.fixture
def raw(tmp_path):
    """A folder with one good picture."""
    folder = tmp_path / "raw"
    folder.mkdir()
    noise(seed=99).save(folder / "good.png")
    return folder


@pytest.fixture
def job(raw, tmp_path):
    for name in ("images", "pictures"):
        (tmp_path / "out" / ".preprocess" / name).mkdir(parents=True)
    config = flat_preprocess_config(
        str(raw), str(tmp_path / "out"), resolution=64, caption_model="none", masks="folder"
    )
    noise().save(raw / "a.png")
    Image.new("L", (96, 80), 255).save(tmp_path / "mask.png")
    return Job(raw / "a.png", "a.png", tmp_path / "mask.png", recipe_of(config), tmp_path / "out")


def left_out(output):
    return {entry["source"]: entry["reason"] for entry in report_of(output)["left_out"]}


def test_hash_pixels_and_mask_are_of_one_reading_while_files_change(job):
    files = Bytes.of(job)
    before = hashlib.sha256(job.path.read_bytes()).hexdigest()
    noise(200, 128, seed=3).save(job.path)
    job.mask.unlink()
    (crop,) = prepare_image(job, files, identity(job, files))
    assert crop.sha256 == before and crop.original_size == [80, 96] and crop.mask_file_name


def test_the_key_of_a_plain_picture_is_that_of_earlier_versions_and_of_misread_colours_another(job):
    def key_before(files):
        mask = f"{mask_files.VERSION} {hashlib.sha256(files.mask).hexdigest()}"
        text = "\0".join([hashlib.sha256(files.image).hexdigest(), mask, job.recipe.digest(), "a"])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    p3 = icc.profile(icc.P3_PRIMARIES, icc.D65, icc.srgb_curve)
    linear = icc.profile(icc.SRGB_PRIMARIES, icc.D65, icc.gamma_curve(1))
    for mode, profile, is_same in (("RGB", None, True), ("RGB", p3, True), ("L", p3, True), ("L", linear, False)):
        noise().convert(mode).save(job.path, icc_profile=profile)  # grey pixels of an RGB profile were left as they are
        files = Bytes.of(job)
        assert (identity(job, files) == key_before(files)) == is_same


def test_a_mask_that_cannot_be_used_is_named_as_the_mask(job):
    job.mask.write_bytes(b"no picture")
    assert prepare_image(job, Bytes.of(job), "key").reason == "its mask mask.png: not an image"
    job.mask.unlink()
    with pytest.raises(ImageError, match=r"its mask mask\.png: no such file"):
        Bytes.of(job)


@needs_linux
@pytest.mark.parametrize("masks", ["none", "folder"])
def test_a_file_that_opens_and_cannot_be_read_is_left_out_and_the_others_are_used(masks, raw, tmp_path, capsys):
    bad = raw / ("bad.png" if masks == "none" else "masks/bad.png")
    bad.parent.mkdir(exist_ok=True)
    bad.symlink_to("/proc/self/mem")
    if masks == "folder":
        noise().save(raw / "bad.png")
    assert preprocess(raw, tmp_path / "out", "--masks", masks) == 0
    assert "cannot be read (Input/output error): copy it here again" in left_out(tmp_path / "out")["bad.png"]
    assert [row["source"] for row in rows_of(tmp_path / "out")] == ["good.png"]
    assert "bad.png" in capsys.readouterr().out


@needs_linux
@pytest.mark.parametrize("name", ["good.txt", "metadata.jsonl"])
@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "/proc/self/mem", "/nowhere"])
@pytest.mark.parametrize("flags", [(), ("--dry_run",)])
def test_captions_that_cannot_be_read_end_the_run_with_their_name(name, target, flags, raw, tmp_path, capsys):
    os.mkfifo(raw / name) if target == "pipe" else (raw / name).symlink_to(target)
    assert preprocess(raw, tmp_path / "out", *flags) == 3
    assert f"{name}: " in capsys.readouterr().err


def test_half_an_emoji_in_metadata_ends_the_run_with_its_line(raw, tmp_path, capsys):
    (raw / "metadata.jsonl").write_text('{"file_name": "good.png", "text": "a cat \\ud83d"}\n')
    assert preprocess(raw, tmp_path / "out") == 3
    assert r"metadata.jsonl:1: \ud83d is half a character" in capsys.readouterr().err


@needs_linux
def test_a_dry_run_says_the_same_of_what_headers_give_away(raw, tmp_path, capsys):
    files = {
        "large.png": png_header(12000, 12000),
        "phone.jpg": b"\0\0\0\x18ftypheic" + b"\0" * 99,
        "empty.png": b"",
        "text.gif": b"hello",
        "small.webp": encoded(noise(20, 20), "WEBP"),
        "cut.png": encoded(noise(), "PNG")[:-2000],
        "cut.jpg": encoded(noise(), "JPEG")[:300],
        "drawing.png": b"<svg></svg>",
        "other_mask.png": encoded(noise(), "PNG"),
    }
    for name, content in files.items():
        (raw / name).write_bytes(content)
    os.mkfifo(raw / "pipe.png")
    (raw / "bad.png").symlink_to("/proc/self/mem")
    (raw / "masks").mkdir()
    Image.new("L", (10, 10), 255).save(raw / "masks" / "other_mask.png")
    assert preprocess(raw, tmp_path / "out", "--masks", "folder", "--dry_run") == 0
    said = capsys.readouterr().out
    assert preprocess(raw, tmp_path / "out", "--masks", "folder") == 0
    run = left_out(tmp_path / "out")
    assert set(run) == {*files, "pipe.png", "bad.png"}
    for name, reason in run.items():
        assert f"  {name}: {reason}" in said


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_nothing_of_a_source_but_its_pixels_goes_out(image_format, raw, tmp_path):
    secret = b"at 12 Some Street"
    exif = Image.Exif()
    exif[0x010E] = secret.decode()
    p3 = icc.profile(icc.P3_PRIMARIES, icc.D65, icc.srgb_curve)
    noise().save(raw / "a.jpg", comment=secret, exif=exif, xmp=secret, icc_profile=p3)
    noise().convert("P").save(raw / "b.gif", comment=secret)
    noise().save(raw / "c.webp", exif=exif, xmp=secret, icc_profile=p3)
    noise().convert("RGBA").save(raw / "d.png", exif=exif, icc_profile=p3)
    assert preprocess(raw, tmp_path / "out", "--image_format", image_format, "--masks", "alpha") == 0
    written = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".png", ".jpg", ".webp")]
    assert len(written) > 12
    for path in written:
        assert secret not in path.read_bytes()
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert not image.getexif() and not {"icc_profile", "exif", "xmp", "comment"} & set(image.info)


@needs_linux
def test_control_characters_in_names_come_to_no_terminal(raw, tmp_path, capsys):
    (raw / "a\x1b[2J\nb.png").write_bytes(b"no picture")
    noise(seed=4).save(raw / "c\rd.png")
    (raw / "c\rd.txt").write_text("")
    for flags in (("--dry_run",), ()):
        assert preprocess(raw, tmp_path / "out", *flags) == 0
        said = capsys.readouterr().out
        assert r"a\x1b[2J\nb.png: not an image" in said and not {"\x1b", "\r"} & set(said)
    assert [row["source"] for row in rows_of(tmp_path / "out")] == [r"c\rd.png", "good.png"]
