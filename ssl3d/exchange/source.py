"""What is exported: the encoder of a run, or the whole network of a segmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jax import Array

import ssl3d
from ssl3d import documents, tasks
from ssl3d.data import store
from ssl3d.downstream import predictor
from ssl3d.errors import UserError
from ssl3d.models import encoders, export

Part = Literal["encoder", "network"]

_REMEDY = "restore the run's folder"
# What a JSON tells of the weights beside it alone.
_OF_THE_FILES = ("layout", "sha256", "replaces")


class Source(NamedTuple):
    """A network with its weights.

    Attributes:
      part: "encoder" or "network", the name of its files.
      encoder: the module of its encoder.
      apply: (variables, x [B, *S, C]) -> the encoder's levels or the decoder's logits, float32.
      leaves: the variables by flat name, e.g. params/level_0/first/conv/kernel.
      about: what is known of it, for the JSON: "encoder" with every setting, "rank", "channels".
      workdir: the run.
    """

    part: Part
    encoder: nn.Module
    apply: Callable[[Any, Array], Any]
    leaves: dict[str, np.ndarray]
    about: dict[str, Any]
    workdir: Path


def read(workdir: Path, model: str = "") -> Source:
    """Reads what is exported of a run.

    Args:
      workdir: the folder of a run, or an encoder's.
      model: "best" or "last" for the network of a segmentation; "" for the encoder.

    Raises:
      UserError: nothing to export, damaged files, or a kind of encoder that is JAX's alone.
    """
    found = _network(workdir, model) if model else _encoder(workdir)
    kind = found.about["encoder"]["kind"]
    if not encoders.kind_of(found.about["encoder"]).in_torch:
        able = " or ".join(name for name, entry in encoders.KINDS.items() if entry.in_torch)
        raise UserError(
            f"{workdir}: encoder.kind={kind} has no counterpart in PyTorch; pretrain with {able}"
        )
    return found


def _encoder(workdir: Path) -> Source:
    about = export.describe_encoder(workdir)
    _, variables = export.load_encoder(workdir)
    settings = encoders.every_setting(about["encoder"])
    module: Any = encoders.build(settings | {"dtype": "float32"})
    return Source(
        part="encoder",
        encoder=module,
        apply=lambda variables, x: module.apply(variables, x).levels,
        leaves=traverse_util.flatten_dict(variables, sep="/"),
        about=_described(about, settings, workdir),
        workdir=workdir,
    )


def _network(workdir: Path, model: str) -> Source:
    saved = predictor.load(workdir, model).model
    config, dataset = saved.config, saved.dataset
    if tasks.needs(config) != "label_map":
        raise UserError(
            f"{workdir}: no segmentation, whose network --model={model} would export; leave "
            "--model out to export the encoder"
        )
    settings = encoders.every_setting(config.encoder.to_dict())
    config.encoder.dtype = "float32"
    labels = tasks.Labels(dataset.classes, (1,) * len(dataset.classes))
    network = tasks.build(config, labels).network
    about = {
        "rank": config.rank,
        "channels": len(dataset.modalities),
        "modalities": list(dataset.modalities),
        "task": config.task.name,
        "dataset": dataset.name,
        "step": saved.step,
        "steps": config.steps,
        "classes": list(dataset.classes),
        "regions": [list(region) for region in config.task.regions],
        "outputs": len(config.task.regions) or len(dataset.classes),
        "deep": config.task.deep,
        "crop": list(config.data.crop),
        "preparation": dataset.extra.get("settings", {}),
    }
    return Source(
        part="network",
        encoder=network.encoder,
        apply=lambda variables, x: network.apply(variables, x, train=False),
        leaves=traverse_util.flatten_dict(saved.variables, sep="/"),
        about=_described(about, settings, workdir),
        workdir=workdir,
    )


def _described(about: dict[str, Any], settings: dict[str, Any], workdir: Path) -> dict[str, Any]:
    config = run_config(workdir)
    known = {"version": ssl3d.__version__, "preparation": _preparation(config)}
    if "data" in config:
        known["crop"] = list(config["data"]["crop"])
    kept = {key: value for key, value in about.items() if key not in _OF_THE_FILES}
    return known | kept | {"encoder": settings}


def run_config(workdir: Path) -> dict[str, Any]:
    """The config of the run; empty for an encoder's folder."""
    file = workdir / "config.json"
    return documents.read_object(file, _REMEDY) if file.exists() else {}


def _preparation(config: dict[str, Any]) -> dict[str, Any]:
    """How the images were prepared; empty where the data set is not at hand any more."""
    try:
        return store.read(config["data"]["path"]).extra.get("settings", {})
    except (UserError, KeyError):
        return {}


def reference_input(source: Source) -> np.ndarray:
    """Noise [2, *S, C] whose sizes differ along each axis and divide by no stride."""
    rank, channels = source.about["rank"], source.about["channels"]
    strides = encoders.total_strides(source.about["encoder"], rank)
    size = [stride + 1 + 2 * axis for axis, stride in enumerate(strides)]
    return np.random.default_rng(0).normal(size=(2, *size, channels)).astype(np.float32)


def outputs(source: Source, x: np.ndarray) -> list[np.ndarray]:
    """The network's outputs for x."""
    variables = traverse_util.unflatten_dict(source.leaves, sep="/")
    return [np.asarray(output) for output in jax.jit(source.apply)(variables, x)]
