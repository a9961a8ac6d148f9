"""Renders results/README.md, the page of findings, from the stored tables of the studies.

python -m experiments.findings [--results=DIR]
"""

from collections.abc import Sequence
from pathlib import Path

from experiments import hippocampus, hippocampus_levels, hippocampus_slices, phantom
from experiments.analysis import results_page
from ssl3d import cli

# The longest prefix of a folder's name that is a study's names the study.
STUDIES = tuple(m.STUDY for m in (hippocampus, hippocampus_levels, hippocampus_slices, phantom))


def main(arguments: Sequence[str]) -> int:
    """Runs the command; the exit status. Raises `UserError` where a stored table is missing."""
    parser = cli.Parser(prog="python -m experiments.findings", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: results")
    results_page.write(parser.parse_args(arguments).results, STUDIES)
    return 0


if __name__ == "__main__":
    cli.run(main)
