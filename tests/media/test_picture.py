"""Pictures of every kind become RGB of the asked size, or one clear line."""

import os

from absl import logging
import numpy as np
import PIL.Image
import pytest

from tm_jax.media import picture

RED = (200, 40, 40)


def save(path, image, **options):
    image.save(path, **options)
    return path


def close_to(pixel, expected, tolerance=3):
    return np.abs(np.int32(pixel) - expected).max() <= tolerance


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


@pytest.mark.parametrize(
    "name,mode",
    [
        ("a.png", "RGB"), ("a.png", "P"), ("a.jpg", "RGB"), ("a.jpg", "CMYK"),
        ("a.webp", "RGB"), ("a.bmp", "RGB"), ("a.tiff", "RGB"), ("a.gif", "P"),
        ("a.png", "RGBA"), ("a.ppm", "RGB"),
    ],
)  # fmt: skip
def test_colours_survive(tmp_path, name, mode, warnings):
    image = PIL.Image.new("RGB", (100, 80), RED).convert(mode)
    options = {"lossless": True} if name == "a.webp" else {}
    loaded = picture.load(save(tmp_path / name, image, **options), 64, 64)
    assert loaded.shape == (64, 64, 3) and loaded.dtype == np.uint8
    assert close_to(loaded[32, 32], RED, 6) and not warnings


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bit_grey(tmp_path, name):
    ramp = np.uint16(np.linspace(0, 65535, 128))[None].repeat(128, 0)
    loaded = picture.load(save(tmp_path / name, PIL.Image.fromarray(ramp)), 128, 128)
    np.testing.assert_allclose(loaded[64, :, 0], ramp[0] / 257, atol=1)
    assert (loaded[..., 0] == loaded[..., 2]).all()


def test_grey_with_alpha_and_float(tmp_path):
    grey = PIL.Image.new("LA", (70, 70), (100, 255))
    assert close_to(picture.load(save(tmp_path / "a.png", grey), 32, 32)[9, 9], 100)
    unit = PIL.Image.new("F", (70, 70), 0.5)
    assert close_to(picture.load(save(tmp_path / "a.tiff", unit), 32, 32)[9, 9], 128)


def test_transparency_shows_the_background(tmp_path):
    clear = PIL.Image.new("RGBA", (80, 80), (0, 0, 0, 0))
    loaded = picture.load(save(tmp_path / "a.png", clear), 32, 32)
    assert close_to(loaded[16, 16], picture._BACKGROUND)
    half = PIL.Image.new("RGBA", (80, 80), (0, 0, 0, 128))
    loaded = picture.load(save(tmp_path / "b.png", half), 32, 32)
    assert close_to(loaded[16, 16], np.array(picture._BACKGROUND) / 2)
    palette = PIL.Image.new("P", (80, 80), 0)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    loaded = picture.load(save(tmp_path / "c.png", palette, transparency=0), 32, 32)
    assert close_to(loaded[16, 16], picture._BACKGROUND)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_first_frame_of_an_animation(tmp_path, name):
    frames = [PIL.Image.new("RGB", (80, 80), colour) for colour in (RED, (0, 0, 250))]
    path = tmp_path / name
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    assert close_to(picture.load(path, 32, 32)[16, 16], RED, 8)


def test_orientation_is_applied(tmp_path):
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 100:] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # To be turned by 90 degrees clockwise: the right half goes down.
    path = save(tmp_path / "a.jpg", PIL.Image.fromarray(pixels), exif=exif, quality=95)
    loaded = picture.load(path, 200, 100)
    assert loaded[20, 50].max() < 10 and loaded[180, 50].min() > 245


def test_the_crop_is_centred_and_a_little_high(tmp_path):
    wide = np.uint8(np.arange(300) // 2)[None, :, None].repeat(100, 0).repeat(3, 2)
    loaded = picture.load(save(tmp_path / "w.png", PIL.Image.fromarray(wide)), 100, 100)
    np.testing.assert_array_equal(loaded, wide[:, 100:200])
    tall = wide.transpose(1, 0, 2)
    loaded = picture.load(save(tmp_path / "t.png", PIL.Image.fromarray(tall)), 100, 100)
    np.testing.assert_array_equal(loaded, tall[80:180])


def test_tiny_pictures_are_enlarged_with_a_warning(tmp_path, warnings):
    path = save(tmp_path / "a.png", PIL.Image.new("RGB", (1, 5), RED))
    assert close_to(picture.load(path, 48, 64), RED) and len(warnings) == 1


def test_bombs_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", PIL.Image.new("1", (20000, 6000)))

    def never(*unused):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", never)
    with pytest.raises(ValueError, match="100 million pixels"):
        picture.load(path, 64, 64)


def _damaged(start, end):
    def make(path):
        noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)
        PIL.Image.fromarray(noise).save(path)
        data = path.read_bytes()
        path.write_bytes(data[:start] + bytes(end - start) + data[end:])

    return make


def _cut(path):
    _damaged(0, 0)(path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    "name,make,error,text",
    [
        ("a.png", None, FileNotFoundError, "no file"),
        ("a.png", os.mkdir, ValueError, "folder"),
        ("a.png", lambda path: path.touch(), ValueError, "empty"),
        ("a.png", lambda path: path.write_text("hello"), ValueError, "not a picture"),
        ("a.svg", lambda path: path.write_text("<svg></svg>"), ValueError, "not a picture"),
        ("a.png", _cut, ValueError, "damaged or cut short"),
        ("a.jpg", _cut, ValueError, "damaged or cut short"),
        ("a.webp", _cut, ValueError, "damaged|not a picture"),
        ("a.png", _damaged(60, 2000), ValueError, "damaged"),
        ("a.png", _damaged(10, 30), ValueError, "damaged|not a picture"),
    ],
)
def test_errors_are_one_clear_line(tmp_path, name, make, error, text):
    path = tmp_path / name
    if make is not None:
        make(path)
    with pytest.raises(error, match=text) as caught:
        picture.load(path, 64, 64)
    assert "\n" not in str(caught.value) and name in str(caught.value)
