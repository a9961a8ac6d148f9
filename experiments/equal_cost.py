"""Every proxy task for the same wall time: throughput, memory, and a linear probe.

python -m experiments.equal_cost --preset=hippocampus --data=DIR --output=DIR [--minutes=5]

A few steps of each task's shipped config are timed. Then the task is trained from scratch for so
many minutes, start, compilation and validation included, and probed on the test split with a share
of the labels. Run the command again to continue; the table is equal_cost.csv in the output.
"""

from collections.abc import Sequence

from ssl3d import cli


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError` and `RunError`."""
    parser = cli.Parser(prog="python -m ssl3d.study equal_cost", description=__doc__)
    add = parser.add_argument
    about = "prepared data; of a phantom: an existing folder"
    add("--data", type=cli.path, required=True, help=about)
    add("--output", type=cli.path, required=True, help="folder for the runs and the table")
    default = " (default: %(default)s)"
    add("--preset", default="phantom", help=f"preset of configs/datasets.py{default}")
    add("--rank", type=int, choices=(2, 3), default=3, help=f"rank of the networks{default}")
    add("--minutes", type=float, default=5.0, help=f"minutes for each task{default}")
    about = "tasks to compare, e.g. rpl,mae (default: every proxy task)"
    add("--tasks", type=lambda text: text.split(","), help=about)
    about = f"downstream problem of the linear probe{default}"
    add("--probe", default="segment", choices=("segment", "classify"), help=about)
    add("--labels", type=float, default=0.25, help=f"share of the labels for the probe{default}")
    options = parser.parse_args(arguments)
    from ssl3d.experiments.engine import equal_cost  # JAX and pandas, which --help does without

    print(equal_cost.compare(options).to_markdown(index=False, floatfmt=".3g"))


if __name__ == "__main__":
    cli.run(main)
