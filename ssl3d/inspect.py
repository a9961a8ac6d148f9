"""Pictures of what the network is shown: the image, its patches, and its inputs.

python -m ssl3d.inspect --config=rpl3d[:DATASET[,VARIANT]] [--output=FILE.png]
                        [--cases=N] [--split=SPLIT] [--config.key=value ...]
python -m ssl3d.inspect --config=... --audit [--network]

--audit trains on noise in the shape of the data set, where nothing is to be learned: accuracy above
chance is a shortcut, and the exit status 1. By default the model is linear, with --network it is
the config's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl3d import cli
from ssl3d.data import store


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Raises `UserError`."""
    parser = cli.Parser(prog="python -m ssl3d.inspect", description=__doc__, epilog=cli.CONFIG_HELP)
    add = parser.add_argument
    add("--output", type=cli.path, help="PNG file (default: inspect_NAME.png)")
    add("--cases", type=int, default=2, help="number of cases (default: 2)")
    add(
        "--split", default="train", choices=store.SPLITS, help="split of the cases (default: train)"
    )
    add("--audit", action="store_true", help="look for shortcuts on noise, instead of pictures")
    add("--network", action="store_true", help="audit with the config's network")
    options, config = cli.parse_with_config(parser, arguments)
    if options.network and not options.audit:
        parser.error("--network: is for --audit; add it, or leave this out")
    if options.cases < 1:
        parser.error(f"--cases={options.cases}: must be 1 or more")
    # These load jax, which --print_config does without.
    if options.audit:
        from ssl3d.training import audit

        result = audit.audit(config, options.network)
        print(f"{config.name}: {result.verdict}")
        return 0 if result.passed else 1
    from ssl3d.figures import inspection

    output = options.output or Path(f"inspect_{config.name}.png")
    cli.check_file(output, "FILE.png")
    with cli.disk_errors(output):
        inspection.inspect(config, options.split, options.cases, output)
    print(output)
    return 0


if __name__ == "__main__":
    cli.run(main)
