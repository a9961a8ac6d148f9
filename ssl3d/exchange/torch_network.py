"""A network that ssl3d pretrained, in PyTorch. This file needs torch and safetensors, nothing else.

    from encoder import load
    encoder = load()                # levels = encoder(x), full resolution first; x is [B, C, *S]
    network = load(classes=3)       # the encoder with a new decoder: logits = network(x)

`python encoder.py` compares the network with the outputs that were recorded when it was exported;
`load` does so too. Arrays: B batch, C channels, K classes, *S spatial, two or three axes.

Sizes are rounded up wherever they are halved, so that any size will do. A folder that holds a
segmentation network has `network.py` in place of `encoder.py`, whose `load()` returns it whole.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

try:
    import torch
    from safetensors.torch import load_file
    from torch import Tensor, nn
    from torch.nn import functional
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"{error}; install what is needed: pip install torch safetensors") from None

NAME = Path(__file__).stem  # encoder or network
TOLERANCE = 1e-4  # largest difference from the reference, as a share of its largest value


def by_rank(name: str, rank: int) -> Any:
    """torch.nn's class of that name for 2D or 3D images."""
    return getattr(nn, f"{name}{rank}d")


def make_norm(kind: str, channels: int, rank: int) -> nn.Module:
    """Group, instance or batch norm with a scale and shift per channel."""
    if kind == "instance":
        return by_rank("InstanceNorm", rank)(channels, eps=1e-5, affine=True)
    if kind == "batch":
        return by_rank("BatchNorm", rank)(channels, eps=1e-3, momentum=0.01)
    most = max(1, min(8, channels // 4))
    groups = next(count for count in range(most, 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels, eps=1e-5)


def same_conv(rank: int, inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> Any:
    """Convolution of stride 1 that keeps the size."""
    return by_rank("Conv", rank)(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def cut(x: Tensor, like: Tensor) -> Tensor:
    """x without the voxels beyond the size of `like`."""
    return x[(..., *(slice(0, side) for side in like.shape[2:]))]


class PlainConv(nn.Module):
    """Convolution, norm, ReLU; or convolution, ReLU, norm."""

    def __init__(self, rank: int, inputs: int, outputs: int, bias: bool, settings: dict) -> None:
        super().__init__()
        self.conv = same_conv(rank, inputs, outputs, bias=bias)
        self.norm = make_norm(settings["norm"], outputs, rank)
        self.activation_first = settings["activation_first"]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norm(x.relu()) if self.activation_first else self.norm(x).relu()


class PlainLevel(nn.Module):
    """Two convolutions with dropout in between (kind unet)."""

    def __init__(self, rank: int, inputs: int, outputs: int, settings: dict) -> None:
        super().__init__()
        self.first = PlainConv(rank, inputs, outputs, True, settings)
        self.dropout = nn.Dropout(settings["dropout"])
        self.second = PlainConv(rank, outputs, outputs, True, settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.dropout(self.first(x)))


class ResidualLevel(nn.Module):
    """Two convolutions with a shortcut, which has no norm (kind resunet)."""

    def __init__(self, rank: int, inputs: int, outputs: int, settings: dict) -> None:
        super().__init__()
        self.first = PlainConv(rank, inputs, outputs, False, settings)
        self.dropout = nn.Dropout(settings["dropout"])
        self.second_conv = same_conv(rank, outputs, outputs, bias=False)
        self.second_norm = make_norm(settings["norm"], outputs, rank)
        if inputs != outputs:
            self.shortcut = same_conv(rank, inputs, outputs, kernel=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second_norm(self.second_conv(self.dropout(self.first(x))))
        return (y + (self.shortcut(x) if hasattr(self, "shortcut") else x)).relu()


class UNetEncoder(nn.Module):
    """Plain levels with max pooling, or residual levels with learned downsampling."""

    def __init__(self, rank: int, channels: int, settings: dict, residual: bool) -> None:
        super().__init__()
        self.rank, self.residual, self.settings = rank, residual, settings
        self.pool = by_rank("MaxPool", rank)(2, ceil_mode=True)
        self.channels = [settings["width"] * 2**i for i in range(settings["depth"])]
        for i, outputs in enumerate(self.channels):
            inputs = self.channels[i - 1] if i else channels
            if residual and i:
                down = by_rank("Conv", rank)(inputs, outputs, 2, stride=2, bias=False)
                self.add_module(f"down_{i}", down)
                inputs = outputs
            level = ResidualLevel if residual else PlainLevel
            self.add_module(f"level_{i}", level(rank, inputs, outputs, settings))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for i in range(len(self.channels)):
            if i and self.residual:
                missing = [count for side in reversed(x.shape[2:]) for count in (0, side % 2)]
                x = self.get_submodule(f"down_{i}")(functional.pad(x, missing))
            elif i:
                x = self.pool(x)
            x = self.get_submodule(f"level_{i}")(x)
            levels.append(x)
        if self.settings["final_pool"] == "max":
            levels[-1] = self.pool(x)
        return levels


class UNetDecoder(nn.Module):
    """Features of a `UNetEncoder` -> logits at 1 + `deep` resolutions, finest first."""

    def __init__(self, encoder: UNetEncoder, classes: int, deep: int) -> None:
        super().__init__()
        rank, settings, self.deep = encoder.rank, encoder.settings, deep
        self.count = len(encoder.channels) - 1
        for i in reversed(range(self.count)):
            below, channels = encoder.channels[i + 1], encoder.channels[i]
            up = by_rank("ConvTranspose", rank)(
                below, channels, 2, stride=2, bias=settings["activation_first"]
            )
            self.add_module(f"up_{i}", up)
            level = ResidualLevel if encoder.residual else PlainLevel
            self.add_module(f"level_{i}", level(rank, 2 * channels, channels, settings))
            if i <= deep:
                self.add_module(f"logits_{i}", same_conv(rank, channels, classes, kernel=1))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        *skips, x = levels
        logits = []
        for i in reversed(range(self.count)):
            skip = skips[i]
            if any(2 * a < b for a, b in zip(x.shape[2:], skip.shape[2:], strict=True)):
                x = functional.interpolate(x, scale_factor=2)  # the encoder pooled once more
            x = cut(self.get_submodule(f"up_{i}")(x), skip)
            x = self.get_submodule(f"level_{i}")(torch.cat([skip, x], 1))
            if i <= self.deep:
                logits.append(self.get_submodule(f"logits_{i}")(x))
        return logits[::-1]


class ConvNorm(nn.Module):
    """Convolution, norm and, if it is active, leaky ReLU (kind resenc)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, ...], settings: dict,
        strides: tuple[int, ...] | int = 1, bias: bool = True, active: bool = True,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        rank, padding = len(kernel), tuple(side // 2 for side in kernel)
        self.conv = by_rank("Conv", rank)(inputs, outputs, kernel, strides, padding, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(settings["norm"], outputs, rank)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.dropout(self.conv(x)))
        return functional.leaky_relu(x, 0.01) if self.active else x


class Block(nn.Module):
    """Two convolutions; the shortcut averages over the stride and is projected."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, ...], strides: tuple[int, ...],
        settings: dict,
    ) -> None:  # fmt: skip
        super().__init__()
        rank, dropout = len(kernel), settings["dropout"]
        self.conv1 = ConvNorm(inputs, outputs, kernel, settings, strides, dropout=dropout)
        self.conv2 = ConvNorm(outputs, outputs, kernel, settings, active=False)
        parts: list[nn.Module] = []
        if max(strides) > 1:
            parts.append(by_rank("AvgPool", rank)(strides, strides, ceil_mode=True))
        if inputs != outputs:
            one = (1,) * rank
            parts.append(ConvNorm(inputs, outputs, one, settings, bias=False, active=False))
        self.skip = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), 0.01)


class Stage(nn.Module):
    """Modules in a row, under the name that nnU-Net gives them."""

    def __init__(self, name: str, modules: list[nn.Module]) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Sequential(*modules))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x)


class ResidualEncoder(nn.Module):
    """nnU-Net's residual encoder, with its names (kind resenc)."""

    def __init__(self, rank: int, channels: int, settings: dict) -> None:
        super().__init__()
        depth, most = settings["depth"], settings["max_width"] or {2: 512, 3: 320}[rank]
        blocks = settings["blocks"] or ([1, 3, 4] + [6] * depth)[:depth]
        strides = settings["strides"] or [(1,) * rank, *[(2,) * rank] * (depth - 1)]
        kernels = settings["kernels"] or [(3,) * rank] * depth
        self.settings = settings
        self.kernels, self.strides = ([tuple(axes) for axes in a] for a in (kernels, strides))
        self.channels = [min(settings["width"] * 2**i, most) for i in range(depth)]
        inputs, dropout = self.channels[0], settings["dropout"]
        stem = ConvNorm(channels, inputs, self.kernels[0], settings, dropout=dropout)
        self.stem = Stage("convs", [stem])
        stages = []
        for i, outputs in enumerate(self.channels):
            parts: list[nn.Module] = []
            for j in range(blocks[i]):
                stride = (1,) * rank if j else self.strides[i]
                parts.append(Block(inputs, outputs, self.kernels[i], stride, settings))
                inputs = outputs
            stages.append(Stage("blocks", parts))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, levels = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


class ResidualEncoderDecoder(nn.Module):
    """nnU-Net's decoder: logits at 1 + `deep` resolutions, finest first."""

    def __init__(self, encoder: ResidualEncoder, classes: int, deep: int) -> None:
        super().__init__()
        settings, widths, self.deep = encoder.settings, encoder.channels, deep
        rank, order = len(encoder.kernels[0]), list(reversed(range(len(widths) - 1)))
        transposed = by_rank("ConvTranspose", rank)
        self.transpconvs = nn.ModuleList(
            transposed(widths[i + 1], widths[i], encoder.strides[i + 1], encoder.strides[i + 1])
            for i in order
        )
        self.stages = nn.ModuleList(
            Stage("convs", [ConvNorm(2 * widths[i], widths[i], encoder.kernels[i], settings,
                                     dropout=settings["dropout"])])
            for i in order
        )  # fmt: skip
        for i in range(min(deep + 1, len(order))):
            self.add_module(f"logits_{i}", same_conv(rank, widths[i], classes, kernel=1))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        *skips, x = levels
        logits = []
        for number, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            i = len(skips) - 1 - number
            skip = skips[i]
            x = stage(torch.cat([cut(up(x), skip), skip], 1))
            if i <= self.deep:
                logits.append(self.get_submodule(f"logits_{i}")(x))
        return logits[::-1]


class SegmentationNetwork(nn.Module):
    """Images [B, C, *S] -> logits [B, K, *S]; `all_logits` also returns those at coarser levels."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def all_logits(self, x: Tensor) -> list[Tensor]:
        return self.decoder(self.encoder(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.all_logits(x)[0]


ENCODERS: dict[str, Any] = {
    "unet": functools.partial(UNetEncoder, residual=False),
    "resunet": functools.partial(UNetEncoder, residual=True),
    "resenc": ResidualEncoder,
}
DECODERS: dict[str, Any] = {
    "unet": UNetDecoder,
    "resunet": UNetDecoder,
    "resenc": ResidualEncoderDecoder,
}


def build(config: dict[str, Any], classes: int = 0) -> nn.Module:
    """The module that the JSON of an export describes, with random weights.

    Args:
      classes: of a decoder for an encoder; a segmentation network has its own.
    """
    kind = config["encoder"]["kind"]
    encoder = ENCODERS[kind](config["rank"], config["channels"], config["encoder"])
    outputs = config.get("outputs", classes)
    if not outputs:
        return encoder
    return SegmentationNetwork(encoder, DECODERS[kind](encoder, outputs, config.get("deep", 0)))


def largest_difference(module: nn.Module, reference: dict[str, Tensor]) -> float:
    """From the recorded outputs, as a share of their largest value."""
    training = module.training
    with torch.no_grad():
        run = getattr(module.eval(), "all_logits", module)
        outputs = run(reference["input"])
    module.train(training)
    wanted = [reference[f"output_{i}"] for i in range(len(reference) - 1)]
    if [tuple(a.shape) for a in outputs] != [tuple(b.shape) for b in wanted]:
        return math.inf
    shares = (
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(outputs, wanted, strict=True)
    )
    return max(share if share == share else math.inf for share in shares)


def load(
    folder: str | Path = Path(__file__).parent, classes: int = 0, check: bool = True
) -> nn.Module:
    """The network with its weights, in evaluation mode.

    Args:
      folder: of the export; that of this file.
      classes: adds a new decoder with so many outputs to an exported encoder.
      check: compares the outputs with those recorded at export.

    Raises:
      ValueError: the files do not belong together, or the outputs differ.
    """
    folder = Path(folder)
    config = json.loads((folder / f"{NAME}.json").read_text())
    weights = folder / f"{NAME}.safetensors"
    if hashlib.sha256(weights.read_bytes()).hexdigest() != config["sha256"]:
        raise ValueError(f"{weights}: damaged, or of another export (the checksums differ)")
    module = build(config)
    found = module.load_state_dict(load_file(weights), strict=False)
    missing = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or found.unexpected_keys:
        raise ValueError(f"{weights}: missing {missing}, unknown {found.unexpected_keys}")
    if check:
        difference = largest_difference(module, load_file(folder / "reference.safetensors"))
        if difference > TOLERANCE:
            raise ValueError(f"{weights}: differs from its reference by {difference:.1e}")
    if classes and "outputs" not in config:
        decoder = DECODERS[config["encoder"]["kind"]](module, classes, 0)
        module = SegmentationNetwork(module, decoder)
    return module.eval()


if __name__ == "__main__":
    here = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    share = largest_difference(load(here, check=False), load_file(here / "reference.safetensors"))
    print(f"{here.resolve().name}: largest difference from the reference {share:.1e}")
    sys.exit(int(share > TOLERANCE))
