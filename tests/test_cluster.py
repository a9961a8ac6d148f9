"""Dask clusters; their work: data/preparation/test_workers.py, experiments/engine/test_runs.py."""

import gc
import os
import time
from types import SimpleNamespace

import pytest

from ssl3d import cluster
from ssl3d.errors import UserError
from tests.support import dask_cluster


@pytest.fixture
def collected():
    """A client that could not start is closed when it is collected.

    Amid the start of another one, Dask waits for itself.
    """
    yield
    gc.collect()


@pytest.mark.parametrize(
    ("accelerators", "workers", "expected"),
    [(0, None, [None]), (0, 2, [None, None]), (2, None, ["0", "1"]), (2, 3, ["0", "0", "1"])],
)
def test_local_workers_share_the_accelerators(monkeypatch, accelerators, workers, expected):
    monkeypatch.setattr(cluster, "count_accelerators", lambda: accelerators)
    with cluster.connect("", workers) as client:
        found = [
            client.submit(cluster.environment, workers=[address], pure=False).result()
            for address in client.nthreads()
        ]
    devices = [one.get("JAX_CUDA_VISIBLE_DEVICES") for one in found]
    assert sorted(devices, key=str) == expected


@pytest.mark.parametrize(
    ("accelerators", "workers", "expected"),
    [
        (0, 1, [set()]),
        (0, 2, [{3, 6}, {4}]),
        (0, 5, [{3}, {3}, {4}, {4}, {6}]),
        (2, 2, [set(), set()]),
    ],
)
def test_local_workers_share_the_cores(monkeypatch, accelerators, workers, expected):
    monkeypatch.setattr(cluster, "count_accelerators", lambda: accelerators)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 3, 6}, raising=False)
    with cluster.connect("", workers) as client:
        found = [
            client.submit(cluster.cores, workers=[address], pure=False).result()
            for address in client.nthreads()
        ]
    assert sorted(found, key=sorted) == expected


def test_accelerators_are_counted_apart(monkeypatch):
    """JAX in this process has seen none of them yet, and keeps none."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    cluster.count_accelerators.cache_clear()
    assert cluster.count_accelerators() == 0
    ended = SimpleNamespace(returncode=0, stdout="a warning\n4\n")
    monkeypatch.setattr(cluster.subprocess, "run", lambda *_, **__: ended)
    cluster.count_accelerators.cache_clear()
    assert cluster.count_accelerators() == 4
    cluster.count_accelerators.cache_clear()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nothing://at-all"])
@pytest.mark.usefixtures("collected")
def test_no_scheduler_is_one_line(monkeypatch, address):
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    with pytest.raises(UserError, match=rf"^--scheduler={address}: no Dask scheduler here"):
        cluster.connect(address).__enter__()


def test_a_scheduler_that_dies_is_one_line(tmp_path, capfd):
    with (
        dask_cluster.started(tmp_path / "cluster", workers=1) as elsewhere,
        cluster.connect(elsewhere.address) as client,
    ):
        future = client.submit(time.sleep, 60)
        time.sleep(0.5)
        elsewhere.scheduler.kill()
        with pytest.raises(UserError, match="the Dask scheduler is gone"):
            cluster.result(future)
    assert "Traceback" not in capfd.readouterr().err
