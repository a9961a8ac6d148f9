"""Exports a pretrained encoder, or a trained segmentation, for PyTorch, MONAI, nnU-Net or the hub.

    python -m ssl3d.export --workdir=RUN --format=torch|nnunet|monai|hub --output=DIR
                           [--model=best|last] [--licence=NAME] [--upload=OWNER/NAME]

torch   encoder.safetensors in PyTorch's names and layout, and encoder.py, a module of the network
        that needs torch and safetensors alone: `from encoder import load`
nnunet  the same, and a script that writes checkpoint_final.pth for `nnUNetv2_train
        -pretrained_weights` and for the fine-tuning of nnssl; for encoder.kind=resenc
monai   a MONAI bundle that builds the network of `torch`
hub     the same as torch, or nnunet where it can be, with a model card; --upload sends it to the
        Hugging Face hub

With --model, the network of a segmentation is exported: network.* in place of encoder.*. Each
folder holds an input and the outputs that it must have, and `load` compares them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ssl3d import cli
from ssl3d.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError`."""
    parser = cli.Parser(prog="python -m ssl3d.export", description=__doc__)
    add = parser.add_argument
    add("--workdir", required=True, type=cli.path, help="folder of a run, or of an encoder")
    add("--format", required=True, choices=("torch", "nnunet", "monai", "hub"), dest="kind")
    add("--output", required=True, type=cli.path, help="new folder for the export")
    add("--model", default="", choices=("best", "last"), help="the network of a segmentation run")
    add("--licence", default="unknown", help="hub: the licence's name there, e.g. cc-by-4.0")
    add("--upload", default="", metavar="OWNER/NAME", help="hub: upload the folder")
    options = parser.parse_args(arguments)
    if options.kind != "hub" and (options.upload or options.licence != "unknown"):
        raise UserError("--licence and --upload: are for --format=hub")
    from ssl3d.exchange import folders  # loads jax, which --help does without

    with cli.disk_errors(options.output):
        print(folders.export(**vars(options)))


if __name__ == "__main__":
    cli.run(main)
