"""The configs of the proxy tasks and the presets, by name."""

import importlib
import itertools

from configs import datasets
from ssl3d import tasks

PROXY = [name for name in tasks.TASKS if not hasattr(tasks.module_of(name), "NEEDS")]
PROXY_CONFIGS = [f"{task}{rank}d" for rank, task in itertools.product((2, 3), PROXY)]
PRESETS = ("phantom", *datasets.PRESETS)


def get_config(name, argument):
    return importlib.import_module(f"configs.{name}").get_config(argument)
