"""A made-up training in place of that of `experiments.engine.worker`: a function, a command."""

import json
import os
import sys
import time
import zlib
from pathlib import Path


def train(output, name, **versions):
    """Reads the job of OUTPUT/NAME, writes its result, and its name to OUTPUT/done.txt.

    The scores are a little higher with more labels and higher still after pretraining, and differ
    between cases and repetitions.
    """
    folder = output / name
    time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
    job = json.loads((folder / "job.json").read_text())
    with (output / "done.txt").open("a") as file:
        file.write(f"{name}\n")
    row = job["row"] | {
        "seconds": job["spent"] + 1,
        "device_seconds": 0.5,
        "peak_memory_mb": 100,
        "machine": "a stand-in",
        "finished": "2026-01-31",
        "diverged": "",
        "draws": 3,
        "code": "0.1",
        **versions,
    }
    result = {"row": row, "cases": [], "curve": []}
    if job["columns"]:
        level = 0.5 + row["training_cases"] / 100 + (0.1 if row["pretraining"] else 0)
        names = [name for name, _ in job["columns"]]
        for number in range(12):
            noise = zlib.crc32(f"{number} {row['repetition']}".encode()) % 1000 / 1e5
            own = zlib.crc32(f"{number} {row['cell']}".encode()) % 1000 / 1e6
            case = {"id": f"c{number:02d}", "subject": f"s{number:02d}"}
            result["cases"].append(case | dict.fromkeys(names, level + noise + own))
        mean = sum(case[names[0]] for case in result["cases"]) / len(result["cases"])
        row |= dict.fromkeys(names, round(mean, 5))
        row |= {"evaluation_seconds": 0.1, "reference_dice": 0.9}
        start = 0.2 if row["pretraining"] else 0
        result["curve"] = [
            [step, mean * min(1, step / row["steps"] + start)]
            for step in range(0, row["steps"] + 1, 2)
        ]
    else:
        row |= {"trained_score": 0.9, "untrained_score": 0.1, "chance": 0.04}
    if row.get("probe"):
        row |= {"step_seconds": 0.01, "validation_seconds": 0.01}
    failing = os.environ.get("STAND_IN_FAILS")
    if failing and failing in name:
        sys.exit("no luck")
    (folder / "result.partial").write_text(json.dumps(result))
    (folder / "result.partial").rename(folder / "result.json")


if __name__ == "__main__":
    train(Path(), sys.argv[1])
