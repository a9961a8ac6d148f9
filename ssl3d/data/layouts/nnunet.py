"""nnU-Net v2: dataset.json, imagesTr/CASE_0000.nii.gz (channel 0), labelsTr/CASE.nii.gz.

Pictures too, where "file_ending" says so.
"""

from __future__ import annotations

import re
from pathlib import Path

from ssl3d.data.layouts import dataset_json
from ssl3d.data.layouts.listing import Listing, Options, Source, SourceCase, finish
from ssl3d.data.layouts.survey import Survey
from ssl3d.data.readers import PICTURE_SUFFIXES, VOLUME_SUFFIXES, stem, suffix
from ssl3d.errors import UserError

COLOURS = 3


def find(folder: Path, options: Options) -> Listing:
    """Every case of imagesTr and imagesTs. Raises `UserError`."""
    source = Source(folder, options.follow_links)
    file = folder / "dataset.json"
    document = dataset_json.read_json(file)
    modalities = options.modalities or dataset_json.numbered(file, document, "channel_names")
    ending = document.get("file_ending", ".nii.gz")
    known = VOLUME_SUFFIXES + PICTURE_SUFFIXES
    if suffix(Path(f"x{ending}")) not in known:
        raise UserError(f'{file}: "file_ending" {ending!r} is none of {", ".join(known)}')
    pictures = suffix(Path(f"x{ending}")) in PICTURE_SUFFIXES
    suffixes = PICTURE_SUFFIXES if pictures else VOLUME_SUFFIXES
    labels: dict[str, Path] = {}
    if (folder / "labelsTr").is_dir() and not options.no_labels:
        for path in source.files(folder / "labelsTr", suffixes):
            source.put(labels, stem(path), path)
    cases: list[SourceCase] = []
    for part in ("imagesTr", "imagesTs"):
        if not (folder / part).is_dir():
            continue
        channels: dict[str, dict[int, Path]] = {}
        for path in source.files(folder / part, suffixes):
            match = re.fullmatch(r"(.+)_(\d{4})", stem(path))
            if match:
                source.put(channels.setdefault(match[1], {}), int(match[2]), path)
            else:
                source.problem(path, "the name does not end in a channel number like _0000")
        for name, paths in channels.items():
            label = labels.pop(name, None) if part == "imagesTr" else None
            # A colour picture is one file with all its channels.
            colour = pictures and len(modalities) == COLOURS and set(paths) == {0}
            count = 1 if colour else len(modalities)
            missing = [i for i in range(count) if i not in paths]
            if missing:
                wanted = f"{name}_{missing[0]:04d}{ending}"
                source.problem(
                    folder / part / wanted, f"missing channel ({modalities[missing[0]]}) of {name}"
                )
                continue
            if len(paths) > count:
                extra = paths[max(paths)]
                source.problem(extra, f"dataset.json names only {len(modalities)} channels")
                continue
            if part == "imagesTr" and label is None and not options.no_labels:
                source.note(name, "no label in labelsTr; used as unlabelled")
            images = tuple((paths[i],) for i in range(count))
            cases.append(SourceCase(name, name, images, label))
    for path in labels.values():
        source.problem(path, "a label without an image in imagesTr")
    return finish(
        source,
        options,
        cases=cases,
        splits_by="case",
        name=re.sub(r"Dataset\d+_", "", str(document.get("name", folder.name))),
        rank=2 if pictures else 3,
        modalities=modalities,
        classes=dataset_json.classes(options, dataset_json.nnunet_classes, file, document),
    )


def evidence(found: Survey) -> str:
    """See `recognise`."""
    return 'dataset.json with "channel_names"' if "channel_names" in found.document else ""
