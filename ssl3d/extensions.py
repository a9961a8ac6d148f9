"""Modules outside the repository that a config names, such as a task or an encoder of one's own."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from ssl3d.errors import UserError


def module(key: str, name: str, choices: Iterable[str]) -> ModuleType:
    """Imports the module that the config key `key` names.

    Args:
      name: dotted, e.g. "my_package.my_task".
      choices: the names that the project itself has, for the error.

    Raises:
      UserError: not a dotted name, or no such module.
    """
    if not isinstance(name, str) or "." not in name:
        raise UserError(
            f"{key}={name!r} does not exist; choose one of {', '.join(choices)}, or name a module "
            "of your own, e.g. my_package.my_module"
        )
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists; something that it imports does not
        raise UserError(
            f"{key}={name!r}: there is no module {error.name!r}; its folder must be on PYTHONPATH "
            "or be the parent of the config file's folder"
        ) from None


def attribute(key: str, found: ModuleType, name: str) -> Any:
    """What a module of one's own defines as `name`. Raises `UserError` where it does not."""
    if not hasattr(found, name):
        raise UserError(f"{key}={found.__name__!r}: {found.__file__} does not define {name}")
    return getattr(found, name)
