"""Kills runs at random moments, goes on with each, and compares them with undisturbed ones.

python -m tests.support.kill_runs FOLDER [COUNT]

COUNT (50) times SIGKILL, half of them in rpl3d and half in segment3d, with averaged parameters and
a checkpoint after every step. A run is killed at a random time after its start or its next step,
again and again; at last it ends by itself. The weights must be those of the undisturbed run,
and `metrics.jsonl` must have the same lines. Prints a line per kill and the number of runs that
passed; the exit status is 1 if one did not.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from ssl3d.training import run_log
from tests.support.datasets import write_dataset
from tests.support.tiny_configs import tiny_arguments

ROOT = Path(__file__).parents[2]
STEPS, KILLS_PER_RUN = 60, 5
CONFIGS = ("rpl3d", "segment3d")
TIMINGS = ("volumes_per_second", "data_wait", "seconds")


def start(name, data, workdir):
    every = {"checkpoint_every": 1, "validate_every": 20, "log_every": 7, "steps": STEPS}
    options = tiny_arguments(name, data, optimizer__ema=0.9, **every)
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ssl3d.main", *options, f"--workdir={workdir}"],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def results(workdir):
    """Bytes of all exported weights, and the metrics without times."""
    weights = {
        str(file.relative_to(workdir)): file.read_bytes()
        for file in sorted(workdir.rglob("*.safetensors"))
    }
    lines = [
        {key: value for key, value in line.items() if key not in TIMINGS}
        for line in run_log.read_metrics(workdir)
    ]
    return weights, lines


def last_step(workdir):
    return max(
        (int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdecimal()), default=0
    )


def kill_once(rng, name, data, workdir):
    """Kills a run while it starts, or some steps later; whether it was still going on."""
    begun, starting = last_step(workdir), rng.random() < 0.15
    process = start(name, data, workdir)
    wanted = begun + (0 if starting else rng.randint(1, 10))
    while process.poll() is None and last_step(workdir) < wanted:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 20 if starting else 0.5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    print(f"  {name}: killed after step {last_step(workdir)}", flush=True)
    return process.returncode == -signal.SIGKILL


def main(folder, count=50, seed=0):
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    data = write_dataset(folder / "data", rank=3, channels=2).path
    expected = {}
    for name in CONFIGS:
        assert start(name, data, folder / name).wait() == 0
        expected[name] = results(folder / name)
    killed = passed = runs = 0
    while killed < count:
        name = CONFIGS[runs % len(CONFIGS)]
        workdir = folder / f"{name}-{runs}"
        runs += 1
        for _ in range(min(KILLS_PER_RUN, count - killed)):
            if not kill_once(rng, name, data, workdir):
                break
            killed += 1
        ended = start(name, data, workdir).wait() == 0
        same = ended and results(workdir) == expected[name]
        passed += same
        print(f"{workdir.name}: {'same' if same else 'DIFFERENT'}", flush=True)
    print(f"{killed} kills in {runs} runs; {passed} of {runs} as undisturbed", flush=True)
    return 0 if passed == runs else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
