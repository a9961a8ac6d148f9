"""Medical Segmentation Decathlon: dataset.json, imagesTr, labelsTr, imagesTs."""

from __future__ import annotations

import json
from pathlib import Path

from ssl3d.data.layouts import dataset_json
from ssl3d.data.layouts.listing import Listing, Options, Source, SourceCase, finish
from ssl3d.data.layouts.survey import Survey
from ssl3d.data.readers import VOLUME_SUFFIXES, stem, suffix
from ssl3d.errors import UserError


def find(folder: Path, options: Options) -> Listing:
    """The cases that dataset.json lists. Raises `UserError`."""
    source = Source(folder, options.follow_links)
    file = folder / "dataset.json"
    document = dataset_json.read_json(file)
    cases: list[SourceCase] = []
    listed: set[Path] = set()
    for key in ("training", "test"):
        entries = document.get(key, [])
        if not isinstance(entries, list):
            raise UserError(f'{file}: "{key}" is not a list')
        for entry in entries:
            entry = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                source.problem(file, f'an entry of "{key}" names no image: {json.dumps(entry)}')
                continue
            image = folder / entry["image"]
            labelled = isinstance(entry.get("label"), str)
            label = folder / entry["label"] if labelled else None
            listed |= {image, label} if label else {image}
            if not source.inside(image):
                continue
            if options.no_labels or (label and not source.inside(label)):
                label = None
            if suffix(image) not in VOLUME_SUFFIXES:
                source.problem(image, f"none of {', '.join(VOLUME_SUFFIXES)}; convert the file")
                continue
            if key == "training" and not labelled and not options.no_labels:
                source.note(image, "no label; used as unlabelled")
            cases.append(SourceCase(stem(image), stem(image), ((image,),), label))
    for path in source.files(folder, VOLUME_SUFFIXES):
        if path not in listed:
            source.note(path, "not listed in dataset.json; left out")
    return finish(
        source,
        options,
        cases=cases,
        splits_by="case",
        name=str(document.get("name", folder.name)),
        rank=3,
        modalities=options.modalities or dataset_json.numbered(file, document, "modality"),
        classes=dataset_json.classes(options, dataset_json.msd_classes, file, document),
    )


def evidence(found: Survey) -> str:
    """See `recognise`."""
    listed = isinstance(found.document.get("training"), list)
    return 'dataset.json with "training" and "modality"' if listed else ""
