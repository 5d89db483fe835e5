"""sdxl_lora/images/decode.py: every kind of file a folder may hold, as pixels or as a clear word."""

import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdxl_lora.errors import DataError
from sdxl_lora.images import icc
from sdxl_lora.images.colour import ImageWarning
from sdxl_lora.images.decode import (
    HAS_HEIF,
    ImageError,
    cover_and_crop,
    decode_image,
    frame_count,
    image_header,
    open_image,
    upright_rgb,
    upright_size,
)
from tests.helpers.png import encoded, gradient, png_header


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file (0 bytes)"),
        (b"hello, I am a text", "not an image"),
        (encoded(gradient(), "JPEG")[:700], "truncated JPEG"),
        (encoded(gradient(), "PNG")[:90], "truncated PNG"),
        (encoded(gradient(), "WEBP")[:100], "truncated WEBP"),
        (encoded(gradient(), "GIF")[:900], "truncated GIF"),
        (png_header(30000, 30000), "900 MP exceeds the limit of 128 MP"),
        (png_header(12000, 12000), "144 MP exceeds the limit of 128 MP"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "unsupported format HEIC"),
        (b"8BPS\0\1" + b"\0" * 40, "unsupported format PSD"),
        (b'<?xml version="1.0"?><svg width="4"></svg>', "unsupported format SVG"),
        (encoded(gradient(), "TIFF"), "unsupported format TIFF"),
        (encoded(gradient(), "PNG").replace(b"IDAT", b"IDAX"), "damaged PNG"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_reason(tmp_path, content, reason):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        open_image(path)
    assert str(error.value).startswith(f"{path}: {reason}")


def test_directories_dangling_links_and_missing_files_are_named(tmp_path):
    (tmp_path / "x.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    for name, reason in [("x.png", "a directory"), ("link.png", "dangling link"), ("none.png", "no such file")]:
        with pytest.raises(DataError, match=rf"{name}: {reason}"):
            open_image(tmp_path / name)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True}), ("GIF", {})])
def test_every_supported_format_opens_whole(tmp_path, kind, options):
    path = tmp_path / "picture.any"
    path.write_bytes(encoded(gradient(), kind, **options))
    image = upright_rgb(open_image(path))
    assert image.mode == "RGB" and image.size == (48, 32)
    assert np.abs(np.asarray(image, float) - np.asarray(gradient(), float)).mean() < 8


def test_frames_are_counted_and_the_first_is_used(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        path = tmp_path / f"two.{kind}"
        frames[0].save(path, kind, save_all=True, append_images=frames[1:])
        image = open_image(path)
        assert frame_count(image) == 2
        red, _, blue = upright_rgb(image).getpixel((4, 4))
        assert red > 200 and blue < 60


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    image = upright_rgb(open_image(tmp_path / "grey.png"))
    assert np.abs(np.asarray(image)[..., 0] - values / 257).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_show_the_background(mode):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))  # red hides under the alpha
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    rgb = upright_rgb(image.quantize(4) if mode == "P" else image.convert(mode), background=(0, 255, 0))
    assert rgb.getpixel((6, 4)) == (0, 255, 0)
    assert max(rgb.getpixel((1, 4))) < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_once(orientation, tmp_path):
    undo = [
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_270,
    ]
    stored = gradient() if orientation == 1 else gradient().transpose(undo[orientation - 2])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    image = upright_rgb(open_image(tmp_path / "a.png"))
    assert np.array_equal(np.asarray(image), np.asarray(gradient()))
    assert np.array_equal(np.asarray(upright_rgb(image)), np.asarray(gradient()))


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("RGB", (8, 8), (200, 30, 30)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    red, green, blue = upright_rgb(open_image(tmp_path / "a.jpg")).getpixel((4, 4))
    assert red > 180 and green < 60 and blue < 60


def test_colour_profile_is_applied_and_a_damaged_one_warned_of():
    image = Image.new("RGB", (8, 8), (100, 150, 200))
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert upright_rgb(image).getpixel((0, 0)) == (100, 150, 200)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"nonsense", lab):
        image.info["icc_profile"] = profile
        with pytest.warns(ImageWarning, match="colour profile"):
            assert upright_rgb(image).getpixel((0, 0)) == (100, 150, 200)


def test_a_colour_profile_moves_colours_to_srgb():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"tmp_").replace(b"gXYZ", b"rXYZ").replace(b"tmp_", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    for mode in ("RGB", "RGBA"):
        image = Image.new("RGB", (8, 8), (200, 40, 90)).convert(mode)
        image.info["icc_profile"] = swapped
        assert np.abs(np.subtract(upright_rgb(image).getpixel((0, 0)), (40, 200, 90))).max() <= 2


def test_no_damaged_byte_brings_anything_but_an_image_error():
    """What Pillow and its codecs raise for a file of a failing disk is of many classes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    whole = [encoded(gradient(), kind, icc_profile=profile, exif=exif) for kind in ("JPEG", "PNG", "WEBP")]
    whole += [encoded(gradient(), "GIF"), encoded(gradient().convert("LA"), "PNG")]
    generator = np.random.default_rng(0)
    opened = 0
    for number in range(500):
        data = bytearray(whole[number % len(whole)])
        for place in generator.integers(0, len(data), generator.choice([1, 2, 9])):
            data[place] = generator.integers(256)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                opened += upright_rgb(decode_image(bytes(data), "picture")).mode == "RGB"
        except ImageError:
            pass
    assert 50 < opened < 450


def test_animations_of_any_length_are_counted_without_decoding_their_frames():
    frames = [gradient(8, 8).rotate(9 * number).quantize(16) for number in range(40)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    cut = data[:-3]  # in the last frame, which nobody needs
    assert frame_count(decode_image(data, "x")) == 40 == frame_count(decode_image(cut, "x"))


@pytest.mark.parametrize("size", [(24, 24), (40, 16), (16, 32), (96, 96)])
@pytest.mark.parametrize("position", [(0.5, 0.5), (0.0, 1.0)])
def test_crop_reports_where_it_came_from(size, position):
    image = gradient(100, 60)
    cropped, original_size, (top, left) = cover_and_crop(image, size, position)
    scale = max(size[0] / 100, size[1] / 60)
    resized = image.resize(
        (max(size[0], round(100 * scale)), max(size[1], round(60 * scale))), Image.Resampling.LANCZOS
    )
    assert cropped.size == size and original_size == (60, 100)
    assert resized.crop((left, top, left + size[0], top + size[1])).tobytes() == cropped.tobytes()
    assert (left, top) == (
        round((resized.width - size[0]) * position[0]),
        round((resized.height - size[1]) * position[1]),
    )


@pytest.mark.skipif(HAS_HEIF, reason="pillow-heif is there")
def test_a_heic_says_what_to_install():
    with pytest.raises(ImageError, match=r"unsupported format HEIC; `pip install pillow-heif` to use it, or use \.png"):
        decode_image(b"\0\0\0\x18ftypmif1\0\0\0\0heic", "picture")
    for brand, kind in ((b"avif", "AVIF"), (b"isom", "video"), (b"crx ", "CR3")):
        with pytest.raises(ImageError, match=f"unsupported format {kind}; use"):
            decode_image(b"\0\0\0\x10ftyp" + brand + b"\0\0\0\0", "picture")


@pytest.mark.skipif(not HAS_HEIF, reason="pillow-heif is not there")
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_heic_is_used_upright_and_in_srgb_where_its_package_is_installed(orientation):
    import pillow_heif

    pillow_heif.register_heif_opener()
    p3 = icc.profile(icc.P3_PRIMARIES, icc.D65, icc.srgb_curve)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.new("RGB", (64, 48), (200, 30, 30)), "HEIF", exif=exif.tobytes(), icc_profile=p3, quality=95)
    image = upright_rgb(decode_image(data, "picture"))
    assert image.size == upright_size(image_header(data, "picture")) == ((64, 48) if orientation == 1 else (48, 64))
    assert np.abs(np.subtract(image.getpixel((9, 9)), (218, 0, 6))).max() <= 6
    with pytest.raises(ImageError, match="truncated HEIC"):
        decode_image(data[:-20], "picture")
