"""Pictures of what the network is shown: the image, its patches, and its inputs.

python -m ssl3d.inspect --config=configs/rpl3d.py[:DATASET[,VARIANT]] [--output=FILE.png]
                        [--cases=N] [--split=SPLIT] [--config.key=value ...]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl3d import cli
from ssl3d.data import store


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError`."""
    parser = cli.Parser(prog="python -m ssl3d.inspect", description=__doc__, epilog=cli.CONFIG_HELP)
    add = parser.add_argument
    add("--output", type=Path, help="PNG file (default: inspect_NAME.png)")
    add("--cases", type=int, default=2, help="number of cases (default: 2)")
    add("--split", default="train", choices=store.SPLITS, help="default: train")
    options, config = cli.parse_with_config(parser, arguments)
    from ssl3d.figures import inspection  # loads jax, which --print_config does without

    if options.cases < 1:
        parser.error(f"--cases={options.cases}: must be 1 or more")
    output = options.output or Path(f"inspect_{config.name}.png")
    with cli.disk_errors(output):
        inspection.inspect(config, options.split, options.cases, output)
    print(output)


if __name__ == "__main__":
    cli.run(main)
