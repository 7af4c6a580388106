"""Image files, loose and in zips, bad ones included."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.decode.images import read_image
from pipeline.decode.messages import StoredForm, StoredFrame
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.failures import DecodeError


def test_images_are_read_upright_from_folders_and_zips(tmp_path: Path) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be rotated by 90 degrees to the right
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(picture).convert("P").save(tmp_path / "palette.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "grey.png", "in/grey.png")
    turned = read_image(str(tmp_path), "turned.png").pixels
    assert turned.shape == (30, 20, 3)
    assert turned[:, 15:].min() == 255
    assert turned[:, :5].max() == 0
    for name in ("grey.png", "palette.png", "a.zip!in/grey.png"):
        assert np.array_equal(read_image(str(tmp_path), name).pixels, picture), name


def test_a_zip_that_was_replaced_is_opened_again(tmp_path: Path) -> None:
    for brightness in (50, 200):
        Image.new("L", (8, 8), brightness).save(tmp_path / "x.png")
        with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
            archive.write(tmp_path / "x.png", "x.png")
        (tmp_path / "new.zip").replace(tmp_path / "a.zip")
        assert read_image(str(tmp_path), "a.zip!x.png").pixels.max() == brightness


def test_bad_images_are_refused_with_a_reason_and_the_others_are_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image at all")
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    Image.new("RGB", (64, 64)).save(tmp_path / "black.jpg")
    with zipfile.ZipFile(tmp_path / "flipped.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", b"0123456789" * 500)
    packed = bytearray((tmp_path / "flipped.zip").read_bytes())
    # The first bytes of the packed data, after a header of 30 bytes and the name.
    packed[35:45] = b"\xff" * 10
    (tmp_path / "flipped.zip").write_bytes(packed)
    bad = {
        "flipped.zip!a.jpg": "unreadable image",
        "truncated.jpg": "unreadable image",
        "empty.jpg": "unreadable image",
        "text.jpg": "unreadable image",
        "broken.zip!a.jpg": "unreadable image",
        "missing.jpg": "missing image",
        "missing.zip!a.jpg": "missing image",
        "black.jpg": "black image",
    }
    for name, reason in bad.items():
        with pytest.raises(DecodeError) as error:
            read_image(str(tmp_path), name)
        assert error.value.reason == reason, name
    with SubprocessDecoder(stall_limit_s=60) as decoder:
        got = decoder.read_images(
            str(tmp_path), ["whole.jpg", *bad, "whole.jpg"], StoredForm(short_side=32)
        )
    assert [isinstance(image, DecodeError) for image in got] == [False] + [True] * len(bad) + [
        False
    ]
    assert isinstance(got[0], StoredFrame)
    assert got[0].pixels.shape == (32, 32, 3)
    assert got[0].source_size == (64, 64)


def test_every_common_format_is_read(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 24), (200, 100, 50))
    for suffix, form in {"webp": "WEBP", "bmp": "BMP", "tiff": "TIFF", "jfif": "JPEG"}.items():
        picture.save(tmp_path / f"x.{suffix}", form)
        pixels = read_image(str(tmp_path), f"x.{suffix}").pixels
        assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 3, suffix


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_by_the_range_of_the_type(tmp_path: Path, suffix: str) -> None:
    """257 is one step of 8 bits. Pillow's own conversion would make everything above 255 white."""
    values = np.array([[0, 128, 257], [25700, 65406, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    image = read_image(str(tmp_path), f"deep.{suffix}")
    assert image.channels == "16-bit grey"
    assert image.pixels[..., 0].tolist() == [[0, 0, 1], [100, 254, 255]]
    assert (image.pixels == image.pixels[..., :1]).all()


def test_dark_16_bit_images_are_named_with_the_cause(tmp_path: Path) -> None:
    """Depth in millimetres up to 1 m: 1000 of 65535 is 4 of 255."""
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "depth.png")
    with pytest.raises(DecodeError, match="black all over, after its 16 bits per pixel"):
        read_image(str(tmp_path), "depth.png")


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DecodeError, match="32-bit numbers of no known range"):
        read_image(str(tmp_path), "float.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_show_mid_grey_and_opaque_ones_stay(tmp_path: Path, mode: str) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [[210, 210, 210, 0], [210, 210, 210, 255], [0, 0, 0, 128]]
    picture = Image.fromarray(rgba)
    picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / "x.png")
    seen = read_image(str(tmp_path), "x.png").pixels[0, :, 0].tolist()
    assert seen[:2] == [128, 210]
    assert abs(seen[2] - 64) <= 1


def test_the_noise_under_transparency_is_not_stored(shared_data: Path) -> None:
    folder = shared_data / "bugs" / "rgba"
    alpha = np.asarray(Image.open(folder / "0003.png"))[..., 3]
    pixels = read_image(str(folder), "0003.png").pixels
    assert (pixels[alpha == 0] == 128).all()


def test_very_large_images_are_a_setting(tmp_path: Path) -> None:
    """Pillow warns of more than 89 megapixels and refuses 179: a setting decides here."""
    Image.new("L", (1000, 500), 9).save(tmp_path / "half.png")
    assert read_image(str(tmp_path), "half.png", max_megapixels=0.5).pixels.shape == (500, 1000, 3)
    with pytest.raises(DecodeError) as error:
        read_image(str(tmp_path), "half.png", max_megapixels=0.4)
    assert error.value.reason == "image too large"
    assert str(error.value) == (
        "the image is too large: it has 1000x500 pixels, 0.5 million, "
        "and frames.max_megapixels allows 0.4"
    )
