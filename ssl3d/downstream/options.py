"""The options that every command with predictions has. Importing this module imports no JAX."""

from __future__ import annotations

from ssl3d import cli
from ssl3d.training import model_kinds


def add_options(parser: cli.Parser) -> None:
    """Adds `--model`, `--mirror` and `--overlap`, as `predictor.load` takes them."""
    add = parser.add_argument
    add(
        "--model",
        choices=model_kinds.KINDS,
        default="best",
        help="the model of the best validation score, or of the run's end (default: best)",
    )
    add("--mirror", action="store_true", help="average over images mirrored as in training")
    add(
        "--overlap",
        type=float,
        metavar="SHARE",
        help="overlap of neighbouring sliding windows as a share of their side, in [0, 1) "
        "(default: as in the run's config)",
    )
