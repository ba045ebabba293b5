"""Pictures from files of all kinds, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dropblock_inject import DropBlockInjectError
from dropblock_inject.command.pictures import open_picture

RAMP = np.linspace(0, 1, 64 * 48).reshape(48, 64)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("8.png", (RAMP * 200).astype(np.uint8), np.floor(RAMP * 200)),
        ("16.png", (RAMP * 40_000).astype(np.uint16), RAMP * 40_000 / 65_535 * 255),
        ("16.tif", (RAMP * 40_000).astype(np.uint16), RAMP * 40_000 / 65_535 * 255),
        ("32.tif", (RAMP * 40_000).astype(np.int32), RAMP * 40_000 / 65_535 * 255),
        ("32_of_8.tif", (RAMP * 200).astype(np.int32), np.floor(RAMP * 200)),
        ("large.tif", (RAMP * 1e9).astype(np.int32), RAMP * 1e9 / (2**31 - 1) * 255),
        ("unit.tif", RAMP.astype(np.float32), RAMP * 255),
        ("float.tif", (RAMP * 200).astype(np.float32), RAMP * 200),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_greys_of_any_depth_keep_their_shades(tmp_path, name, values, expected, mode):
    Image.fromarray(values).save(tmp_path / name)
    picture = open_picture(tmp_path / name, mode)
    assert (picture.mode, picture.size) == (mode, (64, 48))
    seen = np.asarray(picture, dtype=float).reshape(48, 64, -1)
    assert np.abs(seen - expected[:, :, None]).max() <= 1


def test_a_photograph_stands_upright(tmp_path):
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert (np.asarray(open_picture(tmp_path / "turned.png", "RGB")) == np.asarray(upright)).all()


def test_large_pictures_are_read_and_bombs_are_refused(tmp_path, monkeypatch):
    Image.new("L", (64, 48)).save(tmp_path / "black.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert open_picture(tmp_path / "black.png", "L").size == (64, 48)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DropBlockInjectError, match=r"black\.png is no picture that can be read: .*decompression bomb"):
        open_picture(tmp_path / "black.png", "L")


def test_files_that_lie(tmp_path):
    text, file = PngInfo(), tmp_path / "text.png"
    text.add_text("comment", " " * 10_000_000, zip=True)
    Image.new("L", (8, 8)).save(file, pnginfo=text)
    with pytest.raises(DropBlockInjectError, match=r"text\.png is no picture that can be read: .*[Dd]ecompressed"):
        open_picture(file, "L")
    Image.new("L", (64, 48)).save(tmp_path / "short.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "short.png").read_bytes()[:60])
    Image.fromarray(np.full((8, 8), np.inf, np.float32)).save(tmp_path / "infinite.tif")
    Image.fromarray((RAMP * 300 - 100).astype(np.float32)).save(tmp_path / "negative.tif")
    Image.fromarray(np.full((8, 8), 7.5, np.float32)).save(tmp_path / "dark.tif")  # white may be 1, 10, 255
    for name in ("short.png", "infinite.tif", "negative.tif", "dark.tif"):
        with pytest.raises(DropBlockInjectError, match=f"{name} is no picture that can be read: "):
            open_picture(tmp_path / name, "RGB")
