import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

from experiments.engine import claims


def test_one_holder_at_a_time(tmp_path):
    job = tmp_path / "job"
    claim = claims.take(job)
    assert claim is not None
    assert claims.take(job) is None
    claims.give_back(claim)
    again = claims.take(job)
    assert again is not None
    assert again.path != claim.path
    assert claims.take(job) is None


def _race(folder, ready, won):
    ready.wait()
    for number in range(40):
        if claims.take(folder / str(number)):
            won.put(number)
    ready.wait()  # whoever is gone has lost his claims


def test_processes_that_race_never_share(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, won = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, ready, won)) for _ in range(2)]
    for racer in racers:
        racer.start()
    taken = [won.get(timeout=20) for _ in range(40)]
    for racer in racers:
        racer.join()
    assert sorted(taken) == list(range(40))
    assert won.empty()


def _dead_holder(folder):
    """A claim whose process has gone without a word."""
    code = "import sys, pathlib; from experiments.engine import claims; "
    code += "claims.take(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_a_dead_process_is_followed_and_its_time_counted(tmp_path, in_repository):
    _dead_holder(tmp_path)
    file = tmp_path / "claim.0"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"started": about["started"] - 100}))
    claim = claims.take(tmp_path)
    assert claim is not None
    assert 99 < claim.spent < 110
    assert claims.take(tmp_path) is None


def test_a_stale_claim_is_taken_over_once(tmp_path, in_repository):
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "claim.0").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0}))
        assert claims.take(folder) is None  # elsewhere, and its heart beats
        old = time.time() - claims.STALE - 5
        os.utime(folder / "claim.0", (old, old))
        barrier, taken = threading.Barrier(4), []

        def contend(folder=folder, barrier=barrier, taken=taken):
            barrier.wait()
            claim = claims.take(folder)
            if claim:
                taken.append(claim)

        threads = [threading.Thread(target=contend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1


def test_a_claim_just_made_but_not_yet_written_counts(tmp_path):
    (tmp_path / "claim.0").touch()
    assert claims.take(tmp_path) is None


def test_heartbeat_and_its_end(tmp_path):
    claim = claims.take(tmp_path)
    os.utime(claim.path, (1, 1))
    with claims.kept_alive(claim, beat=0.02):
        time.sleep(0.3)
        assert claim.path.stat().st_mtime > time.time() - 10
        assert claims.take(tmp_path) is None
    assert claims.take(tmp_path) is not None


def test_who_was_asleep_notices_the_loss(tmp_path):
    claim, lost = claims.take(tmp_path), threading.Event()
    with claims.kept_alive(claim, lost.set, beat=0.02):
        (tmp_path / "claim.1").write_text("{}")
        assert lost.wait(5)
    assert claims.is_lost(claim)
