"""Downloads a public data set: checked, resumed after an interruption, unpacked.

    python -m ssl3d.fetch                        the sets, with size and licence
    python -m ssl3d.fetch Task04_Hippocampus     -> sources/Task04_Hippocampus

Prints the licence before, and the command that prepares the data after the download.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl3d import cli, processes
from ssl3d.data import archives, public_sets


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError`, `RunError`."""
    parser = cli.Parser(prog="python -m ssl3d.fetch", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="data set (default: list all)")
    parser.add_argument(
        "--output",
        type=cli.path,
        default=Path("sources"),
        help="folder of the sets (default: sources)",
    )
    options = parser.parse_args(arguments)
    if options.name is None:
        print(public_sets.table())
        return
    entry = public_sets.find(options.name)
    target = options.output / entry.name
    print(f"{entry.name}: {entry.about}; {entry.licence}, {entry.terms}", flush=True)
    claimed = processes.claimed(options.output, "--output", "fetches here")
    with cli.disk_errors(options.output), claimed:
        if not target.exists():
            archive = archives.fetch(entry.url, entry.md5, options.output)
            archives.unpack(archive, target, entry.folder)
            archive.unlink()
    command = f"python -m ssl3d.prepare --source={target} --output=data/{entry.name}"
    print(" ".join(filter(None, [command, entry.prepare])))


if __name__ == "__main__":
    cli.run(main)
