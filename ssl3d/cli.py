"""What the commands share: options, configs from files, errors in one line, exit status.

Exit status: 0 success, 2 a usage or input error (one plain line on stderr), 1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TextIO

import ml_collections
from absl import flags
from ml_collections import config_flags

from ssl3d import bounds
from ssl3d.errors import RunError, UserError

# What is typed before the name of a command.
_AS_MODULE = "python -m ssl3d."


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` and accepts no abbreviated options.

    Attributes:
      prefix: stands in for "python -m ssl3d." in the help; the console script has its own.
    """

    prefix: ClassVar[str] = _AS_MODULE

    def __init__(self, prog: str, **kwargs: Any) -> None:
        kwargs["prog"] = prog.replace(_AS_MODULE, self.prefix)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Before a required option is missed for which another name was typed.
        for argument in takewhile("--".__ne__, args or ()):
            self._check_name(argument)
        return super().parse_known_args(args, namespace)

    def _check_name(self, argument: str) -> None:
        name = argument.partition("=")[0]
        known = name in self._option_string_actions or name == "--config"
        if known or not re.fullmatch(r"--\w[\w-]*", name):  # not --config.KEY
            return
        near = difflib.get_close_matches(name, [*self._option_string_actions, "--config"], n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        self.error(f"unrecognized argument {argument}{hint}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def run(main: Callable[[Sequence[str]], int | None], at_once: bool = False) -> NoReturn:
    """Calls `main` with the command-line arguments and exits with its status.

    Args:
      at_once: after a `RunError` end the process without its exit handlers, in which the threads of
        libraries would report the same failure again.
    """
    try:
        with disk_errors():
            status: int | str | None
            try:
                status = main(sys.argv[1:]) or 0
            except SystemExit as end:  # --help, --print_config
                status = end.code
            sys.stdout.flush()
            sys.exit(status)
    except (UserError, RunError) as error:
        if isinstance(error.__context__, BrokenPipeError) and _unread(sys.stdout):
            sys.exit(1)
        print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
        if at_once and isinstance(error, RunError):
            sys.stdout.flush()
            os._exit(1)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except MemoryError:
        print(
            "error: not enough memory; use a smaller batch, fewer workers or a larger machine",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(1)


def _unread(stream: TextIO) -> bool:
    """Whether the reader of `stream` has left, e.g. `head`; then nothing more is written to it."""
    try:
        print(file=stream, flush=True)
    except BrokenPipeError:
        # At exit Python flushes once more, and would report the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False


def path(text: str) -> Path:
    """An option that names a place; a shell expands `~` neither behind `=` nor in quotes."""
    return Path(os.path.expanduser(text))


def make_folder(folder: Path) -> None:
    """Makes a folder for the output if need be. Raises `UserError` if it cannot be written."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_file(file: Path, example: str) -> None:
    """Raises `UserError` where an output file has the place of a folder, e.g. `--output=.`.

    Args:
      example: a file's name, for the message.
    """
    if file.is_dir():
        raise UserError(f"--output={file}: is a folder; give a file, --output={example}")


@contextlib.contextmanager
def disk_errors(place: Path | str = "") -> Iterator[None]:
    """Turns an `OSError`, e.g. a full disk or a read-only folder, into a `UserError`.

    Args:
      place: the file or folder to name where the error itself names none.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or place
        # NumPy's error on a full disk has no system error, only the number of bytes written.
        reason = error.strerror or f"{error}, is the disk full?"
        what = f"{where}: {reason}" if where else reason
        raise UserError(f"{what}; fix this and run again") from None


# Of the installed package, or of the checkout through a link.
_SHIPPED = Path(__file__).with_name("configs")

CONFIG_HELP = f"""\
the config:
  --config=NAME[:DATASET[,VARIANT]]   one that is shipped, e.g. rpl3d:hippocampus
  --config=FILE[:DATASET[,VARIANT]]   one of your own, e.g. mine/rpl3d.py:hippocampus
  --config.KEY=VALUE                  overrides one value, e.g. --config.steps=1000
  --config.batch_size=auto            the preset's, rounded up to a multiple of the devices

--print_config lists the keys; comments explain them in
{_SHIPPED / "default.py"}
"""

_AUTOMATIC = "--config.batch_size=auto"


def parse_with_config(
    parser: Parser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    """Parses the command's own options and the `--config` ones; `--print_config` ends the command.

    Raises:
      UserError: an unknown option or key (the nearest one is named), no config, a missing file,
        or a value of the wrong type.
    """
    parser.add_argument(
        "--print_config", action="store_true", help="print every key of the config and exit"
    )
    options, rest = parser.parse_known_args(list(arguments))
    paths = [
        f"--config={os.path.expanduser(argument.removeprefix('--config='))}"
        for argument in rest
        if argument.startswith("--config=")
    ]
    overrides = [argument for argument in rest if argument.startswith("--config.")]
    for argument in rest:
        if not argument.startswith(("--config=", "--config.")):
            hint = "; write --config=FILE" * (argument == "--config")
            parser.error(f"unrecognized argument {argument}{hint}")
    if len(paths) != 1:
        parser.error(
            "give one --config=FILE[:DATASET[,VARIANT]], or a shipped one by name, --config=rpl3d"
        )
    name, colon, argument = paths[0].removeprefix("--config=").partition(":")
    file = config_file(name)
    _make_importable(file.resolve())
    paths = [f"--config={file}{colon}{argument}"]
    shipped = bounds.dotted(_load(paths))
    # The last one of a key counts; ml_collections would string tuples together.
    overrides = list({override.partition("=")[0]: override for override in overrides}.values())
    automatic = _AUTOMATIC in overrides
    overrides = [override for override in overrides if override != _AUTOMATIC]
    for override in overrides:
        _check_override(override, shipped)
        # One at a time, so that an error names its own key.
        try:
            _flag([*paths, override])
        except (flags.Error, TypeError, ValueError) as error:
            reason = str(error).splitlines()[-1].removeprefix(f"flag {override}: ")
            if override.startswith("--config.batch_size="):
                reason = "write a whole number, or auto"
            raise UserError(f"{override}: {reason}") from None
    config = _flag([*paths, *overrides])
    bounds.derive(config)
    _expand_homes(config)
    if automatic:
        bounds.make_automatic(config, "batch_size")
    if options.print_config:
        given = {override.partition("=")[0].removeprefix("--config.") for override in overrides}
        pending = bounds.pending(config)
        for key, value in bounds.dotted(config).items():
            was = shipped[key]
            change = f"  # {'overridden' if key in given else 'derived'}, was {was!r}"
            fitted = "  # or the next multiple of the devices" * (
                key == "batch_size" and bounds.is_automatic(config, "batch_size")
            )
            waits = f"  # {pending[key]}" if key in pending else ""
            print(f"config.{key} = {value!r}" + change * (value != was) + waits + fitted)
        sys.exit(0)
    return options, config


def _expand_homes(config: ml_collections.ConfigDict) -> None:
    """Replaces `~` in every value that names a place, in place."""
    for value in config.values():
        if isinstance(value, ml_collections.ConfigDict):
            _expand_homes(value)
    for key, value in list(config.items()):
        if isinstance(value, str) and value.startswith("~"):
            config[key] = os.path.expanduser(value)


def shipped_configs() -> dict[str, Path]:
    """The files of the shipped configs by name."""
    return {file.stem: file for file in sorted(_SHIPPED.glob("*[23]d.py"))}


def config_file(name: str) -> Path:
    """The file of `--config=NAME`: the shipped config of this name, else a path.

    Raises:
      UserError: neither; near names are listed.
    """
    shipped, file = shipped_configs(), Path(name)
    if name in shipped or file.is_file():
        return shipped.get(name, file)
    kind = "file" if file.suffix or file.name != name else "shipped config"
    near = difflib.get_close_matches(file.stem, shipped) or list(shipped)
    if Path(f"{name}.py").is_file():
        near = [f"{name}.py"]
    raise UserError(f"--config: no {kind} {name!r}; choose --config={' or '.join(near)}")


def _make_importable(file: Path) -> None:
    """Lets a config of one's own import what lies beside it, wherever the command is called."""
    for folder in (file.parent, file.parent.parent):
        # Not the shipped configs/, whose `datasets` would pass for the library.
        if file.parent != _SHIPPED.resolve() and str(folder) not in sys.path:
            sys.path.append(str(folder))


def _load(paths: Sequence[str]) -> ml_collections.ConfigDict:
    try:
        config = _flag(paths)
    except UserError:
        raise
    except Exception as error:  # a config is a program: anything can go wrong in it
        # ml_collections wraps the whole traceback; its last line is what happened.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "configs":
            reason += "; import the shipped configs from ssl3d.configs"
        raise UserError(f"{paths[0]}: the config cannot be loaded ({reason})") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"{paths[0]}: no config; the file must have a function get_config(arg)")
    return config


def _flag(arguments: Sequence[str]) -> Any:
    """What the file's get_config returns, with the overrides among `arguments`."""
    values = flags.FlagValues()
    line = ["ssl3d", *arguments]
    # Told its command line, as otherwise it looks for overrides in the process' own.
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=line)
    values(line)
    return values["config"].value


def _check_override(override: str, leaves: Mapping[str, object]) -> None:
    match = re.fullmatch(r"--config\.([\w.]+)=(.*)", override, re.DOTALL)
    if not match:
        raise UserError(f"{override}: write --config.KEY=VALUE")
    key = match[1]
    if key not in leaves:
        nearest = difflib.get_close_matches(key, leaves, n=1, cutoff=0.0)[0]
        raise UserError(f"--config.{key}: no such key; the nearest is --config.{nearest}")
