"""The shipped configs, made small: runs of seconds on the shared data sets."""

import importlib

from tests.support.datasets import SIDE

# Configs that are not named after their task.
DOWNSTREAM = {"segment": "segmentation", "classify": "classification"}


def tiny_task(task, rank):
    """Key -> value of a task's section, for crops of `SIDE` voxels."""
    patches = {"jitter": 0 if (task, rank) == ("cpc", 2) else 1}
    return {
        "contrast": {"code": 8, "pool": 4, "view": (16,) * rank},
        "cpc": patches | {"code": 8, "context": 8, "overlap": 0 if rank == 3 else SIDE // 6},
        "exemplar": {"code": 8, "pool": 4},
        "mae": {"block": 6},
        "jigsaw": patches | {"puzzles": 2, "code": 8},
        "rpl": patches | {"queries": 3},
    }.get(task, {})


def tiny_overrides(name):
    """Key -> value: what makes the shipped config `name` one of seconds on the shared data."""
    stem, rank = name[:-2], int(name[-2])
    task = DOWNSTREAM.get(stem, stem)
    overrides = {
        "data.phantom.kind": "",
        "data.crop": (SIDE,) * rank,
        "data.margin": 0,
        "data.threads": 1,
        "encoder.width": 4,
        "encoder.depth": 2,
        "head.hidden": (16,),
        "optimizer.warmup_steps": 1,
        "batch_size": 4,
        "steps": 3,
        "log_every": 1,
        "validate_every": 3,
        "checkpoint_every": 3,
        "validation.repeats": 1,
    }
    if stem not in DOWNSTREAM:
        overrides["probe_every"] = 0
    if task in ("segmentation", "mae"):
        del overrides["head.hidden"]
    if task == "segmentation":
        overrides["predict.mirror"] = False
    if task == "joint":
        for part in ("contrast", "cpc", "exemplar", "jigsaw", "rpl"):
            for key, value in tiny_task(part, rank).items():
                overrides[f"parts.{part}.task.{key}"] = value
    return overrides | {f"task.{key}": value for key, value in tiny_task(task, rank).items()}


def tiny_config(name, path="", argument="phantom", **overrides):
    """The shipped config `name` (e.g. "rpl3d"), seconds-sized, on the data set at `path`.

    Overrides are written with __ for the dot: optimizer__ema=0.5.
    """
    config = importlib.import_module(f"ssl3d.configs.{name}").get_config(argument)
    chosen = {key.replace("__", "."): value for key, value in overrides.items()}
    config.update_from_flattened_dict(tiny_overrides(name) | {"data.path": str(path)} | chosen)
    return config


def tiny_arguments(name, path, **overrides):
    """Much the same as options of a command, on data that are no phantom."""
    chosen = {key.replace("__", "."): value for key, value in overrides.items()}
    values = tiny_overrides(name) | {"encoder.dtype": "float32", "data.path": str(path)} | chosen
    del values["data.phantom.kind"]
    return [
        f"--config=configs/{name}.py:folder",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]
