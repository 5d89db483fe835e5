"""sdxl_lora/images/bare_images.py: checksums, and what never comes to a decoder."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sdxl_lora.images.bare_images import MOST_PIECES, bare_gif, bare_jpeg, bare_png, chunk, png_pixel_bytes
from sdxl_lora.images.colour import ImageWarning
from sdxl_lora.images.decode import ImageError, decode_image, frame_count, image_header, upright_rgb, upright_size
from tests.helpers.png import encoded, gradient

KINDS = ("PNG", "JPEG", "WEBP", "GIF")


def with_chunks(data, *chunks):
    return data[:33] + b"".join(chunk(*parts) for parts in chunks) + data[33:]


def pixels_of(data):
    """Of a PNG with one IDAT: where it begins and ends, without its length and checksum."""
    begin = data.index(b"IDAT") + 4
    return begin, begin + int.from_bytes(data[begin - 8 : begin - 4], "big")


def test_no_flipped_byte_of_a_png_gives_other_pixels():
    image = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
    data = encoded(image, "PNG")
    begin, end = pixels_of(data)
    for place in range(begin, end):
        flipped = bytearray(data)
        flipped[place] ^= 1
        repaired = data[: begin - 8] + chunk(b"IDAT", bytes(flipped[begin:end])) + data[end + 4 :]  # zlib's alone tells
        for damaged in (bytes(flipped), repaired):
            try:
                assert decode_image(damaged, "x").tobytes() == image.tobytes()
            except ImageError as error:
                assert "PNG" in error.reason


def test_rows_that_are_missing_from_a_png_are_named_though_its_checksums_are_right():
    data = encoded(gradient(), "PNG")
    begin, end = pixels_of(data)
    rows = zlib.decompress(data[begin:end])
    short = data[: begin - 8] + chunk(b"IDAT", zlib.compress(rows[:-20])) + data[end + 4 :]
    with pytest.raises(ImageError, match="truncated PNG"):
        decode_image(short, "x")


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("colour", "depth", "bits"), [(0, 1, 1), (2, 8, 24), (3, 4, 4), (4, 16, 32), (6, 8, 32)])
def test_bytes_of_all_rows_follow_from_the_header(interlaced, colour, depth, bits):
    """Against a count of each pass's pixels one by one."""
    width, height = 21, 13
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    grid = ["16462646", "77777777", "56565656", "77777777", "36463646", "77777777", "56565656", "77777777"]
    expected = 0
    for number in "1234567" if interlaced else "0":
        rows = [sum(grid[y % 8][x % 8] == number or not interlaced for x in range(width)) for y in range(height)]
        expected += sum(1 + -(-count * bits // 8) for count in rows if count)
    assert png_pixel_bytes(header) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_the_end_of_a_picture_is_no_fault(kind):
    data = encoded(gradient(), kind)
    whole = upright_rgb(decode_image(data, "x"))
    assert upright_rgb(decode_image(data + b"a film of the phone" * 99, "x")).tobytes() == whole.tobytes()


def test_a_png_with_texts_and_a_profile_of_any_length_is_used():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("workflow", "{}" * 1_000_000, zip=True)
    info.add_text("exif", "f" * 3_000_000, zip=True)
    profile = (b"iCCP", b"large\0\0" + zlib.compress(b"\0" * 3_000_000))
    data = with_chunks(encoded(gradient(), "PNG", pnginfo=info), profile)
    with pytest.warns(ImageWarning, match="its colour profile cannot be used"):
        assert upright_rgb(decode_image(data, "x")).tobytes() == gradient().tobytes()


def test_a_damaged_chunk_beside_the_pixels_is_said_and_costs_no_picture():
    data = with_chunks(encoded(gradient(), "PNG"), (b"gAMA", struct.pack(">I", 100_000)))
    place = data.index(b"gAMA") + 4
    with pytest.warns(ImageWarning, match="chunk gAMA is damaged"):
        image = decode_image(data[:place] + b"\1" + data[place + 1 :], "x")
    assert upright_rgb(image).tobytes() == gradient().tobytes()


def test_no_decoder_meets_comments_texts_thumbnails_or_later_frames():
    secret = b"at 12 Some Street"
    jpeg = encoded(gradient(), "JPEG", comment=secret)
    thumbnail = b"\xff\xed" + struct.pack(">H", len(secret) + 2) + secret
    png = with_chunks(encoded(gradient(), "PNG"), (b"tEXt", b"Comment\0" + secret), (b"prIv", secret))
    gif = encoded(
        gradient().quantize(16), "GIF", comment=secret, save_all=True, append_images=[Image.new("P", (48, 32))]
    )
    for bare, data in ((bare_jpeg, jpeg[:2] + thumbnail + jpeg[2:]), (bare_png, png), (bare_gif, gif)):
        assert secret in data and secret not in bare(io.BytesIO(data))[0]
    assert frame_count(decode_image(gif, "x")) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_says_what_the_whole_says(kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(gradient(), kind, **({} if kind == "GIF" else {"exif": exif}))
    (tmp_path / "a").write_bytes(data)
    for header in (image_header(data, "x"), image_header(tmp_path / "a", "x")):
        assert upright_size(header) == upright_size(decode_image(data, "x"))


def test_pieces_without_end_are_refused_and_of_each_kind_the_first_counts():
    """A comment in a million pieces, EXIF in as many segments: decoders put them together in quadratic time."""
    jpeg, png = encoded(gradient(), "JPEG"), encoded(gradient(), "PNG")
    for data in (
        jpeg[:2] + b"\xff\xfe\0\2" * MOST_PIECES + jpeg[2:],
        png[:33] + chunk(b"IDAT", b"") * MOST_PIECES + png[33:],
    ):
        with pytest.raises(ImageError, match="in more than 1,000,000 pieces"):
            decode_image(data, "x")
    segment = b"\xff\xe1\0\x12Exif\0\0" + b"a" * 10
    assert bare_jpeg(io.BytesIO(jpeg[:2] + segment * 9 + jpeg[2:]))[0].count(b"Exif") == 1
    bomb = (b"iCCP", b"x\0\0" + zlib.compress(b"\0" * 1_000_000))
    assert len(bare_png(io.BytesIO(with_chunks(png, bomb, bomb)))[1]["icc_profile"]) == 1_000_000


def test_exif_that_names_its_bytes_again_and_again_takes_no_time():
    """65535 entries of 800 kB each: 50 GB for who reads all of them."""
    entries = b"".join(struct.pack("<HHII", tag, 7, 800_000, 8) for tag in range(65535))
    data = with_chunks(encoded(gradient(), "PNG"), (b"eXIf", b"II*\0" + struct.pack("<IH", 8, 65535) + entries))
    assert upright_rgb(decode_image(data, "x")).size == gradient().size


def test_a_progressive_jpeg_may_not_come_in_a_thousand_scans():
    data = encoded(gradient(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="in more than 500 scans"):
        decode_image(data[:-2] + last * 600 + data[-2:], "x")
    assert np.asarray(decode_image(data, "x")).shape == (32, 48, 3)


def test_a_png_of_a_palette_that_is_not_there_is_damaged():
    data = encoded(gradient().quantize(16), "PNG")
    begin = data.index(b"PLTE") - 4
    end = begin + 12 + int.from_bytes(data[begin : begin + 4], "big")
    for read in (decode_image, image_header):
        with pytest.raises(ImageError, match=r"damaged PNG \(its header or its palette is missing"):
            read(data[:begin] + data[end:], "x")
