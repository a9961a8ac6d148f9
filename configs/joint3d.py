"""Several proxy tasks on one encoder in 3D.

python -m ssl3d.main --config=configs/joint3d.py
python -m ssl3d.main --config=configs/joint3d.py --config.task.parts="('cpc', 'rotation')"

Built-in brain, one CPU core: 94 s, accuracy of rpl 0.930 (chance 0.038).
"""

import functools
from collections.abc import Callable
from typing import Any

from ssl3d import bounds
from ssl3d.bounds import POSITIVE, Bound, Config, bounded, derived
from ssl3d.configs import (
    contrast3d,
    cpc3d,
    datasets,
    default,
    exemplar3d,
    jigsaw3d,
    mae3d,
    rotation3d,
    rpl3d,
)

# The configs whose task can be a part by name. Others have the name of their module.
SHIPPED = (contrast3d, cpc3d, exemplar3d, jigsaw3d, mae3d, rotation3d, rpl3d)
SIZES: dict[str, datasets.Ranks] = {}


def _names(values: tuple[Any, ...]) -> bool:
    return len(values) > 0 and all(isinstance(value, str) for value in values)


def _of_part(name: str, rule: Callable[[Config], Any], config: Config) -> Any:
    return rule(bounds.part(config, name))


def _whole_crop(config: Config) -> tuple[int, ...]:
    return config.data.crop


def get_config(arg: str = "phantom") -> Config:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> Config:
    """The task's settings for either rank; see `default.get_config`."""
    config, _ = default.get_config("joint", rank, arg, kind="patches", sizes=SIZES, variants=("",))
    # Names of `config.parts`, or modules of tasks elsewhere; the first one's headline is shown.
    config.task.parts = bounded(("rpl", "rotation"), Bound(_names, "names, e.g. ('rpl', 'cpc')"))
    # The settings of every part, as in its own config: `--config.parts.rpl.task.queries=4`.
    config.parts = Config()
    for module in SHIPPED:
        add_part(config, module.configure(arg, rank))
    return config


def add_part(config: Config, part: Config, weight: float = 1.0) -> None:
    """Adds the task of another config, by the last component of its name.

    Values that follow from others follow the joint config's.
    """
    name = part.task.name.rpartition(".")[2]
    config.parts[name] = Config()
    section = config.parts[name]
    section.weight = bounded(weight, POSITIVE)  # of the loss
    section.crop = part.data.crop  # voxels; no larger than `config.data.crop`
    if "crop" in bounds.rules(part.data):
        section.crop = derived(config, _whole_crop)
    section.task = part.task.copy_and_resolve_references()
    for key, rule in bounds.rules(part.task).items():
        section.task[key] = derived(config, functools.partial(_of_part, name, rule))
