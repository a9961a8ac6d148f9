import subprocess
import sys
from types import SimpleNamespace

from ssl3d import hardware


def test_peak_memory_is_that_of_the_process(request):
    code = "from ssl3d import hardware; print(hardware.peak_memory())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=request.config.rootpath
    )
    before = float(done.stdout)
    code = "import numpy; x = numpy.ones(25 * 2**20); " + code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=request.config.rootpath
    )
    assert 150 < float(done.stdout) - before < 300  # 200 MB of ones


def test_peak_memory_of_an_accelerator(monkeypatch):
    devices = [
        SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak * 2**20})
        for peak in (300, 700)
    ]
    monkeypatch.setattr(hardware.jax, "local_devices", lambda: devices)
    assert hardware.peak_memory() == 700
