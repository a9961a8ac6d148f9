"""The export for nnU-Net and for the fine-tuning of nnssl's checkpoints.

What `torch_folder` writes, and

    adaptation_plan.json     nnU-Net's architecture and nnssl's adaptation plan
    decoder.safetensors      the weights of the pretraining's decoder, if it had one, without its
                             last projections, and decoder.json
    nnunet_checkpoint.py     writes checkpoint_final.pth where torch is

A .pth is a pickle: PyTorch itself writes it, in the environment of nnU-Net. Volumes are arrays
[x, y, z] here and [z, y, x] in nnU-Net, so that what lists axes is reversed for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl3d.atomic import write_json
from ssl3d.errors import UserError
from ssl3d.exchange import torch_folder
from ssl3d.exchange.source import Source
from ssl3d.models import encoders, export

SCRIPT = "nnunet_checkpoint.py"


def write(source: Source, folder: Path) -> None:
    """Writes the export.

    Raises:
      UserError: nnU-Net has no such encoder, or a whole network was asked for.
    """
    if source.part != "encoder":
        raise UserError("--format=nnunet: exports an encoder; leave --model out")
    plan = adaptation(source)
    torch_folder.write(source, folder)
    write_json(folder / "adaptation_plan.json", plan)
    if export.weights_file(source.workdir, "decoder").exists():
        decoder = export.without_projections(export.load_decoder(source.workdir))
        torch_folder.write_weights(folder, "decoder", decoder, source.about)
    torch_folder.copy_script(SCRIPT, folder / SCRIPT)


def adaptation(source: Source) -> dict[str, Any]:
    """The content of adaptation_plan.json.

    Raises:
      UserError: nnU-Net has no such encoder.
    """
    about = source.about
    kind, rank = encoders.kind_of(about["encoder"]), about["rank"]
    if kind.nnunet_plan is None:
        able = " or ".join(name for name, entry in encoders.KINDS.items() if entry.nnunet_plan)
        raise UserError(
            f"{source.workdir}: nnU-Net has no encoder.kind={about['encoder']['kind']}; pretrain "
            f"with --config.encoder.kind={able}, or export with --format=torch"
        )
    architecture = kind.nnunet_plan(source.encoder, rank)
    for key in ("strides", "kernel_sizes"):
        architecture[key] = [_reversed(axes) for axes in architecture[key]]
    spacing = about["preparation"].get("recipe", {}).get("spacing")
    crop = _reversed(about.get("crop") or [64] * rank)
    pretraining = {
        "spacing": spacing and _reversed(spacing),
        "spacing_style": "median" if spacing else "noresample",
        "patch_size": crop,
        "normalization_schemes": ["ZScoreNormalization"] * about["channels"],
    }
    return {
        "architecture": architecture,
        "citations": [],
        "nnssl_adaptation_plan": {
            "architecture_plans": {
                "arch_class_name": "ResidualEncoderUNet",
                "arch_kwargs": architecture,
                "arch_kwargs_requiring_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
            "pretrain_plan": {
                "dataset_name": about.get("dataset", ""),
                "plans_name": "ssl3d",
                "configurations": {"ssl3d": pretraining},
            },
            "pretrain_num_input_channels": about["channels"],
            "recommended_downstream_patchsize": crop,
            "key_to_encoder": "encoder.stages",
            "key_to_stem": "encoder.stem",
            "keys_to_in_proj": [
                "encoder.stem.convs.0.conv",
                "encoder.stem.convs.0.all_modules.0",
            ],
            "key_to_lpe": None,
        },
    }


def _reversed(axes: Sequence[Any]) -> list[Any]:
    """Numbers per axis in the order of nnU-Net's arrays; pictures have one order in both."""
    return list(axes[::-1]) if len(axes) == 3 else list(axes)
