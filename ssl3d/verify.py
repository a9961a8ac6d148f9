"""Checks every file of a prepared data set against the manifest: size and SHA-256.

    python -m ssl3d.verify DIR

The exit status is 1 if a file is missing, damaged or replaced. A run checks each file by itself at
its first read.
"""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from ssl3d import cli
from ssl3d.data import store


def main(arguments: Sequence[str]) -> int:
    """Runs the command; the exit status. Raises `UserError`: no prepared data set."""
    parser = cli.Parser(prog="python -m ssl3d.verify", description=__doc__)
    parser.add_argument("folder", type=cli.path, metavar="DIR", help="prepared data set")
    dataset = store.read(parser.parse_args(arguments).folder)
    wrong = 0
    checked = tqdm(store.verify(dataset), total=len(dataset.cases), unit="case", disable=None)
    for _, problem in checked:
        if problem:
            wrong += 1
            tqdm.write(problem)
    unknown = sum(not case.files for case in dataset.cases)
    print(
        f"{dataset.path}: {len(dataset.cases) - wrong} of {len(dataset.cases)} cases sound", end=""
    )
    print(f", {unknown} by shape alone (prepared by an earlier version)" if unknown else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    cli.run(main)
