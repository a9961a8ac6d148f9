"""The configs of the proxy tasks and the presets, by name."""

import importlib
import itertools

from configs import datasets
from ssl3d import tasks

PROXY = [name for name in tasks.TASKS if not hasattr(tasks.module_of(name), "NEEDS")]
PROXY_CONFIGS = [f"{task}{rank}d" for rank, task in itertools.product((2, 3), PROXY)]
# Those with the variants `paper` and `original`.
PUBLISHED = ("cpc", "exemplar", "jigsaw", "rotation", "rpl")
PUBLISHED_CONFIGS = [f"{task}{rank}d" for rank, task in itertools.product((2, 3), PUBLISHED)]
PRESETS = ("phantom", *datasets.PRESETS)


def get_config(name, argument):
    return importlib.import_module(f"configs.{name}").get_config(argument)
