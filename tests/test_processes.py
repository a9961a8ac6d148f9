"""Processes that are watched and ended; locks of folders: training/test_run_folder.py."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ssl3d import processes

ROOT = Path(__file__).parents[1]

SAVING = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(3)))
print(flush=True)
time.sleep(60)
"""


def saving():
    """A process that takes a moment to end, with status 3."""
    process = subprocess.Popen([sys.executable, "-c", SAVING], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_a_group_ends_with_time_to_save():
    ended, threads = [], []
    for group in ("a", "a", "b"):
        threads.append(
            threading.Thread(target=lambda g=group: ended.append(processes.watch(saving(), g)))
        )
        threads[-1].start()
    while sum(len(processes._watched.get(group) or ()) for group in ("a", "b")) < 3:
        time.sleep(0.01)
    asyncio.run(processes.end("a"))
    for thread in threads[:2]:
        thread.join(10)
    assert ended == [3, 3]
    assert processes.watch(saving(), "a") == 3  # one that came too late
    asyncio.run(processes.end("b"))


def test_a_group_without_grace_is_killed_at_once():
    ended = []
    thread = threading.Thread(target=lambda: ended.append(processes.watch(saving(), "c")))
    thread.start()
    while not processes._watched.get("c"):
        time.sleep(0.01)
    asyncio.run(processes.end("c", grace=0))
    thread.join(10)
    assert ended == [-signal.SIGKILL]


def test_the_input_of_a_process_closes_when_the_one_that_started_it_is_killed(tmp_path):
    (tmp_path / "waits.py").write_text("import sys; print('begun', flush=True); sys.stdin.read()")
    code = """
import os, pathlib, signal
from ssl3d import processes
with open("log.txt", "w") as log:
    started = processes.start("waits", "", pathlib.Path(), log, {})
while not pathlib.Path("log.txt").read_text():
    pass
print(started.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    killed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    pid, latest = int(killed.stdout), time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < latest
        time.sleep(0.05)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are assigned on Linux")
def test_a_process_runs_on_its_cores_alone(tmp_path):
    core = max(os.sched_getaffinity(0))
    code = "import os, sys\nsys.stdin.readline()\nprint(os.sched_getaffinity(0))"
    (tmp_path / "asks.py").write_text(code)
    with (tmp_path / "log.txt").open("w") as log:
        started = processes.start("asks", "", tmp_path, log, {}, {core})
    started.communicate(b"\n", timeout=60)
    assert (tmp_path / "log.txt").read_text().strip() == str({core})
