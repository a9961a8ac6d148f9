"""A linear probe: how much of the labels a linear readout recovers from a frozen encoder.

    python -m ssl3d.probe --config=segment3d[:DATASET]
                          --config.init.encoder=RUN [--config.data.label_fraction=0.1]
                          [--split=test] [--output=FILE.json] [--config.key=value ...]

Ridge regression in closed form from features to one-hot classes, without steps or a learning rate.
Three rows: the pretrained encoder, the same network with random weights (of config.seed), and no
network at all. The penalty is selected on the validation split.

Segmentation: the features of a voxel are all levels of the encoder, interpolated linearly; without
a network, its intensities. A voxel's weight is the root of the inverse frequency of its class. The
margin by which a foreground class must exceed the background is selected with the penalty, by mean
foreground Dice. Scores are those of the prepared grid, for classes even where config.task.regions
names regions.

Classification: the features of an image are the mean and the maximum of the bottleneck; without a
network, the most frequent class is predicted. The penalty is selected by the score of
config.task.select_by.
"""

from __future__ import annotations

from collections.abc import Sequence

from ssl3d import cli
from ssl3d.data.cases import LABELLED_SPLITS


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError`."""
    parser = cli.Parser(prog="python -m ssl3d.probe", description=__doc__, epilog=cli.CONFIG_HELP)
    add = parser.add_argument
    add(
        "--split",
        default="test",
        choices=LABELLED_SPLITS,
        help="cases to score (default: test)",
    )
    add("--output", type=cli.path, help="JSON file for all numbers")
    options, config = cli.parse_with_config(parser, arguments)
    from ssl3d.downstream import linear_probe  # loads jax, which --print_config does without

    with cli.disk_errors(options.output or ""):
        if options.output:
            # Before minutes of work whose numbers could not be written.
            cli.check_file(options.output, "FILE.json")
            options.output.parent.mkdir(parents=True, exist_ok=True)
        document = linear_probe.probe(config, options.split)
        if options.output:
            linear_probe.write(document, options.output)


if __name__ == "__main__":
    cli.run(main)
