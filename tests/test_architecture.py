"""The shape of the code: layers, lengths, style and types, as CONTRIBUTING.md asks for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ssl3d import commands

ROOT = Path(__file__).parents[1]
PACKAGES = ("ssl3d", "configs", "experiments")
COMMANDS = commands.find("ssl3d")


def modules(*folders):
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def lines(file):
    return len(file.read_text().splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_options_one_call_and_an_exit(name):
    assert lines(ROOT / "ssl3d" / f"{name}.py") <= 60


def test_a_file_can_be_read_in_one_sitting():
    long = {file.name: lines(file) for file in modules(*PACKAGES, "tests") if lines(file) > 400}
    assert not long


def test_a_test_imports_no_other_test():
    for file in modules("tests"):
        imports = [
            node
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom)
        ]
        names = [name for node in imports for name in (node.module or "").split(".")]
        assert not [name for name in names if name.startswith("test_")], file


LAYERS = "import sys, importlinter.cli as cli; sys.exit(cli.lint_imports(no_cache=True))"


@pytest.mark.parametrize(
    "arguments",
    [("-m", "ruff", "check"), ("-m", "ruff", "format", "--check"), ("-m", "mypy"), ("-c", LAYERS)],
    ids=["lint", "format", "types", "imports run downhill and in no circle"],
)
def test_the_checker_finds_nothing(arguments):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
