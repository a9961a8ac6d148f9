"""The paper's studies and their reports, by name.

python -m ssl3d.study STUDY ...
"""

from __future__ import annotations

from collections.abc import Sequence

from ssl3d import cli, commands


def main(arguments: Sequence[str]) -> None:
    """Runs a study's command. Raises `UserError`."""
    about = "The paper's studies: methods compared over amounts of labels and repetitions."
    commands.call("ssl3d.experiments", arguments, f"{cli.Parser.prefix}study", "study", about)


if __name__ == "__main__":
    cli.run(main)
