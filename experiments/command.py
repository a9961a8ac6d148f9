"""A study as a command: runs the missing cells of its grid, and writes the report.

    python -m experiments.hippocampus --data=DIR --output=DIR [--estimate] [...]

Run the command again to continue; with --scheduler=ADDRESS it runs on a Dask cluster. The results
are results.csv, which grows with every cell, tables.md, tables.tex, figures/ and report.html in the
output.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ssl3d import cli, processes
from ssl3d.errors import UserError
from ssl3d.experiments.engine.study import METHODS, MODES, Study, with_settings, with_variant


def parser(study: Study) -> cli.Parser:
    """The options of a study's command."""
    about = f"{study.title}.\n\n{__doc__}"
    result = cli.Parser(prog=f"python -m ssl3d.study {study.name}", description=about)
    add = result.add_argument
    add("--data", type=cli.path, help="prepared data; of a phantom: default OUTPUT/data")
    folder, about = Path("runs") / study.name, "folder of the study (default: %(default)s)"
    add("--output", type=cli.path, default=folder, help=about)
    add("--pretrain-data", type=cli.path, help="another prepared data set to pretrain on")
    add("--source", type=cli.path, help="source files of the data, to score on their voxel grids")
    amounts = "amounts of labelled training subjects to compare, e.g. 5%%,32,all"
    names, labels = ",".join(study.methods), ",".join(study.labels).replace("%", "%%")
    about = f"methods to compare, of {', '.join(METHODS)} (default: {names})"
    add("--methods", type=_names, help=about)
    add("--fractions", type=_names, help=f"{amounts} (default: {labels})")
    about = "repetitions of every cell, each with other labels and weights (default: %(default)s)"
    add("--repetitions", type=int, default=study.repetitions, help=about)
    about = f"transfer modes of the pretrained encoders, of {', '.join(MODES)} "
    about += f"(default: {','.join(study.modes)})"
    add("--modes", type=_names, default=study.modes, help=about)
    about = f"pretraining seeds, assigned to the repetitions in turn (default: {study.encoders})"
    add("--encoders", type=int, metavar="N", help=about)
    about = f"random splits of the subjects, assigned likewise (default: {study.splits}; "
    about += "1: the data's)"
    add("--splits", type=int, metavar="N", help=about)
    about = "a setting of the study's file, e.g. finetuning.steps=800; repeatable"
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=about)
    add("--variant", choices=("paper", "original"), help="tasks and network as published")
    about = "print time and memory, run only a few steps; for GPUs, e.g. h100x8: by ssl3d.plan"
    add("--estimate", nargs="?", const="", metavar="GPUS", help=about)
    about = "number of runs at a time (default: one, or one per accelerator)"
    add("--workers", type=int, help=about)
    about = "run on the Dask cluster at this address"
    add("--scheduler", default="", metavar="ADDRESS", help=about)
    about_all = "pretrain on the images of validation and test cases too (without their labels)"
    add("--transductive", action="store_true", help=about_all)
    add("--report-only", action="store_true", help="only write the report of the stored results")
    return result


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))


def run(study: Study) -> NoReturn:
    """Runs the study with the options of the command line, and exits."""
    cli.run(lambda arguments: main(study, arguments))


def main(study: Study, arguments: Sequence[str]) -> int:
    """Runs the study's command; the exit status. Raises `UserError` and `RunError`."""
    options = parser(study).parse_args(arguments)
    check_counts(study, options)
    if options.workers is not None and (options.workers < 1 or options.scheduler):
        raise UserError("--workers: give a whole number from 1, and no --scheduler")
    if options.variant:
        study = with_variant(study, options.variant)
    with_settings(study, options.set)  # whose errors come first
    print(study.title, flush=True)  # before the seconds that the imports and the data take
    from ssl3d.experiments import protocol  # JAX and pandas, which --help does without

    try:
        with cli.disk_errors(options.output):
            if options.estimate:
                protocol.print_plan(study, options)
            else:
                protocol.carry_out(study, options, arguments)
    except processes.Stopped:
        print("stopped; run the same command again to continue", flush=True)
        return 1
    return 0


def check_counts(study: Study, options: argparse.Namespace) -> None:
    """Fills in the numbers of encoders and splits; `UserError` for more than repetitions."""
    if options.repetitions < 1:
        raise UserError("--repetitions: give a whole number from 1")
    for name in ("encoders", "splits"):
        if getattr(options, name) is None:  # fewer repetitions are the first of the study's
            setattr(options, name, getattr(study, name))
        elif not 1 <= getattr(options, name) <= options.repetitions:
            most = f"1 to {options.repetitions}, the repetitions"
            raise UserError(f"--{name}: give a whole number from {most}")
