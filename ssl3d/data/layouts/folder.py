"""Any tree of volumes or of pictures; labels in a second tree, or beside the images."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeGuard

from ssl3d.data.layouts.listing import (
    LABEL_ENDING,
    Listing,
    Options,
    Source,
    SourceCase,
    finish,
    id_of,
    labels_below,
    name_of,
)
from ssl3d.data.readers import PICTURE_SUFFIXES, VOLUME_SUFFIXES, stem, suffix
from ssl3d.errors import UserError

# Names of label files and of folders of them, where no second tree holds the labels.
LABEL_NAME = re.compile(
    r"((.*[._ -])?(labels?|labelmaps?|seg|segm|segmentations?|masks?|msk|gt|ground[._ -]?truth|"
    r"annotations?|manual|rois?|lesions?|wmh)|(?-i:.*[a-z0-9](Labels?|Seg|Segmentation|Mask|ROI)))"
    r"([._ -]?\d+)?",
    re.IGNORECASE,
)
LABEL_FOLDER = re.compile(
    r"labels?([._-]?t[rs])?|seg(mentation)?s?|masks?|gt|annotations?", re.IGNORECASE
)


def find(folder: Path, options: Options) -> Listing:
    """One case per image.

    Labels are in the folder `options.labels`, or in `labels/` beside `images/`, under the same
    names; else they match the pattern `options.labels`, or are called labels, beside their images.

    Raises `UserError`.
    """
    source = Source(folder, options.follow_links)
    pattern = None
    images, labels = folder, options.labels
    if is_pattern(labels):
        pattern, labels = str(labels), None
    elif labels is None and (folder / "images").is_dir() and (folder / "labels").is_dir():
        images, labels = folder / "images", folder / "labels"
    files = [
        path
        for path in source.files(images, VOLUME_SUFFIXES + PICTURE_SUFFIXES)
        if labels is None or not path.is_relative_to(labels)
    ]
    files, rank = _of_one_kind(source, files, options.rank)
    if labels is None:
        pairs = _beside(source, files, options.images, pattern)
    else:
        files = [path for path in files if _matches(source, path, options.images)]
        pairs = dict.fromkeys(files)
        if not options.no_labels:
            pairs = _in_two_trees(source, files, images, labels)
    cases = []
    for path, label in pairs.items():
        name = id_of(path.relative_to(images))
        cases.append(SourceCase(name, name, ((path,),), label))
    return finish(
        source,
        options,
        cases=cases,
        splits_by="case",
        name=folder.resolve().name,
        rank=rank,
        modalities=None,
        classes=None,
    )


def is_pattern(path: Path | None) -> TypeGuard[Path]:
    """Whether an option names files by a pattern."""
    if path is None or path.is_dir():
        return False
    return bool(suffix(path)) or any(letter in str(path) for letter in "*?[")


def _matches(source: Source, path: Path, pattern: str | None) -> bool:
    """Whether the path below the source, or the end of it, matches a pattern."""
    if pattern is None:
        return True
    name = source.relative(path) if path.is_relative_to(source.folder) else path.name
    return fnmatch(name, pattern) or fnmatch(name, f"*/{pattern}")


def _of_one_kind(source: Source, files: list[Path], rank: int | None) -> tuple[list[Path], int]:
    """The volumes or the pictures, whichever there are, or the user's recipe is for; and 3 or 2."""
    volumes = [path for path in files if suffix(path) in VOLUME_SUFFIXES]
    others = [path for path in files if suffix(path) not in VOLUME_SUFFIXES]
    if volumes and others:
        if rank is None:
            source.refuse(
                f"holds volumes ({volumes[0].name}) and pictures ({others[0].name}); "
                "choose with --recipe, or give a folder of one kind"
            )
        left_out, what = (others, "pictures") if rank == 3 else (volumes, "volumes")
        source.note(
            left_out[0],
            f"left out: {len(left_out)} {what} like this one, as --recipe is not for them",
        )
        return (volumes if rank == 3 else others), rank
    return files, 2 if others else 3


def _in_two_trees(
    source: Source, files: Sequence[Path], images: Path, labels: Path
) -> dict[Path, Path | None]:
    """Image -> label of the same name in another tree, else of the same numbers."""
    found = labels_below(source, labels)
    by_name = {name_of(path.relative_to(images)): path for path in files}
    # nnU-Net numbers the channels of an image, not its label.
    for name in sorted(set(found) - set(by_name)):
        if f"{name}_0000" in by_name.keys() - found.keys():
            found[f"{name}_0000"] = found.pop(name)
    numbered = _by_numbers(set(by_name) - set(found), set(found) - set(by_name))
    for name, other in numbered.items():
        found[name] = found.pop(other)
    if numbered:
        first = min(numbered)
        pair = f"{by_name[first].name} and {found[first].name}"
        source.note(labels, f"{len(numbered)} labels found by their numbers alone (first: {pair})")
    for name in sorted(set(by_name) - set(found)):
        source.note(by_name[name], "no label of this name; used as unlabelled")
    for name in sorted(set(found) - set(by_name)):
        source.problem(found[name], "a label without an image of this name")
    return {path: found.get(name_of(path.relative_to(images))) for path in files}


def _by_numbers(images: set[str], labels: set[str]) -> dict[str, str]:
    """Image -> label, of names of one folder that alone have the same numbers."""
    groups: dict[tuple[Path, tuple[int, ...]], tuple[list[str], list[str]]]
    groups = defaultdict(lambda: ([], []))
    for kind, names in enumerate((images, labels)):
        for name in names:
            numbers = tuple(map(int, re.findall(r"\d+", Path(name).name)))
            groups[Path(name).parent, numbers][kind].append(name)
    return {
        own[0]: other[0]
        for (_, numbers), (own, other) in groups.items()
        if numbers and len(own) == len(other) == 1
    }


def _beside(
    source: Source, files: Sequence[Path], images: str | None, labels: str | None
) -> dict[Path, Path | None]:
    """Image -> label in the same folder or in one below it, by patterns or by names."""
    chosen = [path for path in files if images is not None and _matches(source, path, images)]
    if labels is not None:
        maps = [path for path in files if path not in chosen and _matches(source, path, labels)]
    else:
        maps = [path for path in files if path not in chosen and _is_called_label(source, path)]
    if images is None:
        taken = set(maps)
        chosen = [path for path in files if path not in taken]
        if not chosen and labels is None:
            chosen, maps = maps, []  # a collection of such names has no others
        if labels is not None:
            named = [path for path in chosen if _is_called_label(source, path)]
            for path in named:
                source.note(path, "left out: named like a label, but not of --labels")
            chosen = [path for path in chosen if path not in set(named)]
    if labels is not None and not maps:
        raise UserError(f"--labels={labels}: matches no file in {source.folder}")
    if images is not None and not chosen:
        raise UserError(f"--images={images}: matches no file in {source.folder}")
    owners = _owners(chosen, maps)
    pairs: dict[Path, Path | None] = dict.fromkeys(chosen)
    by_image: dict[Path, list[Path]] = defaultdict(list)
    for path in maps:
        owner = owners.get(path)
        if owner is None:
            source.note(
                path,
                "left out: named like a label, without an image to it; if it is an image, say "
                "--images=PATTERN",
            )
        else:
            by_image[owner].append(path)
    for image, own in by_image.items():
        if len(own) == 1:
            pairs[image] = own[0]
        else:
            source.note(
                image,
                f"used as unlabelled: {len(own)} label files ({own[0].name}, {own[1].name}, ...); "
                "choose one with --labels=PATTERN, or merge them into one label map",
            )
    if by_image:
        for image in chosen:
            if image not in by_image:
                source.note(image, "no label beside it; used as unlabelled")
    return pairs


def _is_called_label(source: Source, path: Path) -> bool:
    """Whether the name of a file, or of a folder below the source that holds it, says label."""
    folders = path.relative_to(source.folder).parent.parts
    return bool(LABEL_NAME.fullmatch(stem(path))) or any(map(LABEL_FOLDER.fullmatch, folders))


def _owners(images: Sequence[Path], labels: Sequence[Path]) -> dict[Path, Path]:
    """Label -> its image.

    In the same folder, or the nearest above: the one that its name continues, else the only one
    that continues its name, or has its numbers, else the only one. Else the only one of its name,
    in whatever folder. Else, in the folders beside its own, the only one of its numbers or at all.
    """
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    by_place: dict[Path, list[Path]] = defaultdict(list)
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        by_folder[path.parent].append(path)
        by_place[path.parent.parent].append(path)
        by_name[name_of(Path(path.name))].append(path)
    owners = {}
    for label in labels:
        near = next((by_folder[place] for place in label.parents if place in by_folder), [])
        name = name_of(Path(LABEL_ENDING.sub("", stem(label)) + suffix(label)))
        beside = [path for path in by_place[label.parent.parent] if path.parent != label.parent]
        for candidates in (
            _longest([path for path in near if _continues(label, path)]),
            [path for path in near if name_of(Path(path.name)).startswith(f"{name}_")],
            [path for path in near if _numbers(path) == _numbers(label) != []],
            near if len(near) == 1 and not (_numbers(label) and _numbers(near[0])) else [],
            by_name.get(name, []),
            [path for path in beside if _numbers(path) == _numbers(label) != []],
            beside if len(beside) == 1 and not _numbers(label) else [],
        ):
            if len(candidates) == 1:
                owners[label] = candidates[0]
                break
    return owners


def _continues(label: Path, image: Path) -> bool:
    """Whether a label is called like an image, apart from an ending."""
    own, other = name_of(Path(label.name)), name_of(Path(image.name))
    # nnU-Net numbers the channels of an image, not its label.
    other = re.sub(r"_0000$", "", other)
    after = own[len(other) : len(other) + 1]
    return own == other or (own.startswith(other) and (after in "._- " or after.isupper()))


def _longest(images: list[Path]) -> list[Path]:
    return [max(images, key=lambda path: len(stem(path)))] if images else []


def _numbers(path: Path) -> list[str]:
    return re.findall(r"\d+", stem(path))
