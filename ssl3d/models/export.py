"""The exported encoder: safetensors, readable from any framework, and a JSON to rebuild it.

    encoder/encoder.safetensors     flat names, e.g. params/level_0/first/conv/kernel
    encoder/encoder.json            settings of the encoder, rank, channels, origin, and the
                                    SHA-256 checksum of the weights
    decoder/decoder.*               the same of the decoder, if the task's network has one

A JSON with the layout "torch" describes weights in PyTorch's names and layout (`torch_layout`), as
`ssl3d.export` writes them and as checkpoints of nnU-Net and nnssl are converted. Such a folder has
the files of the decoder, if any, beside those of the encoder.

Equal weights give equal bytes, whenever and wherever they are written. A run replaces both files
at every checkpoint. At any moment they can be read, and a kill leaves a pair that belongs together:
while the weights are replaced, the JSON describes the ones before as well (`replaces`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save

from ssl3d import documents
from ssl3d.atomic import atomic_write, leftovers, write_json
from ssl3d.errors import UserError
from ssl3d.models import decoders, encoders, safetensors_files, torch_layout

WEIGHTS = "encoder.safetensors"
DESCRIPTION = "encoder.json"
DECODER_WEIGHTS = "decoder.safetensors"
DECODER_DESCRIPTION = "decoder.json"
_REMEDY = "export it again"
_CHOICES = "give the folder of a run, or its encoder/"


def save_encoder(
    folder: Path, variables: Mapping[str, Any], description: Mapping[str, Any]
) -> None:
    """Writes an encoder that `load_encoder` rebuilds.

    Args:
      folder: created if missing; both files are written atomically, the description last.
      variables: "params" and, with batch norm, "batch_stats" of the encoder alone.
      description: "encoder" (the settings for `encoders.build`), "rank", "channels", and any
        other keys.
    """
    save_variables(folder, WEIGHTS, DESCRIPTION, variables, description)


def save_variables(
    folder: Path,
    weights_name: str,
    description_name: str,
    variables: Mapping[str, Any],
    description: Mapping[str, Any],
) -> None:
    """Writes variables as safetensors with a JSON beside them that holds their checksum.

    Each file is written atomically. A reader finds a matching pair before, between and after.
    """
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    # safetensors writes the buffer as is: a transposed view would be stored wrong.
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in sorted(flat.items())}
    weights = save(arrays)
    described = dict(description) | {"sha256": hashlib.sha256(weights).hexdigest()}
    folder.mkdir(parents=True, exist_ok=True)
    for name in (weights_name, description_name):
        for partial in leftovers(folder / name):  # of a run that was killed here
            partial.unlink(missing_ok=True)
    before = _present_description(folder / description_name, folder / weights_name)
    if before is not None:
        write_json(folder / description_name, described | {"replaces": before})
    with atomic_write(folder / weights_name) as partial:
        partial.write_bytes(weights)
    write_json(folder / description_name, described)


def _present_description(file: Path, weights: Path) -> dict[str, Any] | None:
    """What the JSON says of the weights beside it; None if there are none, or they are damaged."""
    try:
        described, _ = read_described(file, weights)
    except UserError:
        return None
    return {key: value for key, value in described.items() if key != "replaces"}


def load_encoder(given: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuilds an exported encoder.

    Args:
      given: the folder of a run, its `encoder/`, or an export for PyTorch; see `encoder_folder`.

    Returns:
      The module and its variables: `module.apply(variables, x).levels` for x [B, *S, C].

    Raises:
      UserError: a file is missing or cannot be read, or an array is missing, unknown or of another
        shape than the description requires.
    """
    folder = encoder_folder(given)
    file, weights = folder / DESCRIPTION, folder / WEIGHTS
    description, module = _read_description(file)
    with documents.fields(file, _REMEDY):
        _, variables = _shapes(module, description)
    wanted = traverse_util.flatten_dict(variables, sep="/")
    rank, in_torch = description["rank"], _in_torch(description)
    stored = torch_layout.wanted(wanted, rank) if in_torch else wanted
    # By the header, before an array of whatever size is read.
    check_leaves(safetensors_files.read_header(weights), stored, weights, DESCRIPTION)
    _, found = read_described(file, weights)
    if in_torch:
        found = torch_layout.from_torch(found, wanted, rank)
    return module, traverse_util.unflatten_dict(found, sep="/")


def save_decoder(
    folder: Path, variables: Mapping[str, Any], description: Mapping[str, Any]
) -> None:
    """Writes a decoder; arguments as in `save_encoder`."""
    save_variables(folder, DECODER_WEIGHTS, DECODER_DESCRIPTION, variables, description)


def load_decoder(given: str | Path) -> dict[str, Any]:
    """The variables of the decoder that was exported with an encoder.

    Args:
      given: see `encoder_folder`. Of an export, the arrays that suit its encoder: all but the last
        projections.

    Raises:
      UserError: no decoder was exported, a file cannot be read, or an array in PyTorch's layout is
        missing, unknown or of another shape than the encoder requires.
    """
    weights = weights_file(given, "decoder")
    file = weights.with_name(DECODER_DESCRIPTION)
    missing = (
        f"{file}: missing; give a run whose task has a decoder (e.g. mae), its export with "
        "--format=nnunet, or set config.transfer.decoder=False"
    )
    about, found = read_described(file, weights, missing)
    if _in_torch(about):
        found = _decoder_from_torch(encoder_folder(given), found, weights)
    return traverse_util.unflatten_dict(found, sep="/")


def _decoder_from_torch(
    folder: Path, found: dict[str, np.ndarray], weights: Path
) -> dict[str, np.ndarray]:
    """A decoder's arrays here, from those in PyTorch; the encoder in `folder` has its settings."""
    description, module = _read_description(folder / DESCRIPTION)
    with documents.fields(folder / DESCRIPTION, _REMEDY):
        features, _ = _shapes(module, description)
        decoder = decoders.build(module, outputs=1)
        variables = jax.eval_shape(decoder.init, jax.random.key(0), features)
    wanted = without_projections(variables)
    rank = description["rank"]
    check_leaves(found, torch_layout.wanted(wanted, rank), weights, DESCRIPTION)
    return torch_layout.from_torch(found, wanted, rank)


def without_projections(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays by flat name, without a decoder's last projections, which belong to its task."""
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return {name: leaf for name, leaf in flat.items() if f"/{decoders.PROJECTION}" not in name}


def _in_torch(description: Mapping[str, Any]) -> bool:
    return description.get("layout") == torch_layout.NAME


def _shapes(module: nn.Module, description: Mapping[str, Any]) -> tuple[Any, Any]:
    """Shapes and types of what an encoder gives and of its variables."""
    # Any size serves: the encoder is fully convolutional.
    size = (16,) * description["rank"]
    example = jax.ShapeDtypeStruct((1, *size, description["channels"]), jnp.float32)
    return jax.eval_shape(module.init_with_output, jax.random.key(0), example)


def weights_file(given: str | Path, part: Literal["encoder", "decoder"]) -> Path:
    """The weights of a part of a run or an export; `given` as for `encoder_folder`.

    Raises `UserError`.
    """
    own = encoder_folder(given)
    if part == "encoder":
        return own / WEIGHTS
    folder = own if _in_torch(describe_encoder(own)) else own.parent / part
    return folder / DECODER_WEIGHTS


def encoder_folder(given: str | Path) -> Path:
    """The folder of the encoder that a path names; all that `config.init.encoder` can be.

    Args:
      given: a run's folder, finished or not, its `encoder/`, or the `encoder.safetensors` in it.

    Raises:
      UserError: the path leads to none of them.
    """
    path = Path(given)
    if path.name == WEIGHTS and path.is_file():
        return path.parent
    if path.is_dir() and not (path / DESCRIPTION).exists():
        if (path / "encoder").is_dir():
            return path / "encoder"
        if (path / "config.json").exists():
            raise UserError(
                f"{path}: this run has no encoder yet; it is written at the first checkpoint"
            )
    if not path.is_dir():
        what = f"no folder and no {WEIGHTS}" if path.exists() else "missing"
        raise UserError(f"{path}: {what}; {_CHOICES}")
    return path


def describe_encoder(given: str | Path) -> dict[str, Any]:
    """The content of `encoder.json`. Raises `UserError`.

    At least "encoder", "rank", "channels", and the "step" of all "steps" of the run (0: unknown).
    """
    return _read_description(encoder_folder(given) / DESCRIPTION)[0]


def check_leaves(
    found: Mapping[str, Any], wanted: Mapping[str, Any], weights: Path, description: str
) -> None:
    """Raises `UserError` for the first array that is missing, unknown or of another shape or type.

    Args:
      found, wanted: flat name -> array, or anything with a shape and a type.
      weights: the file that holds `found`.
      description: where `wanted` comes from.
    """
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise UserError(f"{weights}: {name} is missing; export it again")
        if name not in wanted:
            raise UserError(f"{weights}: {name} is not part of what {description} describes")
        if found[name].shape != wanted[name].shape or found[name].dtype != wanted[name].dtype:
            raise UserError(
                f"{weights}: {name} is {found[name].dtype} {found[name].shape}, "
                f"{description} wants {wanted[name].dtype} {wanted[name].shape}"
            )


def _read_description(file: Path) -> tuple[dict[str, Any], nn.Module]:
    description = documents.read_object(file, _REMEDY, missing=f"{file}: missing; {_CHOICES}")
    with documents.fields(file, _REMEDY):
        module = encoders.build(dict(description["encoder"]))
        rank, channels = int(description["rank"]), int(description["channels"])
        if rank not in (2, 3) or not 1 <= channels <= encoders.MOST_CHANNELS:
            raise ValueError(f"rank {rank}, {channels} channels")
        steps = int(description.get("steps", 0))
        step = int(description.get("step", steps))  # earlier versions exported at the end alone
    known = {"rank": rank, "channels": channels, "step": step, "steps": steps}
    return description | known, module


def read_described(
    file: Path, weights: Path, missing: str = "", remedy: str = _REMEDY
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description of the weights in a file, and the weights: flat name -> array.

    Weights converted from elsewhere may come without a checksum.

    Args:
      file: the JSON beside the weights; a run may be replacing both.
      missing: the message for no such JSON.
      remedy: what the user can do about damaged files.

    Raises:
      UserError: missing, damaged, or the two are not of one export.
    """
    description = documents.read_object(file, remedy, missing)
    while True:
        found, data = safetensors_files.read(weights)
        checksum = hashlib.sha256(data).hexdigest()
        if description.get("sha256") in (None, checksum):
            return description, found
        before = description.get("replaces")
        if isinstance(before, dict) and before.get("sha256") == checksum:
            return before, found
        # Replaced since the JSON was read?
        again = documents.read_object(file, remedy)
        if again == description:
            raise UserError(
                f"{weights}: damaged, or from another run than the JSON beside it (the checksums "
                f"differ); {remedy}"
            )
        description = again
