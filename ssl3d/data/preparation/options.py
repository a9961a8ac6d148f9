"""Command-line options of `ssl3d.prepare`, and the recipe that they select."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, TypeVar

from ssl3d.cli import Parser, path
from ssl3d.data.layouts import LAYOUTS
from ssl3d.data.layouts.listing import Listing
from ssl3d.data.preparation import recipes
from ssl3d.data.preparation.recipes import RECIPES, Recipe
from ssl3d.errors import UserError

LARGEST_SEED = 2**32 - 1

Number = TypeVar("Number", int, float)


class PreparationOptions(argparse.Namespace):
    """The parsed options; None leaves a choice to the layout or the recipe."""

    layout: str | None
    source: Path
    output: Path
    recipe: str | None
    name: str | None
    labels: Path | None
    no_labels: bool
    follow_links: bool
    images: str | None
    csv: Path | None
    modalities: tuple[str, ...] | None
    classes: dict[int, str] | None
    spacing: tuple[float, ...] | None
    size: tuple[int, ...] | None
    crop: Literal["yes", "no"] | None
    order: Literal["linear", "cubic"] | None
    intensity: recipes.Intensity | None
    window: tuple[float, ...] | None
    splits: Path | None
    val: float | None
    test: float | None
    seed: int
    subject_pattern: str | None
    workers: int | None
    scheduler: str
    on_error: Literal["stop", "skip"]
    export: Literal["nnunet"] | None
    dry_run: bool


def add_options(parser: Parser) -> None:
    """Adds the options of a preparation."""
    add = parser.add_argument
    add("--layout", choices=sorted(LAYOUTS), help="arrangement of the files; default: recognised")
    add("--source", required=True, type=path, help="folder of the collection")
    add("--output", required=True, type=path, help="folder of the prepared data set")
    add(
        "--recipe", choices=sorted(RECIPES), help="default: by the layout and the collection's name"
    )
    add("--name", help="name of the data set; default: the collection's")
    add(
        "--labels",
        type=path,
        metavar="DIR|PATTERN",
        help="folder of the label maps; --layout=folder: or a pattern, e.g. '*_gt.nii.gz'",
    )
    add(
        "--follow-links",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read files behind links that lead out of the source (default)",
    )
    add("--no-labels", action="store_true", help="prepare the images alone, e.g. to pretrain")
    add("--images", metavar="PATTERN", help="--layout=folder: pattern of the images")
    add(
        "--csv",
        type=path,
        metavar="FILE",
        help="table with a name and a grade per image, in place of label maps; --layout=images: by "
        "default the source's only CSV",
    )
    add("--modalities", type=_names, metavar="A,B", help="names of the channels, in order")
    add("--classes", type=_classes, metavar="0:background,1:liver", help="label values and names")
    add("--spacing", type=_floats, metavar="X,Y,Z", help="target spacing in mm; one number for all")
    add("--size", type=_integers, metavar="X,Y,Z", help="target size in voxels; one number for all")
    add("--crop", choices=("yes", "no"), help="crop to the foreground")
    add("--order", choices=("linear", "cubic"), help="interpolation of the image")
    add("--intensity", choices=("window", "zscore", "minmax", "picture"), help="normalisation")
    add("--window", type=_floats, metavar="LOW,HIGH", help="HU, for --intensity=window")
    add("--splits", type=path, metavar="FILE", help="JSON or CSV with your own splits")
    add("--val", type=_fraction, metavar="F", help="fraction of the subjects for validation")
    add("--test", type=_fraction, metavar="F", help="fraction of the subjects for the test")
    add("--seed", type=_seed, default=0, help="seed of the random split (default 0)")
    add(
        "--subject-pattern",
        metavar="REGEX",
        help="regular expression; its group 1, searched in the case id, is the subject",
    )
    add("--workers", type=_count, help="processes (default: all cores)")
    add(
        "--scheduler",
        default="",
        metavar="ADDRESS",
        help="prepare on the Dask cluster of this address, which shares both folders",
    )
    add("--on-error", choices=("stop", "skip"), default="stop", help="skip: exclude invalid cases")
    add("--export", choices=("nnunet",), help="also write OUTPUT/nnunet, raw data for nnU-Net")
    add("--dry-run", action="store_true", help="print the plan and stop")


def choose_recipe(options: PreparationOptions, layout: str, listing: Listing) -> Recipe:
    """The recipe by name or by the collection, with the options' changes.

    Raises:
      UserError: the modality is unknown, or an option does not fit the recipe.
    """
    recipe = RECIPES[options.recipe or recipes.suggest(layout, listing)]
    kinds = {2: "pictures", 3: "volumes"}
    if recipe.rank != listing.rank:
        raise UserError(
            f"--recipe={recipe.name} is for {kinds[recipe.rank]}, but {options.source} holds "
            f"{kinds[listing.rank]}"
        )
    if options.spacing and options.size:
        raise UserError("--spacing and --size exclude each other: a size stretches the image")
    changes: dict[str, Any] = {}
    for name, values in (("spacing", options.spacing), ("size", options.size)):
        if values is not None:
            values = values * recipe.rank if len(values) == 1 else values
            if len(values) != recipe.rank or min(values) <= 0:
                raise UserError(f"--{name}: give one or {recipe.rank} positive numbers")
            changes |= {"spacing": None, "size": None, name: values}
    if options.crop:
        changes["crop"] = options.crop == "yes"
    if options.window:
        if len(options.window) != 2 or options.window[0] >= options.window[1]:
            raise UserError("--window: give two HU values, the lower one first")
        changes["window"] = options.window
    if options.order:
        changes["order"] = options.order
    if options.intensity:
        changes["intensity"] = options.intensity
    fractions = dict(recipe.fractions)
    for split, fraction in (("val", options.val), ("test", options.test)):
        if fraction is not None:
            fractions[split] = fraction
    if sum(fractions.values()) >= 1:
        raise UserError("--val and --test together leave nothing to train on")
    return dataclasses.replace(recipe, fractions=tuple(fractions.items()), **changes)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError("give names separated by commas")
    return names


def _floats(text: str) -> tuple[float, ...]:
    return _numbers(text, float)


def _integers(text: str) -> tuple[int, ...]:
    return _numbers(text, int)


def _numbers(text: str, kind: type[Number]) -> tuple[Number, ...]:
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError("give numbers separated by commas")
    return values


def _number(text: str, kind: type[Number], low: float, high: float, what: str) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def _fraction(text: str) -> float:
    return _number(text, float, 0, math.nextafter(1, 0), "a number between 0 and 1")


def _count(text: str) -> int:
    return _number(text, int, 1, math.inf, "a whole number of at least 1")


def _seed(text: str) -> int:
    return _number(text, int, 0, LARGEST_SEED, f"a whole number of 0 to {LARGEST_SEED}")


def _classes(text: str) -> dict[int, str]:
    pairs = [part.partition(":") for part in text.split(",")]
    try:
        classes = {int(value): name.strip() for value, _, name in pairs}
    except ValueError:
        classes = {}
    if len(classes) < len(pairs) or not all(classes.values()):
        raise argparse.ArgumentTypeError("write 0:background,1:organ, each value once")
    return classes
