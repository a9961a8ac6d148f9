"""The exported encoder: safetensors, readable from any framework, and a JSON to rebuild it.

    encoder/encoder.safetensors     flat names, e.g. params/level_0/first/conv/kernel
    encoder/encoder.json            settings of the encoder, rank, channels, origin, and the
                                    SHA-256 checksum of the weights
    decoder/decoder.*               the same of the decoder, if the task's network has one

Equal weights give equal bytes, whenever and wherever they are written.
"""

from __future__ import annotations

import hashlib
import json
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
from ssl3d.atomic import atomic_write
from ssl3d.errors import UserError
from ssl3d.models import encoders, safetensors_files

WEIGHTS = "encoder.safetensors"
DESCRIPTION = "encoder.json"
DECODER_WEIGHTS = "decoder.safetensors"
DECODER_DESCRIPTION = "decoder.json"
_REMEDY = "export it again"


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
    """Writes variables as safetensors with a JSON beside them that holds their checksum."""
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    # safetensors writes the buffer as is: a transposed view would be stored wrong.
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in sorted(flat.items())}
    weights = save(arrays)
    described = dict(description) | {"sha256": hashlib.sha256(weights).hexdigest()}
    text = json.dumps(described, indent=1, sort_keys=True) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in ((weights_name, weights), (description_name, text.encode())):
        with atomic_write(folder / name) as partial:
            partial.write_bytes(data)


def load_encoder(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuilds an exported encoder.

    Args:
      folder: a run's folder or its `encoder/`.

    Returns:
      The module and its variables: `module.apply(variables, x).levels` for x [B, *S, C].

    Raises:
      UserError: a file is missing or cannot be read, or an array is missing, unknown or of another
        shape than the description requires.
    """
    folder = encoder_folder(folder)
    file, weights = folder / DESCRIPTION, folder / WEIGHTS
    description, module = _read_description(file)
    # Any size serves: the encoder is fully convolutional.
    example = jax.ShapeDtypeStruct(
        (1, *(16,) * description["rank"], description["channels"]), jnp.float32
    )
    with documents.fields(file, _REMEDY):
        wanted = traverse_util.flatten_dict(
            jax.eval_shape(module.init, jax.random.key(0), example), sep="/"
        )
    # By the header, before an array of whatever size is read.
    check_leaves(safetensors_files.read_header(weights), wanted, weights, DESCRIPTION)
    found = read_weights(weights, description.get("sha256"))
    return module, traverse_util.unflatten_dict(found, sep="/")


def save_decoder(
    folder: Path, variables: Mapping[str, Any], description: Mapping[str, Any]
) -> None:
    """Writes a decoder; arguments as in `save_encoder`."""
    save_variables(folder, DECODER_WEIGHTS, DECODER_DESCRIPTION, variables, description)


def load_decoder(folder: str | Path) -> dict[str, Any]:
    """The variables of the decoder beside an exported encoder.

    Args:
      folder: a run's folder or its `encoder/`.

    Raises:
      UserError: no decoder was exported, or a file cannot be read.
    """
    weights = weights_file(folder, "decoder")
    file = weights.with_name(DECODER_DESCRIPTION)
    description = documents.read_object(
        file,
        _REMEDY,
        missing=f"{file}: missing; give the folder of a finished run whose task has a decoder, or "
        "set config.transfer.decoder=False",
    )
    checksum = description.get("sha256")
    return traverse_util.unflatten_dict(read_weights(weights, checksum), sep="/")


def weights_file(folder: str | Path, part: Literal["encoder", "decoder"]) -> Path:
    """The weights of a part of a run, given the run's folder or its `encoder/`."""
    own = encoder_folder(folder)
    return own / WEIGHTS if part == "encoder" else own.parent / part / DECODER_WEIGHTS


def encoder_folder(folder: str | Path) -> Path:
    """The `encoder/` of a run's folder, or the folder itself if it holds an encoder."""
    folder = Path(folder)
    inner = folder / "encoder"
    return inner if not (folder / DESCRIPTION).exists() and inner.is_dir() else folder


def describe_encoder(folder: str | Path) -> dict[str, Any]:
    """The content of `encoder.json`: at least "encoder", "rank", "channels". Raises `UserError`."""
    return _read_description(encoder_folder(folder) / DESCRIPTION)[0]


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
    description = documents.read_object(
        file,
        _REMEDY,
        missing=f"{file}: missing; give the folder of a finished run or its encoder/",
    )
    with documents.fields(file, _REMEDY):
        module = encoders.build(dict(description["encoder"]))
        rank, channels = int(description["rank"]), int(description["channels"])
        if rank not in (2, 3) or not 1 <= channels <= encoders.MOST_CHANNELS:
            raise ValueError(f"rank {rank}, {channels} channels")
    return description | {"rank": rank, "channels": channels}, module


def read_weights(file: Path, checksum: object) -> dict[str, np.ndarray]:
    """Flat name -> array of a safetensors file.

    Weights converted from elsewhere may come without a checksum.

    Raises:
      UserError: missing, damaged, or another file than the checksum's.
    """
    found, data = safetensors_files.read(file)
    if checksum is not None and hashlib.sha256(data).hexdigest() != checksum:
        raise UserError(
            f"{file}: damaged, or from another run than the JSON beside it (the checksums "
            "differ); export it again"
        )
    return found
