"""sdxl_lora/images/colour.py: what colours a file means, whichever way it says so."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdxl_lora.images import icc
from sdxl_lora.images.bare_images import chunk
from sdxl_lora.images.colour import ImageWarning, is_read_anew
from sdxl_lora.images.decode import decode_image, image_header, upright_rgb
from tests.helpers.png import encoded

P3 = icc.profile(icc.P3_PRIMARIES, icc.D65, icc.srgb_curve)
LINEAR = icc.profile(icc.SRGB_PRIMARIES, icc.D65, icc.gamma_curve(1))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RED, RED_IN_P3 = (200, 30, 30), (218, 0, 6)


def colour(data):
    return upright_rgb(decode_image(data, "picture")).getpixel((0, 0))


def near(first, second, levels=2):
    return max(abs(a - b) for a, b in zip(first, second, strict=True)) <= levels


def png(mode, value, *chunks):
    """A PNG of one colour with these chunks (name, body) before its pixels."""
    data = encoded(Image.new(mode, (8, 8), value), "PNG")
    return data[:33] + b"".join(chunk(*parts) for parts in chunks) + data[33:]


def primaries_chunk(primaries, white=icc.D65):
    return b"cHRM", struct.pack(">8I", *(round(value * 100_000) for pair in (white, *primaries) for value in pair))


def gamma_chunk(gamma):
    return b"gAMA", struct.pack(">I", round(gamma * 100_000))


def test_a_profile_whose_name_says_srgb_is_judged_by_what_it_does():
    swapped = SRGB.replace(b"rXYZ", b"tmp_").replace(b"gXYZ", b"rXYZ").replace(b"tmp_", b"gXYZ")
    assert "sRGB" in ImageCms.getProfileDescription(io.BytesIO(swapped))
    assert near(colour(encoded(Image.new("RGB", (8, 8), (200, 40, 90)), "PNG", icc_profile=swapped)), (40, 200, 90))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_p3_becomes_srgb_in_every_format(kind, mode):
    image = Image.new("RGB", (8, 8), RED)
    if mode != "RGB" and kind == "JPEG":
        return
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98} if kind == "JPEG" else {}
    assert near(colour(encoded(image, kind, icc_profile=P3, **options)), RED_IN_P3, 4)


def test_pixels_of_an_srgb_profile_stay_as_they_are_whatever_its_name():
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    ours = icc.profile(icc.SRGB_PRIMARIES, icc.D65, icc.srgb_curve)
    assert "sRGB" not in ImageCms.getProfileDescription(io.BytesIO(ours))
    for profile in (SRGB, ours):
        assert upright_rgb(decode_image(encoded(pixels, "PNG", icc_profile=profile), "x")).tobytes() == pixels.tobytes()


def test_grey_pixels_follow_a_grey_profile_and_an_rgb_one_with_and_without_alpha():
    for mode, value in (("L", 55), ("LA", (55, 255))):
        assert near(colour(encoded(Image.new(mode, (8, 8), value), "PNG", icc_profile=LINEAR)), (128, 128, 128))
    grey = LINEAR.replace(b"RGB XYZ ", b"GRAYXYZ ").replace(b"rTRC", b"kTRC")
    for mode, value in (("L", 55), ("LA", (55, 255))):
        assert near(colour(encoded(Image.new(mode, (8, 8), value), "PNG", icc_profile=grey)), (128, 128, 128))


def test_a_profile_for_other_pixels_or_a_broken_one_is_said_and_left_out():
    grey = LINEAR.replace(b"RGB XYZ ", b"GRAYXYZ ").replace(b"rTRC", b"kTRC")
    link = P3.replace(b"mntr", b"link")
    whole = encoded(Image.new("RGB", (8, 8), RED), "JPEG", quality=98, icc_profile=P3 + b"\0" * 100_000)
    place = whole.rindex(b"ICC_PROFILE")
    bad = (grey, link, b"no", P3.replace(b"RGB XYZ ", b"RGB\xd4XYZ "))
    files = [encoded(Image.new("RGB", (8, 8), RED), "PNG", icc_profile=profile) for profile in bad]
    files += [png("RGB", RED, (b"iCCP", b"x\0\0no zlib")), whole[:place] + b"XXX" + whole[place + 3 :]]
    for data in files:
        with pytest.warns(ImageWarning, match="its colour profile cannot be used"):
            assert near(colour(data), RED)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([gamma_chunk(1)], (229, 96, 96)),
        ([gamma_chunk(0.45455)], RED),
        ([primaries_chunk(icc.P3_PRIMARIES)], RED_IN_P3),
        ([primaries_chunk(icc.P3_PRIMARIES), gamma_chunk(0.45455)], RED_IN_P3),
        ([(b"sRGB", b"\0"), primaries_chunk(icc.P3_PRIMARIES)], RED),
        ([(b"cICP", bytes([12, 13, 0, 1])), (b"sRGB", b"\0")], RED_IN_P3),
        ([(b"cICP", bytes([1, 1, 0, 1])), gamma_chunk(1)], RED),
    ],
)
def test_a_png_tells_its_colours_by_chunks_of_which_the_strongest_counts(chunks, expected):
    assert near(colour(png("RGB", RED, *chunks)), expected)


def test_senseless_chunks_of_colours_are_said():
    for parts in (gamma_chunk(0), primaries_chunk(((0, 0),) * 3), primaries_chunk(((0.3, 0.3),) * 3)):
        with pytest.warns(ImageWarning, match="its colour profile cannot be used"):
            assert colour(png("RGB", RED, parts)) == RED
    with pytest.warns(ImageWarning, match="HDR"):
        assert colour(png("RGB", (148, 148, 148), (b"cICP", bytes([9, 16, 0, 1]))))[0] >= 254  # 58 % of PQ is 203 nits


def test_a_camera_set_to_adobe_rgb_writes_no_profile_and_is_believed():
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 2
    data = encoded(Image.new("RGB", (8, 8), RED), "JPEG", quality=98, exif=exif)
    right = ImageCms.profileToProfile(
        Image.new("RGB", (8, 8), RED), io.BytesIO(icc.adobe_rgb_profile()), ImageCms.createProfile("sRGB")
    )
    assert near(colour(data), right.getpixel((0, 0)), 4) and colour(data)[0] > 225


def test_keys_change_where_colours_were_read_otherwise_before_and_nowhere_else():
    def anew(data):
        return is_read_anew(image_header(data, "picture"))

    plain = Image.new("RGB", (8, 8), RED)
    called_srgb = SRGB.replace(b"rXYZ", b"tmp_").replace(b"gXYZ", b"rXYZ").replace(b"tmp_", b"gXYZ")
    assert anew(encoded(plain, "PNG", icc_profile=called_srgb)) and anew(png("RGB", RED, gamma_chunk(1)))
    assert anew(encoded(plain.convert("L"), "PNG", icc_profile=LINEAR))
    for profile in (None, SRGB, P3, b"no"):
        assert not anew(encoded(plain, "JPEG", icc_profile=profile))
    assert not anew(png("RGB", RED, gamma_chunk(0.45455)))
