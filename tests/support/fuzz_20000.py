"""Prints the cases and faults of every reader: python -m tests.support.fuzz_20000 [CASES]."""

from __future__ import annotations

import functools
import math
import sys
import tempfile
import time
from pathlib import Path

from tests.support import fuzz
from tests.support.fuzz_targets import targets


def main(count: int) -> int:
    """Fuzzes all targets alike; returns the number of faults."""
    all_cases = all_faults = 0
    with tempfile.TemporaryDirectory() as folder:
        found = targets(Path(folder))
        each = math.ceil(count / sum(target.share for target in found))
        for target in found:
            started = time.monotonic()
            reasons: list[str] = []
            fuzz.attack(target, each, functools.partial(_keep, reasons))
            faults = [reason for reason in reasons if reason]
            seconds = time.monotonic() - started
            line = f"{target.name:24} {len(reasons):6} cases {len(faults):4} faults"
            print(f"{line} {seconds:6.1f} s", flush=True)
            for reason in sorted(set(faults)):
                print(reason, file=sys.stderr)
            all_cases += len(reasons)
            all_faults += len(faults)
    print(f"{'all':24} {all_cases:6} cases {all_faults:4} faults")
    return all_faults


def _keep(reasons: list[str], content: bytes, reason: str) -> None:
    reasons.append(f"{content[:80]!r}\n{reason}" if reason else "")


if __name__ == "__main__":
    sys.exit(main(int((sys.argv[1:] or ["20000"])[0])) > 0)
