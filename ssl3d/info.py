"""What is installed, what it computes on, and what to mend, e.g. a GPU that JAX does not use.

python -m ssl3d.info
"""

from __future__ import annotations

from collections.abc import Sequence

from ssl3d import cli


def main(arguments: Sequence[str]) -> None:
    cli.Parser(prog="python -m ssl3d.info", description=__doc__).parse_args(arguments)
    from ssl3d.training import installation  # JAX, which --help does without

    print(installation.report())


if __name__ == "__main__":
    cli.run(main)
