"""A prepared collection of many cases: time and memory of its manifest and of a run's start.

python -m tests.support.large_collection FOLDER [CASES]

Writes the manifest of CASES (100,000) volumes as UK Biobank would have them, in the form of its
size and as the JSON list of smaller collections, without images. Prints what each step takes:
seconds, and the memory by which the process grows.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ssl3d.data import store
from ssl3d.data.integrity import Digest
from tests.support.steps_timed import load


def collection(folder, count):
    """A data set of `count` cases with all that a preparation notes, and no arrays."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(count):
        name = f"ukb_{number:07d}_20252_2_0"
        shape = tuple(int(n) for n in rng.integers(140, 190, 3))
        affine = np.eye(4)
        affine[:3, 3] = rng.normal(0, 50, 3)
        cases.append(
            store.Case(
                id=name,
                subject=f"{number // 2:07d}",
                split=("train", "val", "test", "train", "train")[number // 2 % 5],
                shape=shape,
                channels=2,
                spacing=(1.0, 1.0, 1.0),
                affine=tuple(map(tuple, affine.tolist())),
                order=number // 2,
                foreground=tuple((3, n - 3) for n in shape),
                files={"image": Digest(4 * int(np.prod(shape)) + 128, rng.bytes(32).hex())},
                extra={
                    "checksum": rng.bytes(32).hex(),
                    "content": rng.bytes(32).hex(),
                    "files": [[f"{name}/T1/T1_brain.nii.gz"], [f"{name}/T2_FLAIR/T2_brain.nii.gz"]],
                    "geometry": {"affine": affine.tolist(), "crop": [[9, 170]] * 3},
                    "intensity": {"low": rng.normal(size=2).tolist(), "scale": [0.1, 0.2]},
                    "notes": [],
                },
            )
        )
    about = {"rank": 3, "modalities": ("T1", "FLAIR"), "classes": (), "splits_by": "subject"}
    return store.Dataset(path=folder, name="large", cases=tuple(cases), extra={}, **about)


def memory():
    """MB that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(folder):
    """Step -> (seconds, MB) of opening the manifest and of a run's start."""
    from ssl3d import tasks
    from ssl3d.configs import rotation3d
    from ssl3d.training import cases as training_cases
    from ssl3d.training import crop_fit, problem

    found, kept = {}, []

    def note(step, function):
        before, begun = memory(), time.perf_counter()
        kept.append(function())
        found[step] = (time.perf_counter() - begun, memory() - before)
        return kept[-1]

    dataset = note("open", lambda: store.read(folder))
    config = rotation3d.get_config("ukb")
    config.data.path = str(folder)
    train, val = note("choose cases", lambda: training_cases.choose_cases(config, dataset))
    fitted = note("fit the crop", lambda: crop_fit.fit_collection(config, train, val))
    used = fitted.train_cases, fitted.validation_cases, fitted.left_out
    note("fingerprint", lambda: training_cases.fingerprint(config, dataset, *used))
    given = problem.Problem(config, dataset, *used[:2], kept[-1], used[2])
    note("scored cases", lambda: problem.scored_cases(given))
    store.load_image = lambda dataset, case: np.zeros((*case.shape, case.channels), np.float16)
    task = tasks.build(config)
    note("first batch", lambda: next(problem.train_batches(given._replace(task=task), 0)))
    return found


def main(folder, count=100_000):
    large = collection(folder / "table", count)
    begun = time.perf_counter()
    store.write_manifest(large)
    print(f"{count} cases written in {time.perf_counter() - begun:.1f} s")
    store.TABLE = count + 1
    store.write_manifest(dataclasses.replace(large, path=folder / "list"))
    del large
    for form in ("table", "list"):
        size = sum(path.stat().st_size for path in (folder / form).iterdir()) / 2**20
        print(f"{form}: {size:.0f} MB; {load()}")
        command = [sys.executable, "-m", __spec__.name, str(folder / form), "--measure"]
        said = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        found = json.loads(said.splitlines()[-1])
        for step, (seconds, megabytes) in found.items():
            print(f"  {step}: {seconds:.2f} s, {megabytes:.0f} MB")
    return 0


if __name__ == "__main__":
    if sys.argv[-1] == "--measure":
        print(json.dumps(measure(Path(sys.argv[1]))))
    else:
        sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
