"""Any tree of volumes or of pictures; labels in a second tree under the same names."""

from __future__ import annotations

from pathlib import Path

from ssl3d.data.layouts.listing import (
    Listing,
    Options,
    Source,
    SourceCase,
    finish,
    id_of,
    labels_below,
)
from ssl3d.data.readers import PICTURE_SUFFIXES, VOLUME_SUFFIXES, suffix
from ssl3d.errors import UserError


def find(folder: Path, options: Options) -> Listing:
    """One case per file; labels from `options.labels`, or from `labels/` beside `images/`.

    Raises `UserError`.
    """
    source = Source(folder)
    images, labels = folder, options.labels
    if labels is None and (folder / "images").is_dir() and (folder / "labels").is_dir():
        images, labels = folder / "images", folder / "labels"
    files = [
        path
        for path in source.files(images, VOLUME_SUFFIXES + PICTURE_SUFFIXES)
        if labels is None or not path.is_relative_to(labels)
    ]
    volumes = [path for path in files if suffix(path) in VOLUME_SUFFIXES]
    if volumes and len(volumes) < len(files):
        picture = next(path for path in files if path not in volumes)
        raise UserError(
            f"{folder}: holds volumes ({volumes[0].name}) and pictures ({picture.name}); "
            "give a folder of one kind"
        )
    by_name = {id_of(path.relative_to(images)): path for path in files}
    found = labels_below(source, labels)
    if labels is not None:
        for name in sorted(set(by_name) - set(found)):
            source.note(by_name[name], "no label of this name; used as unlabelled")
    for name in sorted(set(found) - set(by_name)):
        source.problem(found[name], "a label without an image of this name")
    cases = []
    for path in files:
        name = id_of(path.relative_to(images))
        cases.append(SourceCase(name, name, ((path,),), found.get(name)))
    return finish(
        source,
        options,
        cases=cases,
        splits_by="case",
        name=folder.resolve().name,
        rank=3 if volumes else 2,
        modalities=None,
        classes=None,
    )
