import importlib.metadata
import re

import ssl3d
from ssl3d import accelerators, info


def test_versions_devices_and_kernels_in_one_page(call_command, monkeypatch):
    monkeypatch.setenv("SSL3D_NATIVE", "0")
    monkeypatch.setattr(accelerators, "unused", lambda platform: [f"GPU not used by {platform}"])
    status, page, error = call_command(info.main)
    assert (status, error) == (0, "")
    *lines, last = page.splitlines()
    about = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in lines)
    assert about["ssl3d"].startswith(f"{ssl3d.__version__} in ")
    assert f"jax {importlib.metadata.version('jax')}, " in about["packages"]
    assert about["devices"] == "1 x cpu cpu"
    assert re.fullmatch(r"[\d.]+ GB", about["memory"])
    assert about["convolutions"].startswith(("oneDNN", "XLA's own"))
    assert about["weight gradient"] == "XLA's own (SSL3D_NATIVE=0)"
    assert last == "GPU not used by cpu"
