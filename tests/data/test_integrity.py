"""Prepared files are those that were written, or refused by name."""

import os
import shutil
import zipfile

import numpy as np
import pytest

from ssl3d import verify
from ssl3d.data import integrity, store
from ssl3d.errors import UserError
from tests.support.datasets import forget_digests


@pytest.fixture
def dataset(pictures, tmp_path):
    """A copy of a data set, and its image files with digests."""
    shutil.copytree(pictures.path, tmp_path / "data")
    (tmp_path / "data" / ".verified").unlink(missing_ok=True)
    integrity._known.cache_clear()
    found = store.read(tmp_path / "data")
    assert all(case.files["image"].sha256 for case in found.cases)
    return found


def image_of(dataset, index=0):
    return store.image_path(dataset.path, dataset.cases[index].id)


def flip_a_bit(file, at=-1):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_digests_are_of_the_files(dataset):
    case = dataset.cases[0]
    assert case.files["image"] == integrity.digest(image_of(dataset))
    assert case.files["image"].size == image_of(dataset).stat().st_size


@pytest.mark.parametrize("at", [0, 60, 300, -1])
def test_a_flipped_bit_is_found_at_the_first_read(dataset, at):
    flip_a_bit(image_of(dataset), at)
    with pytest.raises(UserError, match=rf"{dataset.cases[0].id}\.npy: its SHA-256 is not"):
        store.load_image(dataset, dataset.cases[0])


def test_another_size_is_found(dataset):
    image_of(dataset).write_bytes(image_of(dataset).read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"\d+ bytes, \d+ by the manifest"):
        store.load_image(dataset, dataset.cases[0])


def test_images_that_changed_places_are_found(dataset):
    one, other = image_of(dataset), image_of(dataset, 1)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(UserError, match="SHA-256"):
        store.load_image(dataset, dataset.cases[0])


def test_a_file_is_hashed_once_and_again_after_a_change(dataset, monkeypatch):
    hashed = []
    digest = integrity.digest

    def noted(path):
        hashed.append(path.name)
        return digest(path)

    monkeypatch.setattr(integrity, "digest", noted)
    for _ in range(3):
        store.load_image(dataset, dataset.cases[0])
    integrity._known.cache_clear()  # as in another process
    store.load_image(dataset, dataset.cases[0])
    assert hashed == [image_of(dataset).name]
    os.utime(image_of(dataset), ns=(0, 0))
    store.load_image(dataset, dataset.cases[0])
    assert len(hashed) == 2


def test_a_folder_that_cannot_be_written_is_read_all_the_same(dataset, monkeypatch):
    (dataset.path / ".verified").mkdir()  # as good as read-only, also for root
    assert store.load_image(dataset, dataset.cases[0]).size


def test_an_edit_that_keeps_the_time_of_the_file_is_found(dataset):
    store.load_image(dataset, dataset.cases[0])
    status = image_of(dataset).stat()
    flip_a_bit(image_of(dataset))
    os.utime(image_of(dataset), ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match="SHA-256"):
        store.load_image(dataset, dataset.cases[0])


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_was_found_sound_is_not_written_elsewhere(dataset, tmp_path, kind):
    (tmp_path / "outside").write_text("")
    if kind == "pipe":
        os.mkfifo(dataset.path / ".verified")
    else:
        (dataset.path / ".verified").symlink_to(tmp_path / "outside")
    assert store.load_image(dataset, dataset.cases[0]).size
    assert (tmp_path / "outside").read_text() == ""


@pytest.mark.parametrize("place", ["file", "folder"])
def test_links_out_of_the_data_set_are_refused(dataset, tmp_path, place):
    outside = tmp_path / "outside.npy"
    linked = image_of(dataset) if place == "file" else image_of(dataset).parent
    linked.rename(outside)
    linked.symlink_to(outside)
    with pytest.raises(UserError, match="a link out of the data set"):
        store.load_image(dataset, dataset.cases[0])


def test_a_link_to_the_whole_data_set_is_fine(dataset, tmp_path):
    (tmp_path / "link").symlink_to(dataset.path)
    linked = store.read(tmp_path / "link")
    assert store.load_image(linked, linked.cases[0]).size


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "none"])
def test_a_pipe_is_refused_at_once(dataset, digests):
    image_of(dataset).unlink()
    os.mkfifo(image_of(dataset))
    case = dataset.cases[0]
    if not digests:
        forget_digests(dataset.path)
        case = store.read(dataset.path).cases[0]
    with pytest.raises(UserError, match="not a regular file"):
        store.load_image(dataset, case)


def test_an_archive_named_npy_is_refused(dataset):
    forget_digests(dataset.path)
    array = np.load(image_of(dataset))
    image_of(dataset).unlink()
    with zipfile.ZipFile(image_of(dataset), "w") as archive, archive.open("a.npy", "w") as file:
        np.save(file, array)
    with pytest.raises(UserError, match=rf"{dataset.cases[0].id}\.npy"):
        store.load_image(dataset, store.read(dataset.path).cases[0])


# The command.


def test_a_sound_data_set_passes(dataset, call_command):
    status, said, _ = call_command(verify.main, str(dataset.path))
    assert status == 0
    count = len(dataset.cases)
    assert said.splitlines()[-1] == f"{dataset.path}: {count} of {count} cases sound"


def test_every_bad_file_is_named(dataset, call_command):
    for case in dataset.cases:
        store.load_image(dataset, case)  # what was found sound before is not trusted
    stamp = image_of(dataset).stat().st_mtime_ns
    flip_a_bit(image_of(dataset))
    os.utime(image_of(dataset), ns=(stamp, stamp))
    image_of(dataset, 2).unlink()
    status, said, _ = call_command(verify.main, str(dataset.path))
    assert status == 1
    for index in (0, 2):
        assert f"{dataset.cases[index].id}.npy: " in said
    assert f"{len(dataset.cases) - 2} of {len(dataset.cases)} cases sound" in said


def test_data_without_digests_are_checked_by_shape(dataset, call_command):
    forget_digests(dataset.path)
    status, said, _ = call_command(verify.main, str(dataset.path))
    assert status == 0
    assert f"{len(dataset.cases)} by shape alone" in said
