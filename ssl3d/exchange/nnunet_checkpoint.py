"""Writes checkpoint_final.pth for nnU-Net. Run it where torch is: python nnunet_checkpoint.py

It reads encoder.* beside it. The checkpoint serves `nnUNetv2_train ... -pretrained_weights
checkpoint_final.pth`, whose plans must have the architecture in adaptation_plan.json, and the
fine-tuning of nnssl's checkpoints, which takes the architecture from it. nnU-Net loads the decoder
as well: it is the pretraining's where that had one (decoder.safetensors), else new, initialised as
nnU-Net does; its segmentation layers are never loaded.

Volumes are arrays [x, y, z] in ssl3d and [z, y, x] in nnU-Net: the axes of 3D kernels are reversed.

With the package dynamic-network-architectures at hand, the checkpoint is loaded into nnU-Net's own
network and compared with the exported one.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

try:
    import torch
    from encoder import load
    from safetensors.torch import load_file
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"{error}; install what is needed: pip install torch safetensors") from None

HERE = Path(__file__).parent
TOLERANCE = 1e-4
SLOPE = 0.01  # of the leaky ReLU, for which nnU-Net initialises


def network() -> nn.Module:
    """The encoder with its decoder."""
    torch.manual_seed(0)
    whole = load(HERE, classes=1)
    for module in whole.decoder.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            nn.init.zeros_(module.bias)
    trained = HERE / "decoder.safetensors"
    if trained.exists():
        found = whole.decoder.load_state_dict(load_file(trained), strict=False)
        if found.unexpected_keys or any("logits_" not in name for name in found.missing_keys):
            raise SystemExit(f"{trained}: missing {found.missing_keys}, {found.unexpected_keys}")
    return whole


def reversed_axes(value: Tensor) -> Tensor:
    """A volume [B, C, *S] or a 3D kernel with its spatial axes in nnU-Net's order."""
    return value.permute(0, 1, 4, 3, 2).contiguous() if value.ndim == 5 else value


def nnunet_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """nnU-Net's state dict, in which most modules appear twice."""
    doubled = {}
    for name, array in weights.items():
        if "logits_" in name:
            continue
        value = doubled[name] = reversed_axes(array)
        for part, index in ((".conv.", 0), (".norm.", 1)):
            if part in name:
                doubled[name.replace(part, f".all_modules.{index}.")] = value
    encoder = {name: value for name, value in doubled.items() if name.startswith("encoder.")}
    return doubled | {f"decoder.{name}": value for name, value in encoder.items()}


def original(plan: dict[str, Any]) -> nn.Module | None:
    """nnU-Net's own network for the plan; None without the package."""
    try:
        module = importlib.import_module("dynamic_network_architectures.architectures.unet")
    except ModuleNotFoundError:
        return None
    keywords = dict(plan["architecture"])
    for key in ("conv_op", "norm_op", "nonlin"):
        place, _, name = keywords[key].rpartition(".")
        keywords[key] = getattr(importlib.import_module(place), name)
    channels = plan["nnssl_adaptation_plan"]["pretrain_num_input_channels"]
    return module.ResidualEncoderUNet(
        input_channels=channels, num_classes=2, deep_supervision=False, **keywords
    )


def check(whole: nn.Module, weights: dict[str, Tensor], plan: dict[str, Any]) -> str:
    """Loads the weights into nnU-Net's own network; what was found, or SystemExit."""
    theirs = original(plan)
    if theirs is None:
        return "not compared with nnU-Net's own network: dynamic-network-architectures is missing"
    found = theirs.load_state_dict(weights, strict=False)
    if found.unexpected_keys or any("seg_layers" not in name for name in found.missing_keys):
        raise SystemExit(f"nnU-Net's network: {found.missing_keys}, {found.unexpected_keys}")
    totals = [1] * len(plan["architecture"]["strides"][0])
    for strides in plan["architecture"]["strides"]:
        totals = [total * stride for total, stride in zip(totals, strides, strict=True)]
    channels = plan["nnssl_adaptation_plan"]["pretrain_num_input_channels"]
    # Its mean pools need sizes that the strides divide.
    x = torch.randn(1, channels, *(2 * total for total in totals))
    with torch.no_grad():
        pairs = zip(theirs.eval().encoder(x), whole.encoder(reversed_axes(x)), strict=True)
        shares = [(reversed_axes(a) - b).abs().max() / b.abs().max() for a, b in pairs]
    worst = float(max(shares))
    if not worst <= TOLERANCE:
        raise SystemExit(f"nnU-Net's network differs by {worst:.1e}")
    return f"nnU-Net's own network has all weights; largest difference {worst:.1e}"


def main() -> None:
    """Writes the checkpoint once it is checked."""
    plan = json.loads((HERE / "adaptation_plan.json").read_text())
    whole = network()
    weights = nnunet_weights(whole.state_dict())
    print(check(whole, weights, plan))
    checkpoint = {
        "network_weights": weights,
        "nnssl_adaptation_plan": plan["nnssl_adaptation_plan"],
        "citations": plan["citations"],
    }
    target = HERE / "checkpoint_final.pth"
    torch.save(checkpoint, target)
    torch.load(target, weights_only=True)
    print(f"{target}: {len(weights)} arrays")


if __name__ == "__main__":
    main()
