"""Every command of ssl3d by its name: `ssl3d COMMAND ...`, or `python -m ssl3d COMMAND ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ssl3d import cli, commands


def main() -> None:
    """The console script."""
    # As `python -m` does, for modules of one's own; last, so that they hide no library.
    sys.path.append(os.getcwd())
    cli.Parser.prefix = "ssl3d "
    cli.run(choose)


def choose(arguments: Sequence[str]) -> None:
    """Runs the command that is named. Raises `UserError`."""
    about = "Self-supervised pretraining on medical images."
    commands.call("ssl3d", arguments, "ssl3d", "command", about)


if __name__ == "__main__":
    main()
