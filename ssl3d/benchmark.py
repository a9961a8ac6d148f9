"""How fast a config trains on this machine: the step, the loader, and both together.

    python -m ssl3d.benchmark --config=rpl3d[:DATASET] [--json] [--profile=DIR]
                              [--config.key=value ...]
    python -m ssl3d.benchmark --config=rpl3d[:DATASET] --suite [--config.key=value ...]

Volumes and patches per second of the compiled step on a batch that stays on the device, of the
loader alone, and of training as it runs; compile time, operations, share of the machine's peak,
memory. --suite measures every config of the folder, with the same data set and overrides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ssl3d import cli


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError` and `RunError`."""
    about = __doc__
    parser = cli.Parser(prog="python -m ssl3d.benchmark", description=about, epilog=cli.CONFIG_HELP)
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object per config instead of a table")
    add("--suite", action="store_true", help="every config of the folder")
    add("--profile", type=cli.path, help="folder for a trace, for TensorBoard or xprof")
    options, config = cli.parse_with_config(parser, arguments)
    if options.suite and options.profile:
        parser.error("--profile: is for one config; leave out --suite")
    if options.profile:
        cli.make_folder(options.profile)  # before minutes of work whose trace could not be written
    from ssl3d.training import benchmark, sharding  # JAX, which --print_config does without

    if options.suite:
        if not options.json:
            print(benchmark.HEAD)
        given = [argument for argument in arguments if argument != "--suite"]
        found = benchmark.suite(given, show=not options.json)
    else:
        sharding.start()
        found = [benchmark.benchmark(config, options.profile)]
        if not options.json:
            print(benchmark.HEAD, benchmark.line(found[0]), sep="\n")
    if options.json:
        print("\n".join(json.dumps(one._asdict()) for one in found))
    else:
        for note in dict.fromkeys(note for one in found for note in one.notes):
            print(note)


if __name__ == "__main__":
    cli.run(main)
