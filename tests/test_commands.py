"""Commands by their names: `ssl3d COMMAND`, `ssl3d study NAME`."""

import os
import subprocess
import sys
import tomllib

import pytest

import ssl3d
from ssl3d import __main__, cli, commands, study

COMMANDS = sorted(commands.find("ssl3d"))
STUDIES = sorted(commands.find("ssl3d.experiments"))
LIBRARIES = ("jax", "flax", "orbax.checkpoint", "grain", "pandas", "matplotlib", "distributed")


def test_what_runs_as_a_program_is_a_command():
    assert {"main", "prepare", "evaluate", "study", "info"} <= set(COMMANDS)
    assert not {"cli", "commands", "atomic", "tasks", "configs"} & set(COMMANDS)
    assert {"brats", "phantom", "equal_cost"} <= set(STUDIES)
    assert not {"command", "protocol", "engine"} & set(STUDIES)
    assert all(commands.find("ssl3d.experiments").values())


@pytest.mark.parametrize("name", [*COMMANDS, *(f"study {name}" for name in STUDIES)])
def test_help_imports_no_large_library(as_typed, monkeypatch, name):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    done = as_typed("ssl3d", *name.split(), "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: ssl3d {name}")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "ssl3d.cli" in imported
    assert not imported & set(LIBRARIES)


def test_help_lists_the_commands_with_what_they_do(as_typed):
    done = as_typed("ssl3d", "--help")
    assert done.returncode == 0
    for name, line in commands.find("ssl3d").items():
        assert f"  {name:9}  {line}\n" in done.stdout
    assert as_typed("ssl3d", "--version").stdout == f"ssl3d {ssl3d.__version__}\n"


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (__main__.choose, ["mian"], "no command 'mian'; the nearest is main"),
        (__main__.choose, [], "give a command (see ssl3d --help)"),
        (__main__.choose, ["--hlep"], "the nearest is --help (see ssl3d --help)"),
        (study.main, ["brast"], "no study 'brast'; the nearest is brats"),
    ],
)
def test_a_wrong_name_is_one_line(call_command, main, arguments, message):
    status, out, error = call_command(main, *arguments)
    assert (status, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_a_command_gets_its_arguments_and_its_status(as_typed, tmp_path):
    done = as_typed("ssl3d", "verify", str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path}: no prepared data set here" in done.stderr
    done = as_typed("ssl3d", "study", "brats", "--repetitions=0")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--repetitions" in done.stderr


def test_the_console_script_finds_modules_of_ones_own(tmp_path):
    """As `python -m` does, whose folder is the first on the path."""
    with open(f"{os.path.dirname(cli.__file__)}/../pyproject.toml", "rb") as file:
        module, _, function = tomllib.load(file)["project"]["scripts"]["ssl3d"].partition(":")
    script = tmp_path / "bin" / "ssl3d"
    script.parent.mkdir()
    script.write_text(f"import {module}\n{module}.{function}()\n")
    (tmp_path / "my_config.py").write_text(
        "import mine\nfrom ssl3d.configs import rpl3d\n\n"
        "def get_config(arg='phantom'):\n"
        "    config = rpl3d.get_config(arg)\n    config.steps = mine.STEPS\n    return config\n"
    )
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.py").write_text("STEPS = 77\n")
    done = subprocess.run(
        [sys.executable, script, "main", "--config=../my_config.py", "--print_config"],
        cwd=own,
        env=os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(cli.__file__))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "config.steps = 77\n" in done.stdout
