"""The commands of a package, found in its folder: the modules that run as programs.

A new file with an `if __name__ == "__main__":` is a command; there is no list to extend.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import ssl3d
from ssl3d import cli

_MAIN = 'if __name__ == "__main__":'


def find(package: str) -> dict[str, str]:
    """The first line of the docstring by name of the command; none of them is imported."""
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("[!_]*.py"))]
    sources = {file.stem: file.read_text(encoding="utf-8") for file in files}
    return {
        name: (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        for name, source in sources.items()
        if f"\n{_MAIN}\n" in source
    }


def call(package: str, arguments: Sequence[str], prog: str, kind: str, about: str) -> None:
    """Runs the command that the first argument names, as `python -m PACKAGE.COMMAND` would.

    Args:
      prog: what was typed before the command's name.
      kind: what the commands are called.
      about: for the help, which lists the commands.

    Raises:
      UserError: no such command; the nearest one is named.
    """
    known = find(package)
    width = max(map(len, known))
    listed = "\n".join(f"  {name:{width}}  {line}" for name, line in known.items())
    parser = cli.Parser(
        prog=prog,
        usage=f"{prog} {kind.upper()} ...",
        description=f"{about}\n\n{listed}\n\n{prog} {kind.upper()} --help explains each.",
    )
    parser.add_argument("--version", action="version", version=f"ssl3d {ssl3d.__version__}")
    name = (*arguments, "")[0]
    if not name or name.startswith("-"):
        parser.parse_args(arguments)
        parser.error(f"give a {kind}")
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        parser.error(f"no {kind} {name!r}; the nearest is {nearest}")
    sys.argv[1:] = arguments[1:]
    runpy.run_module(f"{package}.{name}", run_name="__main__", alter_sys=True)
