"""Converts a checkpoint of nnssl or nnU-Net, for ssl3d to read without PyTorch.

    python convert_checkpoint.py CHECKPOINT.pth OUTPUT [--configuration=3d_fullres] [--trust]

Runs where torch and safetensors are; ssl3d need not be. For residual encoders: nnssl's ResEncL (the
OpenMind models), and nnU-Net's with the ResEnc planners. The result is a folder like that of
`ssl3d.export --format=torch`, for --config.init.encoder=OUTPUT. It also holds the decoder, without
its segmentation layers, for --config.transfer.decoder=True; one that is not nnU-Net's is left out.

Volumes are arrays [z, y, x] there and [x, y, z] in ssl3d: the axes of 3D kernels are reversed.

A checkpoint that holds more than arrays, as those of nnU-Net's trainings do, is a program that
could do anything: --trust reads it all the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

try:
    import torch
    import torch_network
    from safetensors.torch import save, save_file
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"{error}; install what is needed: pip install torch safetensors") from None

STEM, STAGES = "stem.", "stages."
_PREFIX = re.compile(r"^((module|_orig_mod)\.)+")


def read(file: Path, trust: bool) -> dict[str, Any]:
    """The checkpoint. Raises SystemExit."""
    try:
        return torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError:
        raise SystemExit(f"{file}: holds more than arrays; if you trust it, add --trust") from None
    except (OSError, RuntimeError) as error:
        raise SystemExit(f"{file}: cannot be read ({error})") from None


def weights_under(checkpoint: dict[str, Any], keys: dict[str, str]) -> dict[str, Tensor]:
    """The arrays whose names begin with one of the keys, each once, with that key replaced."""
    found = {}
    for name, value in checkpoint["network_weights"].items():
        bare = _PREFIX.sub("", name)
        for key, own in keys.items():
            # nnU-Net registers most modules twice.
            if bare.startswith(key) and ".all_modules." not in bare:
                value = value.detach().float()
                value = value.permute(0, 1, 4, 3, 2) if value.ndim == 5 else value
                found[own + bare.removeprefix(key)] = value.contiguous()
    return found


def encoder_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The arrays of stem and stages by their names in the encoder. Raises SystemExit."""
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
        raise SystemExit("no checkpoint of nnssl or nnU-Net: it has no network_weights")
    plan = checkpoint.get("nnssl_adaptation_plan", {})
    keys = {
        plan.get("key_to_stem", "encoder.stem") + ".": STEM,
        plan.get("key_to_encoder", "encoder.stages") + ".": STAGES,
    }
    return weights_under(checkpoint, keys)


def decoder_weights(checkpoint: dict[str, Any], encoder: nn.Module) -> dict[str, Tensor]:
    """The arrays of nnU-Net's decoder by their names in it; {} without one that fits."""
    keys = {f"decoder.{name}": name for name in ("stages.", "transpconvs.")}
    found = weights_under(checkpoint, keys)
    decoder = torch_network.ResidualEncoderDecoder(encoder, classes=1, deep=0)
    own = {name: x.shape for name, x in decoder.state_dict().items() if "logits_" not in name}
    return found if {name: x.shape for name, x in found.items()} == own else {}


def strides(checkpoint: dict[str, Any], configuration: str, depth: int, rank: int) -> list:
    """The strides of each level: in the plans; all twos after the first for nnssl's ResEncL."""
    architecture = checkpoint.get("nnssl_adaptation_plan", {}).get("architecture_plans", {})
    plans = checkpoint.get("init_args", {}).get("plans", {}).get("configurations", {})
    known = architecture.get("arch_kwargs")
    if plans:
        if configuration not in plans:
            raise SystemExit(f"--configuration={configuration}: choose of {', '.join(plans)}")
        known = plans[configuration]["architecture"]["arch_kwargs"]
    if known:
        return [list(axes[::-1] if rank == 3 else axes) for axes in known["strides"]]
    if architecture.get("arch_class_name") == "ResEncL":
        return [[1] * rank, *[[2] * rank] * (depth - 1)]
    raise SystemExit("the checkpoint has no plans, and its strides are unknown")


def settings(checkpoint: dict[str, Any], weights: dict[str, Tensor], configuration: str) -> dict:
    """The encoder's settings for ssl3d, from the shapes of the weights."""
    blocks: dict[int, int] = {}
    for name in weights:
        if place := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
            level, block = map(int, place.groups())
            blocks[level] = max(blocks.get(level, 0), block + 1)
    if not blocks or sorted(blocks) != list(range(len(blocks))):
        raise SystemExit("no residual encoder of nnU-Net in this checkpoint")
    first = [weights[f"stages.{level}.blocks.0.conv1.conv.weight"] for level in range(len(blocks))]
    rank, channels = first[0].ndim - 2, [len(kernel) for kernel in first]
    return {
        "kind": "resenc",
        "width": channels[0],
        "depth": len(blocks),
        "norm": "instance",
        "dropout": 0.0,
        "dtype": "float32",
        "activation_first": False,
        "final_pool": "none",
        "max_width": max(channels),
        "blocks": [blocks[level] for level in range(len(blocks))],
        "strides": strides(checkpoint, configuration, len(blocks), rank),
        "kernels": [list(kernel.shape[2:]) for kernel in first],
    }


def convert(checkpoint: dict[str, Any], output: Path, origin: str, configuration: str) -> str:
    """Writes the folder; what was converted. Raises SystemExit."""
    weights = encoder_weights(checkpoint)
    encoder = settings(checkpoint, weights, configuration)
    stem = weights["stem.convs.0.conv.weight"]
    about = {
        "layout": "torch",
        "encoder": encoder,
        "rank": stem.ndim - 2,
        "channels": stem.shape[1],
        "task": str(checkpoint.get("trainer_name", "unknown")),
        "dataset": origin,
    }
    module = torch_network.build(about)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise SystemExit(f"{origin}: not nnU-Net's residual encoder ({error})") from None
    totals = [1] * about["rank"]
    for axes in encoder["strides"]:
        totals = [total * stride for total, stride in zip(totals, axes, strict=True)]
    sizes = [total + 1 + 2 * axis for axis, total in enumerate(totals)]
    x = torch.randn(2, about["channels"], *sizes, generator=torch.manual_seed(0))
    with torch.no_grad():
        levels = module.eval()(x)
    decoder = decoder_weights(checkpoint, module)
    output.mkdir(parents=True)
    reference = {f"output_{i}": level.contiguous() for i, level in enumerate(levels)}
    save_file({"input": x} | reference, output / "reference.safetensors")
    shutil.copyfile(torch_network.__file__, output / "encoder.py")
    parts = {"encoder": weights, "decoder": decoder}
    for part, arrays in parts.items():
        if arrays:
            data = save(arrays)
            (output / f"{part}.safetensors").write_bytes(data)
            described = about | {"sha256": hashlib.sha256(data).hexdigest()}
            text = json.dumps(described, indent=1, sort_keys=True) + "\n"
            (output / f"{part}.json").write_text(text)
    counts = [
        f"{part} of {len(arrays)} arrays, {sum(x.numel() for x in arrays.values()):,} values"
        for part, arrays in parts.items()
        if arrays
    ]
    return f"{output}: {'; '.join(counts)}" + "; no decoder of nnU-Net's" * (not decoder)


def _path(text: str) -> Path:
    return Path(text).expanduser()


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=_path)
    parser.add_argument("output", type=_path, help="new folder")
    parser.add_argument(
        "--configuration", default="3d_fullres", help="configuration of nnU-Net's plans"
    )
    parser.add_argument(
        "--trust", action="store_true", help="read a checkpoint that may run programs"
    )
    given = parser.parse_args()
    if given.output.exists():
        raise SystemExit(f"{given.output}: already exists; give a new folder")
    checkpoint = read(given.checkpoint, given.trust)
    print(convert(checkpoint, given.output, given.checkpoint.name, given.configuration))


if __name__ == "__main__":
    main()
