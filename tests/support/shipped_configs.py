"""The configs of the proxy tasks and the presets, by name."""

import importlib
import itertools

from ssl3d import tasks
from ssl3d.configs import datasets, default
from ssl3d.errors import UserError

PROXY = tasks.proxies()
PROXY_CONFIGS = [f"{task}{rank}d" for rank, task in itertools.product((2, 3), PROXY)]
# Those with the variants `paper` and `original`.
PUBLISHED = ("cpc", "exemplar", "jigsaw", "rotation", "rpl")
PUBLISHED_CONFIGS = [f"{task}{rank}d" for rank, task in itertools.product((2, 3), PUBLISHED)]
PRESETS = ("phantom", *datasets.PRESETS)


def get_config(name, argument):
    return importlib.import_module(f"ssl3d.configs.{name}").get_config(argument)


def variants(name):
    """The variants of a config: those of the paper's tasks, or none but its own."""
    try:
        get_config(name, "phantom,paper")
    except UserError:
        return ("",)
    return default.VARIANTS


# Configs with the published settings as variants.
PUBLISHED_CONFIGS = [name for name in PROXY_CONFIGS if len(variants(name)) > 1]


def arguments(name):
    """Every DATASET[,VARIANT] of a config."""
    pairs = itertools.product(PRESETS, variants(name))
    return [f"{preset},{variant}".rstrip(",") for preset, variant in pairs]
