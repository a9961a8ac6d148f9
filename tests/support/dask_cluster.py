"""A Dask scheduler and workers, each in a process of its own."""

import contextlib
import os
import subprocess
import sys
import time

from ssl3d.experiments.engine.grid import ROOT


class Cluster:
    """Its `address`, and the processes of its `workers`."""

    def __init__(self, folder, **environment):
        self.folder = folder
        self.environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        file = folder / "scheduler.json"
        options = ["--host=127.0.0.1", "--port=0", "--no-dashboard", f"--scheduler-file={file}"]
        self.scheduler = self._start("scheduler", *options)
        while not file.exists():
            assert self.scheduler.poll() is None
            time.sleep(0.05)
        log = folder / "scheduler.txt"
        while "Scheduler at:" not in log.read_text():
            time.sleep(0.05)
        self.address = log.read_text().split("Scheduler at:")[1].split()[0]
        self.workers = []

    def add_worker(self, *options):
        """Starts a worker with one thread."""
        own = [self.address, "--nthreads=1", "--no-dashboard", "--no-nanny", *options]
        self.workers.append(self._start("worker", *own))

    def _start(self, kind, *options):
        with (self.folder / f"{kind}.txt").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{kind}", *options],
                cwd=self.folder,  # not the repository, as on a cluster
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


@contextlib.contextmanager
def started(folder, workers=2, **environment):
    """A cluster in the block."""
    folder.mkdir()
    cluster = Cluster(folder, **environment)
    try:
        for _ in range(workers):
            cluster.add_worker()
        yield cluster
    finally:
        for process in [*cluster.workers, cluster.scheduler]:
            process.kill()
            process.wait()
