"""Renders results/README.md, the page of findings, from the stored tables of the studies.

python -m experiments.findings [--results=DIR]
"""

from collections.abc import Sequence
from pathlib import Path

from ssl3d import cli
from ssl3d.atomic import atomic_write
from ssl3d.experiments import (
    abdomen,
    hippocampus,
    hippocampus_levels,
    hippocampus_levels_splits,
    hippocampus_slices,
    hippocampus_splits,
    phantom,
)

# Of several encoders, and of one; see `page.render`.
PLANNED = tuple(m.STUDY for m in (hippocampus_levels_splits, abdomen, hippocampus_splits))
STUDIES = tuple(m.STUDY for m in (hippocampus, hippocampus_levels, hippocampus_slices, phantom))


def main(arguments: Sequence[str]) -> int:
    """Runs the command; the exit status. Raises `UserError` where a stored table is missing."""
    parser = cli.Parser(prog="python -m ssl3d.study findings", description=__doc__)
    default = Path("results")
    parser.add_argument("--results", type=cli.path, default=default, help="default: %(default)s")
    file = parser.parse_args(arguments).results / "README.md"
    from ssl3d.experiments.analysis import page  # pandas, which --help does without

    text = page.render(file.parent, PLANNED, STUDIES)
    with atomic_write(file) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"page: {file}")
    return 0


if __name__ == "__main__":
    cli.run(main)
