"""What a config needs on devices that need not be at hand: memory, time, and data per second.

    python -m ssl3d.plan --config=rpl3d:DATASET --target=v5e:2x2 [--json] [--quick]
                         [--config.key=value ...]

The training step is compiled for the target and its operations are compared with the chip's peak
rates. Targets: TPU slices by topology (v4:2x2x1, v5e:2x2, v5p:2x2x1, v6e:2x2), GPUs (h100x8,
a100x8), CPU devices (cpu:8). Data need not be prepared: set config.plan.channels and
config.plan.classes where the preset does not know them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from ssl3d import cli


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError`."""
    parser = cli.Parser(prog="python -m ssl3d.plan", description=__doc__, epilog=cli.CONFIG_HELP)
    add = parser.add_argument
    add("--target", required=True, help="devices to plan for, e.g. v5e:2x2, h100x8, cpu:8")
    add("--json", action="store_true", help="one JSON object instead of text")
    add("--quick", action="store_true", help="compile once: no largest batch, remedies, validation")
    options, config = cli.parse_with_config(parser, arguments)
    from ssl3d.training import targets  # no JAX: it must find the environment

    target = targets.parse(options.target)
    targets.environment(target, os.environ)
    from ssl3d.training import planning

    found = planning.plan(config, target, options.quick)
    print(json.dumps(found._asdict()) if options.json else planning.text(found))


if __name__ == "__main__":
    cli.run(main)
