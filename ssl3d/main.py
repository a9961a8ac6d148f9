"""Trains anything: a proxy task or a downstream problem.

python -m ssl3d.main --config=rpl3d[:DATASET[,VARIANT]] [--workdir=DIR]
                     [--stop_at=STEP] [--config.key=value ...]

Run again with the same workdir, it goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl3d import cli


def main(arguments: Sequence[str]) -> int:
    parser = cli.Parser(prog="python -m ssl3d.main", description=__doc__, epilog=cli.CONFIG_HELP)
    parser.add_argument("--workdir", type=cli.path, help="the run's folder (default: runs/NAME)")
    parser.add_argument(
        "--stop_at", type=int, default=0, help="save and end after this many steps, to go on later"
    )
    options, config = cli.parse_with_config(parser, arguments)
    if options.stop_at < 0:
        parser.error(f"--stop_at={options.stop_at}: must be a step of the run")
    from ssl3d.training import loop, sharding  # JAX, which --help and --print_config do without

    sharding.start()
    workdir = options.workdir or Path("runs") / config.name
    with sharding.together():
        return 0 if loop.train(config, workdir, options.stop_at, _draw) else 1


def _draw(*arguments: Any) -> Any:
    from ssl3d.figures import inspection  # Matplotlib, which most runs do without

    return inspection.training_picture(*arguments)


if __name__ == "__main__":
    cli.run(main, at_once=True)
