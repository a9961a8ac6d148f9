"""Public sets from a server of this test: broken connections, other bytes, hostile archives."""

import contextlib
import hashlib
import http.server
import io
import re
import shutil
import tarfile
import threading
import zipfile
from types import SimpleNamespace

import pytest

from ssl3d import fetch
from ssl3d.data import archives, public_sets
from ssl3d.data.layouts.recognise import recognise
from ssl3d.errors import RunError, UserError
from tests.support import source_files as files


class Served:
    """A file on a local server; `breaks_after` bytes of an answer the connection ends."""

    def __init__(self, name, data, ranges=True):
        self.data, self.ranges, self.breaks_after, self.requests = data, ranges, None, []
        served = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                start = int(wanted[1]) if wanted and served.ranges else 0
                served.requests.append(start)
                if start and start >= len(served.data):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    last = len(served.data) - 1
                    self.send_header("Content-Range", f"bytes {start}-{last}/{len(served.data)}")
                body = served.data[start:]
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: served.breaks_after])

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/{name}"

    @property
    def md5(self):
        return hashlib.md5(self.data).hexdigest()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def tarred(members):
    """The bytes of a tar of {name: bytes, or a changed `TarInfo`}."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name) if isinstance(data, bytes) else data
            info.size = len(data) if isinstance(data, bytes) else 0
            tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return file.getvalue()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with contextlib.ExitStack() as stack:

        def function(name, data, **options):
            server = Served(name, data, **options)
            stack.callback(server.close)
            return server

        yield function


def test_a_set_from_the_name_to_a_folder_that_prepare_recognises(
    serve, tmp_path, monkeypatch, capsys
):
    source = files.write_msd(tmp_path / "Task99_Made")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(source, "Task99_Made")
    server = serve("Task99_Made.tar", file.getvalue())
    entry = public_sets.SETS["Task04_Hippocampus"]._replace(
        name="Task99_Made", url=server.url, md5=server.md5, folder="Task99_Made"
    )
    monkeypatch.setitem(public_sets.SETS, "Task99_Made", entry)
    output = tmp_path / "sources"
    fetch.main(["task99_made", f"--output={output}"])
    said = capsys.readouterr().out
    assert "CC BY-SA 4.0" in said.splitlines()[0]
    assert said.splitlines()[1].startswith(f"python -m ssl3d.prepare --source={output}/Task99_Made")
    assert recognise(output / "Task99_Made").name == "msd"
    kept = [path.name for path in output.iterdir() if not path.name.startswith(".")]
    assert kept == ["Task99_Made"]  # without the archive
    fetch.main(["Task99_Made", f"--output={output}"])
    assert server.requests == [0]  # what is there is not fetched again


def test_a_broken_download_goes_on_where_it_ended(serve, tmp_path):
    server = serve("a.tar", bytes(range(256)) * 4000)
    server.breaks_after = 600_000
    with pytest.raises(RunError, match=r"a\.tar: the download failed .*MB are kept, run again"):
        archives.fetch(server.url, server.md5, tmp_path)
    server.breaks_after = None
    path = archives.fetch(server.url, server.md5, tmp_path)
    assert path.read_bytes() == server.data
    assert len(server.requests) == 2
    assert server.requests[1] > 0
    archives.fetch(server.url, server.md5, tmp_path)
    assert len(server.requests) == 2
    path.write_bytes(b"damaged")  # is repaired
    assert archives.fetch(server.url, server.md5, tmp_path).read_bytes() == server.data


@pytest.mark.parametrize("ranges", [True, False])
def test_a_damaged_part_is_dropped(serve, tmp_path, ranges):
    server = serve("a.tar", bytes(range(256)) * 40, ranges=ranges)
    (tmp_path / ".a.tar.partial").write_bytes(b"of another version" * 40)
    assert archives.fetch(server.url, server.md5, tmp_path).read_bytes() == server.data
    (tmp_path / "a.tar").unlink()
    (tmp_path / ".a.tar.partial").write_bytes(server.data + b"and more")
    assert archives.fetch(server.url, server.md5, tmp_path).read_bytes() == server.data


def test_another_checksum_is_refused_and_nothing_kept(serve, tmp_path):
    server = serve("a.tar", b"other bytes")
    with pytest.raises(UserError, match=r"has not the published checksum"):
        archives.fetch(server.url, "0" * 32, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_server_and_no_such_file(serve, tmp_path):
    server = serve("a.tar", b"x")
    server.close()
    with pytest.raises(RunError, match="the download failed"):
        archives.fetch(server.url, server.md5, tmp_path)


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(serve, tmp_path, monkeypatch):
    server = serve("a.tar", b"x" * 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(UserError, match=r"0\.00 GB are needed, the disk has .* make room"):
        archives.fetch(server.url, server.md5, tmp_path)


def link(kind, target):
    info = tarfile.TarInfo("set/link")
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../outside": b"x"}, "cannot be unpacked|outside"),
        ({"/tmp/ssl3d_outside": b"x", "other/x": b""}, "no folder set"),
        ({"set/link": link(tarfile.SYMTYPE, "/etc")}, "is a link"),
        ({"set/link": link(tarfile.LNKTYPE, "../../x")}, "is a link"),
        ({"set/fifo": link(tarfile.FIFOTYPE, "")}, "cannot be unpacked"),
        ({"elsewhere/x": b"x"}, "holds no folder set/"),
    ],
)
def test_hostile_tars_leave_nothing_behind(tmp_path, members, message):
    archive = tmp_path / "below" / "a.tar"
    archive.parent.mkdir()
    archive.write_bytes(tarred(members))
    with pytest.raises(UserError, match=message):
        archives.unpack(archive, archive.parent / "target", "set")
    assert [path.name for path in archive.parent.iterdir()] == ["a.tar"]
    assert [path.name for path in tmp_path.iterdir()] == ["below"]


def test_zips_inside_their_folder_alone_and_no_bombs(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("s0000/ct.nii.gz", b"x")
    archives.unpack(archive, tmp_path / "whole", "")
    assert (tmp_path / "whole/s0000/ct.nii.gz").read_bytes() == b"x"
    for name, data, message in (
        ("../up", b"x", "leads out of it"),
        ("/root", b"x", "leads out of it"),
        ("set/bomb", bytes(10**6), "far more than it can hold"),
    ):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr(name, data)
        with pytest.raises(UserError, match=message):
            archives.unpack(archive, tmp_path / "target", "")
    archive.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UserError, match="cannot be unpacked"):
        archives.unpack(archive, tmp_path / "target", "")
    assert not (tmp_path / "target").exists()


def test_the_list_names_licences_and_a_typing_error_the_nearest_set(capsys):
    fetch.main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(public_sets.SETS)
    assert all("CC BY" in line for line in lines)
    assert all(re.fullmatch(r"[0-9a-f]{32}", entry.md5) for entry in public_sets.SETS.values())
    with pytest.raises(UserError, match="did you mean Task04_Hippocampus"):
        fetch.main(["task04_hipocampus"])
