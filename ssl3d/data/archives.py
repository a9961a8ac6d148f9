"""Archives from the web: downloaded once, resumed, checked, unpacked inside their folder.

pooch compares the checksum, and downloads again what does not fit it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ssl3d.errors import RunError, UserError

# Bytes at a time; of a connection that breaks, the last ones are lost.
_CHUNK = 1 << 16
# Seconds without an answer, and without a further byte.
_PATIENCE = (20, 60)
# Bytes that unpack from each byte of an archive, and files, at most.
_EXPANSION, _FILES = 20, 1_000_000


def fetch(url: str, md5: str, folder: Path) -> Path:
    """The archive at `url`, in `folder`; what is there and has the checksum is not downloaded.

    Raises:
      UserError: another checksum, or a disk that is too small.
      RunError: no connection, or one that broke: the next call goes on where it did.
      OSError: the disk is full.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    name = url.rpartition("/")[2]
    partial = folder / f".{name}.partial"
    # What an earlier attempt left may be damaged, or of another version of the file: once more.
    for _ in range(1 + partial.exists()):
        try:
            return Path(_retrieve(pooch, url, md5, folder, name, partial))
        except _OtherChecksum:
            continue
        except requests.RequestException as error:
            raise RunError(_broken(url, partial, error)) from None
    raise UserError(_other(url, md5))


class _OtherChecksum(Exception):
    pass


def _other(url: str, md5: str) -> str:
    return (
        f"{url}: what was downloaded has not the published checksum (MD5 {md5}) and was removed; "
        "run again, and if it remains so, the file was changed at its source"
    )


def _broken(url: str, partial: Path, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    kept = partial.stat().st_size if partial.exists() else 0
    return (
        f"{url}: the download failed ({reason[:200]}); {kept / 1e6:.1f} MB are kept, run again to "
        "go on"
    )


def _retrieve(pooch: Any, url: str, md5: str, folder: Path, name: str, partial: Path) -> str:
    def download(url: str, output: Any, _: Any) -> None:
        _download(url, partial)
        partial.replace(output)

    try:
        return pooch.retrieve(url, f"md5:{md5}", fname=name, path=folder, downloader=download)
    except ValueError as error:  # pooch's, which it raises after it has removed the file
        if "hash" not in str(error).lower():
            raise
        raise _OtherChecksum from None


def _download(url: str, partial: Path) -> None:
    """Downloads the rest of a file, all of it where the server cannot go on."""
    import requests

    partial.parent.mkdir(parents=True, exist_ok=True)
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {}
    with requests.get(url, stream=True, timeout=_PATIENCE, headers=headers) as answer:
        if have and answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # it was complete; else the checksum tells
        answer.raise_for_status()
        goes_on = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not goes_on:
            have = 0
        rest = int(answer.headers.get("Content-Length", 0))
        check_room(partial, rest)
        with (
            partial.open("ab" if have else "wb") as file,
            tqdm(
                total=have + rest or None,
                initial=have,
                desc="downloading",
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            for chunk in answer.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if rest and partial.stat().st_size < have + rest:
            raise requests.ConnectionError(
                f"the connection ended after {partial.stat().st_size} of {have + rest} bytes"
            )


def check_room(place: Path, needed: int) -> None:
    """Raises `UserError` where the disk of a file has no room for so many bytes more."""
    free = shutil.disk_usage(place.parent).free
    if needed > free:
        raise UserError(
            f"{place.parent}: {needed / 1e9:.2f} GB are needed, the disk has {free / 1e9:.2f} GB "
            "free; make room, or choose another --output"
        )


def unpack(archive: Path, target: Path, folder: str) -> None:
    """Unpacks an archive to `target`, which appears complete or not at all.

    Args:
      folder: of the archive, that becomes `target`; "" for all that is in it.

    Raises:
      UserError: damaged, without the folder, or with members that lead out of it, are links or
        devices, or are far more than an archive of its size holds.
    """
    check_room(target, archive.stat().st_size)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with _naming(archive):
            if zipfile.is_zipfile(archive):
                _unpack_zip(archive, partial)
            else:
                _unpack_tar(archive, partial)
        found = partial / folder
        if not found.is_dir():
            raise UserError(f"{archive}: holds no folder {folder}/; the archive has changed")
        os.replace(found, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _naming(archive: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise UserError(
            f"{archive}: cannot be unpacked ({str(error) or type(error).__name__}); remove it and "
            "fetch it again"
        ) from None


def _unpack_tar(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        count = total = 0
        for member in tar:
            count, total = count + 1, total + member.size
            _check_size(archive, count, total)
            if member.issym() or member.islnk():
                raise UserError(f"{archive}: {member.name} is a link; not unpacked")
            tar.extract(member, target, filter="data")  # refuses devices, and paths out of it


def _unpack_zip(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        members = zipped.infolist()
        _check_size(archive, len(members), sum(member.file_size for member in members))
        for member in members:
            place = os.path.normpath(target / member.filename)
            inside = Path(place).is_relative_to(target) and not member.filename.startswith("/")
            if not inside or stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{archive}: {member.filename} leads out of it; not unpacked")
            zipped.extract(member, target)


def _check_size(archive: Path, count: int, total: int) -> None:
    if total > _EXPANSION * archive.stat().st_size or count > _FILES:
        raise UserError(
            f"{archive}: unpacks to {count} files and {total / 1e9:.2f} GB, far more than it can "
            "hold; damaged or hostile"
        )
