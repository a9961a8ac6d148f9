"""From a pretrained encoder to a downstream network; any array that does not match is an error.

Taleb et al. 2020, appendix A: weights are random, pretrained and frozen, or pretrained and
fine-tuned after a warm-up in which only the new layers learn.

    config.init.encoder     a run, finished or not, or its `encoder/`; its encoder's architecture is
                            always adopted. A proxy task that has one goes on from its weights
    config.transfer.mode    finetune, the default where there is an encoder: its weights are used
                            and trained as well, after `warmup_steps`; frozen: they are used and
                            stay bit for bit as they are; random: they are not used
    config.transfer.decoder segmentation: whether the decoder's weights, exported with the encoder,
                            are used as well, except its last projections; it is trained from the
                            start in every mode
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from ssl3d.errors import UserError
from ssl3d.models import encoders, export

# The variables of the submodules to load, as `network.init` nests them.
Pretrained = Mapping[Literal["encoder", "decoder"], Mapping[str, Any]]

MODES = ("random", "frozen", "finetune")


def frozen_steps(config: ml_collections.ConfigDict) -> int:
    """The number of steps at the start in which the encoder is frozen."""
    if "transfer" not in config:
        return 0
    warmup = config.transfer.warmup_steps
    return {"random": 0, "frozen": config.steps, "finetune": warmup}[config.transfer.mode]


def loads(config: ml_collections.ConfigDict) -> bool:
    """Whether a run starts from the weights of a pretrained encoder."""
    if "transfer" not in config:
        return bool(config.init.encoder)
    return bool(config.init.encoder) and config.transfer.mode != "random"


def explain(config: ml_collections.ConfigDict) -> str:
    """What to print about an encoder whose weights are not loaded; "" for nothing unexpected."""
    if "transfer" not in config or loads(config):
        return ""
    if config.init.encoder:
        return (
            f"the architecture is that of {config.init.encoder}, its weights are not used "
            "(config.transfer.mode=random; finetune or frozen use them)"
        )
    if config.transfer.mode == "frozen":
        return "the encoder stays as it is initialised (config.transfer.mode=frozen)"
    return ""


def check_encoder(config: ml_collections.ConfigDict) -> dict[str, Any] | None:
    """The description of the encoder in `config.init.encoder`, if there is one; reads no data.

    Raises:
      UserError: the mode needs an encoder and none is given, it cannot be read, or it has another
        rank.
    """
    mode, folder = _transfer(config)["mode"], config.init.encoder
    if mode not in MODES:
        raise UserError(f"config.transfer.mode={mode!r}: choose one of {', '.join(MODES)}")
    if not folder:
        remedy = "give a pretraining run, --config.init.encoder=DIR"
        if mode == "finetune":
            raise UserError(f"config.transfer.mode=finetune: {remedy}")
        if _transfer(config).get("decoder", False):
            raise UserError(f"config.transfer.decoder=True: {remedy}")
        return None
    about = export.describe_encoder(folder)
    if about["rank"] != config.rank:
        raise UserError(
            f"config.init.encoder={folder}: an encoder of {about['rank']}D images does not fit a "
            f"{config.rank}D network; pretrain with a {config.rank}D config"
        )
    return about


def _transfer(config: ml_collections.ConfigDict) -> Mapping[str, Any]:
    """`config.transfer`; a proxy task goes on with the weights of a pretraining, or has none."""
    return config.get("transfer", {"mode": "finetune" if config.init.encoder else "random"})


def adopt_architecture(config: ml_collections.ConfigDict, channels: int) -> Pretrained | None:
    """Replaces `config.encoder` by the settings of the encoder in `config.init.encoder`.

    Weights then fit, and random weights are compared on the same network. How it is computed, in
    which type and with how much memory, stays the config's.

    Args:
      channels: C of the data set.

    Returns:
      The variables for `load_into`, if the mode uses them: the encoder's, and with
      config.transfer.decoder the decoder's. Damaged ones are refused before anything is written.

    Raises:
      UserError: as `check_encoder`, or the encoder has more channels.
    """
    about, folder = check_encoder(config), config.init.encoder
    if about is None:
        return None
    if about["channels"] > channels:
        raise UserError(
            f"config.init.encoder={folder}: was trained on {about['channels']} channels, the data "
            f"set has {channels}; pretrain on {channels} or fewer"
        )
    loaded: dict[Literal["encoder", "decoder"], Any] = {}
    if loads(config):
        loaded["encoder"] = export.load_encoder(folder)[1]
        if _transfer(config).get("decoder", False):
            loaded["decoder"] = export.load_decoder(folder)
    own = {key: config.encoder[key] for key in encoders.COMPUTATION}
    # A setting that the file lacks is newer than the file, and had no other value before.
    config.encoder.update(encoders.every_setting(about["encoder"]) | own)
    return loaded or None


@contextlib.contextmanager
def naming_encoder(config: ml_collections.ConfigDict) -> Iterator[None]:
    """Adds to errors about the encoder's settings that they are those of a pretrained encoder."""
    try:
        yield
    except UserError as error:
        if config.init.encoder and "encoder." in str(error):
            whose = f"the encoder is that of config.init.encoder={config.init.encoder}"
            raise UserError(f"{error} ({whose})") from None
        raise


def load_into(
    variables: dict[str, Any], loaded: Pretrained, folder: str
) -> tuple[dict[str, Any], str]:
    """Puts pretrained parameters and running statistics into a network's variables.

    If the encoder has fewer input channels than the network, its first layer is repeated over them
    and rescaled, so that the sum over the channels does not change. The last projections of a
    decoder belong to its task and are left out.

    Args:
      variables: "params" and, with batch norm, "batch_stats", each by submodule.
      loaded: from `adopt_architecture`.
      folder: the pretraining run or its `encoder/`.

    Returns:
      The variables, and a sentence on what was loaded and what was not.

    Raises:
      UserError: an array is missing in the file or in the network, or has another shape.
    """
    merged: dict[str, Any] = dict(traverse_util.flatten_dict(variables, sep="/"))
    rest, sentences = set(merged), []
    about = export.describe_encoder(folder)
    for part, tree in loaded.items():
        file = export.weights_file(folder, part)
        found = export.without_projections(tree)
        wanted = export.without_projections(
            {name: own[part] for name, own in variables.items() if part in own}
        )
        repeated = [
            name
            for name, leaf in wanted.items()
            if part == "encoder" and name in found
            if _fewer_channels(found[name].shape, leaf.shape)
        ]
        for name in repeated:
            found[name] = _repeat_channels(found[name], wanted[name].shape[-2])
        export.check_leaves(found, wanted, file, "the config's network")
        for name, leaf in wanted.items():
            place = name.replace("/", f"/{part}/", 1)
            merged[place] = jax.device_put(jnp.asarray(found[name]), leaf.sharding)
            rest.remove(place)
        unfinished = about["step"] < about["steps"]
        reached = f", step {about['step']} of {about['steps']}" if unfinished else ""
        sentences.append(
            f"all {len(wanted)} arrays of the {part} loaded from {file.parent}{reached}"
        )
        if repeated:
            sentences[-1] += f" ({', '.join(repeated)} repeated over the channels)"
    if rest:
        modules = ", ".join(_modules(rest, set(merged) - rest))
        sentences.append(f"starting at random: {len(rest)} arrays of {modules}")
    return traverse_util.unflatten_dict(merged, sep="/"), "; ".join(sentences)


def _modules(names: AbstractSet[str], others: AbstractSet[str]) -> list[str]:
    """The largest modules that hold arrays of these flat names and none of the others."""

    def path(name: str) -> list[str]:  # without the collection and the array
        *modules, _ = name.split("/")[1:]
        return ["/".join(modules[:count]) for count in range(1, len(modules) + 1)]

    taken = {module for name in others for module in path(name)}
    own = (next((module for module in path(name) if module not in taken), name) for name in names)
    return sorted(set(own))


def _fewer_channels(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether two kernels [..., C, F] differ only in fewer input channels C."""
    return (
        len(found) == len(wanted) > 2
        and found[:-2] == wanted[:-2]
        and found[-1] == wanted[-1]
        and found[-2] < wanted[-2]
    )


def _repeat_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    before = kernel.shape[-2]
    index = np.arange(channels) % before
    # A channel repeated n times counts 1 / n each time.
    times = np.bincount(index, minlength=before)[index]
    return (kernel[..., index, :] / times[:, None]).astype(kernel.dtype)
