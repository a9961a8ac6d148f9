"""Pictures and their label maps."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ssl3d.data import readers
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.scans import read


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "1", "CMYK"])
def test_pictures_become_grey_or_colour(tmp_path, mode):
    picture = Image.fromarray(files.fundus(0))
    if mode == "I;16":
        picture = Image.fromarray((np.asarray(picture)[..., 0].astype(np.uint16)) * 257)
    else:
        picture = picture.convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path)
    volume = read(path, rank=2)
    channels = 1 if mode in ("L", "I;16", "1") else 3
    assert volume.array.shape == (64, 64, channels)
    assert readers.read_header((path,), 2).channels == channels
    assert 0 <= volume.array.min() <= volume.array.max() <= 255
    if mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(volume.array, files.fundus(0))
    if mode == "I;16":
        np.testing.assert_array_equal(volume.array[..., 0], files.fundus(0)[..., 0])


def test_pictures_are_turned_upright(tmp_path):
    picture = Image.fromarray(files.fundus(0)[:40])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg", rank=2).array.shape == (64, 40, 3)
    assert readers.read_header((tmp_path / "a.jpg",), 2).grid.shape == (64, 40)


def test_picture_labels(tmp_path):
    label = (files.fundus(0)[..., 0] > 30).astype(np.uint8)
    Image.fromarray(label).save(tmp_path / "a.png")
    np.testing.assert_array_equal(readers.read_label(tmp_path / "a.png", 2).array, label)
    Image.fromarray(label * 255).convert("1").save(tmp_path / "b.png")
    np.testing.assert_array_equal(readers.read_label(tmp_path / "b.png", 2).array, label)
    Image.fromarray(files.fundus(0)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match="colour picture"):
        readers.read_label(tmp_path / "c.png", 2)
