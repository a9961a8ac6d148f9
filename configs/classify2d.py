"""Classification of pictures, from scratch or from a pretrained encoder.

python -m ssl3d.main --config=configs/classify2d.py[:DATASET]
    [--config.init.encoder=RUN] [--config.data.label_fraction=0.1]

Built-in fundus, from scratch, one CPU core: 137 s, quadratic kappa 0.899.
"""

import functools

from ssl3d.bounds import Config, at_least, bounded, derived, one_of
from ssl3d.configs import default


def get_config(arg: str = "phantom") -> Config:
    return configure(arg, rank=2)


def configure(arg: str, rank: int) -> Config:
    """The task's settings for either rank; see `default.get_config`."""
    config, _ = default.get_config("classification", rank, arg, kind="grade", variants=("",))
    default.downstream(config)
    config.task.head = "softmax"  # or ordinal: one output per grade but the first, is it reached?
    config.task.class_weights = "none"  # or balanced: inverse to a class's training cases
    # The validation score that selects the best model: quadratic kappa for grades, which have an
    # order, balanced accuracy or AUROC for classes without one, as those of a preset may be.
    rule = functools.partial(_select_by, default.preset_of(config).ordered)
    config.task.select_by = bounded(
        derived(config, rule), one_of("kappa", "balanced_accuracy", "auroc")
    )
    config.predict.batch = bounded(16, at_least(1))  # images at once
    config.predict.mirror = False  # average over mirrored images, as in configs/segment3d.py
    return config


def _select_by(ordered: bool, config: Config) -> str:
    return "kappa" if ordered or config.task.head == "ordinal" else "balanced_accuracy"
