"""Where the files are: one function per layout, from a folder to the list of its cases.

Here are the layouts with names and folders of their own; `trees` has those that take any tree.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ssl3d.data.layouts import dataset_json, trees
from ssl3d.data.layouts.listing import Listing, Options, Source, SourceCase, finish, id_of
from ssl3d.data.readers import VOLUME_SUFFIXES, stem, suffix
from ssl3d.errors import UserError

# Order of the channels as in the paper's code, so that its encoders stay comparable.
BRATS_MODALITIES = {
    "T1ce": ("t1ce", "t1c", "t1gd"),
    "FLAIR": ("flair", "t2f"),
    "T1": ("t1", "t1n"),
    "T2": ("t2", "t2w"),
}
# One case of BraTS 2020 has "_Segm" for "_seg".
BRATS_LABELS = ("seg", "segm")
# 4 until 2021 and 3 since 2023 are the same class.
BRATS_CLASSES = {
    0: "background",
    1: "necrosis",
    2: "oedema",
    3: "enhancing tumour",
    4: "enhancing tumour",
}
# Of one subject; the best first: without the skull and the coil's shading where that exists.
UKB_FILES = {
    "T1": ("t1_unbiased_brain", "t1_brain", "t1_unbiased", "t1"),
    "T2-FLAIR": ("t2_flair_unbiased_brain", "t2_flair_brain", "t2_flair_unbiased", "t2_flair"),
}
UKB_MASKS = ("t1_brain_mask", "t2_flair_brain_mask")
BIDS_NAME = re.compile(r"sub-(?P<sub>[^_]+)(_ses-(?P<ses>[^_]+))?(_.+)?_(?P<suffix>[A-Za-z0-9]+)")
BIDS_LABELS = ("dseg", "mask", "seg")
# Options that only some layouts take.
TAKES_LABELS = ("bids", "dicom", "folder")
TAKES_CSV = ("images",)


def list_cases(layout: str, folder: Path, options: Options | None = None) -> Listing:
    """Lists the cases of a source folder.

    Args:
      layout: one of `LAYOUTS`.
      folder: the source.
      options: what the layout cannot find out by itself.

    Raises:
      UserError: the folder is not of that layout at all; what is wrong with single cases is in
        the listing's `problems`.
    """
    options = options or Options()
    for option, value, takers in (
        ("labels", options.labels, TAKES_LABELS),
        ("csv", options.csv, TAKES_CSV),
    ):
        if value is not None and layout not in takers:
            raise UserError(f"--{option} is for --layout={' or '.join(takers)}, not {layout}")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if options.labels is not None:
        if not options.labels.is_dir():
            raise UserError(f"--labels={options.labels}: no such folder")
        options = dataclasses.replace(options, labels=options.labels.resolve())
    # Resolved: `.` has no name, and labels below the source are told by their path.
    return LAYOUTS[layout](folder.resolve(), options)


def msd(folder: Path, options: Options) -> Listing:
    """Medical Segmentation Decathlon: dataset.json, imagesTr, labelsTr, imagesTs."""
    source = Source(folder)
    file = folder / "dataset.json"
    document = dataset_json.read_json(file)
    cases: list[SourceCase] = []
    named: set[Path] = set()
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
            label = folder / entry["label"] if isinstance(entry.get("label"), str) else None
            named |= {image, label} if label else {image}
            if not source.inside(image) or (label and not source.inside(label)):
                continue
            if suffix(image) not in VOLUME_SUFFIXES:
                source.problem(image, f"none of {', '.join(VOLUME_SUFFIXES)}; convert the file")
                continue
            if key == "training" and label is None:
                source.note(image, "no label; used as unlabelled")
            cases.append(SourceCase(stem(image), stem(image), ((image,),), label))
    for path in source.files(folder, VOLUME_SUFFIXES):
        if path not in named:
            source.note(path, "not listed in dataset.json; left out")
    return finish(
        source,
        options,
        cases=cases,
        splits_by="case",
        name=str(document.get("name", folder.name)),
        rank=3,
        modalities=dataset_json.numbered(file, document, "modality"),
        classes=dataset_json.msd_classes(file, document),
    )


def nnunet(folder: Path, options: Options) -> Listing:
    """nnU-Net v2 raw: dataset.json, imagesTr/CASE_0000.nii.gz (channel 0), labelsTr/CASE.nii.gz."""
    source = Source(folder)
    file = folder / "dataset.json"
    document = dataset_json.read_json(file)
    modalities = dataset_json.numbered(file, document, "channel_names")
    ending = document.get("file_ending", ".nii.gz")
    if suffix(Path(f"x{ending}")) not in VOLUME_SUFFIXES:
        raise UserError(f'{file}: "file_ending" {ending!r} is none of {", ".join(VOLUME_SUFFIXES)}')
    labels: dict[str, Path] = {}
    if (folder / "labelsTr").is_dir():
        for path in source.files(folder / "labelsTr", VOLUME_SUFFIXES):
            source.put(labels, stem(path), path)
    cases: list[SourceCase] = []
    for part in ("imagesTr", "imagesTs"):
        if not (folder / part).is_dir():
            continue
        channels: dict[str, dict[int, Path]] = {}
        for path in source.files(folder / part, VOLUME_SUFFIXES):
            match = re.fullmatch(r"(.+)_(\d{4})", stem(path))
            if match:
                source.put(channels.setdefault(match[1], {}), int(match[2]), path)
            else:
                source.problem(path, "the name does not end in a channel number like _0000")
        for name, paths in channels.items():
            label = labels.pop(name, None) if part == "imagesTr" else None
            missing = [i for i in range(len(modalities)) if i not in paths]
            if missing:
                wanted = f"{name}_{missing[0]:04d}{ending}"
                source.problem(
                    folder / part / wanted, f"missing channel ({modalities[missing[0]]}) of {name}"
                )
                continue
            if len(paths) > len(modalities):
                extra = paths[max(paths)]
                source.problem(extra, f"dataset.json names only {len(modalities)} channels")
                continue
            if part == "imagesTr" and label is None:
                source.note(name, "no label in labelsTr; used as unlabelled")
            images = tuple((paths[i],) for i in range(len(modalities)))
            cases.append(SourceCase(name, name, images, label))
    for path in labels.values():
        source.problem(path, "a label without an image in imagesTr")
    return finish(
        source,
        options,
        cases=cases,
        splits_by="case",
        name=re.sub(r"Dataset\d+_", "", str(document.get("name", folder.name))),
        rank=3,
        modalities=modalities,
        classes=dataset_json.nnunet_classes(file, document),
    )


def brats(folder: Path, options: Options) -> Listing:
    """BraTS: a folder per case, CASE_t1ce.nii.gz (2018-2021) or CASE-t1c.nii.gz (2023)."""
    source = Source(folder)
    names = {name: modality for modality, all_ in BRATS_MODALITIES.items() for name in all_}
    names |= dict.fromkeys(BRATS_LABELS, "label")
    folders: dict[Path, dict[str, list[Path]]] = {}
    for path in source.files(folder, VOLUME_SUFFIXES):
        what = names.get(re.split(r"[_-]", stem(path))[-1].lower())
        if what:
            folders.setdefault(path.parent, {}).setdefault(what, []).append(path)
    cases = []
    for place, found in folders.items():
        several = next((paths for paths in found.values() if len(paths) > 1), None)
        missing = [modality for modality in BRATS_MODALITIES if modality not in found]
        if several:
            both = " and ".join(path.name for path in several[:2])
            source.problem(place, f"{both} are the same modality; one case per folder")
        elif missing:
            endings = "/".join(BRATS_MODALITIES[missing[0]])
            source.problem(place, f"missing modality {missing[0]} (a file ending in {endings})")
        else:
            images = tuple((found[modality][0],) for modality in BRATS_MODALITIES)
            label = found.get("label", [None])[0]
            cases.append(SourceCase(place.name, _brats_subject(place.name), images, label))
    return finish(
        source,
        options,
        cases=cases,
        splits_by="subject",
        name="BraTS",
        rank=3,
        modalities=tuple(BRATS_MODALITIES),
        classes=BRATS_CLASSES,
    )


def _brats_subject(case: str) -> str:
    """The ids of 2017-2019 and of 2023 end in the number of the examination."""
    match = re.fullmatch(r"(Brats1[789]_.+)_\d+|(BraTS-[A-Za-z]+-\d+)-\d+", case, re.IGNORECASE)
    return (match[1] or match[2]) if match else case


def ukb(folder: Path, options: Options) -> Listing:
    """UK Biobank brains: per subject T1 and T2_FLAIR (with brain masks), as its zips unpack."""
    source = Source(folder)
    wanted = {name for names in (*UKB_FILES.values(), UKB_MASKS) for name in names}
    scans: dict[tuple[str, str], dict[str, Path]] = {}
    for path in source.files(folder, VOLUME_SUFFIXES):
        name = stem(path).lower()
        if name not in wanted:
            continue
        place = path.parent
        if place.name.lower() in ("t1", "t2_flair") and place != folder:
            place = place.parent
        # The zips are called EID_20252_INSTANCE_0 (T1) and EID_20253_INSTANCE_0 (T2-FLAIR).
        match = re.fullmatch(r"(\d+)_2025[23]_(\d+_\d+)", place.name)
        subject = match[1] if match else re.split(r"_\d+_\d+$", place.name)[0]
        case = f"{match[1]}_{match[2]}" if match else id_of(source.relative(place))
        source.put(scans.setdefault((case, subject), {}), name, path)
    cases = []
    for (case, subject), found in scans.items():
        chosen = {
            modality: next((found[name] for name in names if name in found), None)
            for modality, names in UKB_FILES.items()
        }
        missing = [modality for modality, path in chosen.items() if path is None]
        if missing:
            source.problem(case, f"missing modality {missing[0]}; both T1 and T2-FLAIR are needed")
            continue
        mask = next((found[name] for name in UKB_MASKS if name in found), None)
        images = tuple((path,) for path in chosen.values())
        cases.append(SourceCase(case, subject, images, mask=mask))
    return finish(
        source,
        options,
        cases=cases,
        splits_by="subject",
        name="UK Biobank",
        rank=3,
        modalities=tuple(UKB_FILES),
        classes=None,
    )


def bids(folder: Path, options: Options) -> Listing:
    """BIDS: sub-X[/ses-Y]/anat/sub-X[_ses-Y]_T1w.nii.gz; labels (dseg) below derivatives."""
    source = Source(folder)
    derivatives = options.labels or folder / "derivatives"
    sessions: dict[tuple[str, str], dict[str, list[Path]]] = {}
    for path in source.files(folder, VOLUME_SUFFIXES):
        match = BIDS_NAME.fullmatch(stem(path))
        if path.is_relative_to(derivatives) or path.parent.name != "anat" or not match:
            continue
        if path.relative_to(folder).parts[0] == f"sub-{match['sub']}":
            key = (match["sub"], match["ses"] or "")
            sessions.setdefault(key, {}).setdefault(match["suffix"], []).append(path)
    modalities = options.modalities or _common_suffixes(list(sessions.values()))
    labels = _bids_labels(source, derivatives)
    cases = []
    for (subject, session), found in sessions.items():
        case = f"sub-{subject}" + (f"_ses-{session}" if session else "")
        masks = labels.pop((subject, session), [])
        missing = [modality for modality in modalities if modality not in found]
        if missing:
            source.problem(case, f"missing modality {missing[0]} in its anat folder")
            continue
        if len(masks) > 1:
            both = " and ".join(str(path) for path in masks[:2])
            source.problem(case, f"several labels ({both}); choose with --labels=DIR")
            continue
        for modality in modalities:
            if len(found[modality]) > 1:
                first = found[modality][0]
                source.note(case, f"several {modality} files; {first.name} is used, as it is first")
        images = tuple((found[modality][0],) for modality in modalities)
        cases.append(SourceCase(case, f"sub-{subject}", images, masks[0] if masks else None))
    for paths in labels.values():
        source.problem(paths[0], "a label without an image")
    if any(case.label for case in cases):
        for case in cases:
            if case.label is None:
                source.note(case.id, "no label in the derivatives; used as unlabelled")
    return finish(
        source,
        options,
        cases=cases,
        splits_by="subject",
        name=folder.resolve().name,
        rank=3,
        modalities=tuple(modalities),
        classes=_bids_classes(derivatives),
    )


def _common_suffixes(sessions: list[dict[str, list[Path]]]) -> tuple[str, ...]:
    """The modalities that more than half of the sessions have (T1w, FLAIR, ...), sorted."""
    counts = Counter(name for found in sessions for name in found)
    common = sorted(name for name, count in counts.items() if 2 * count > len(sessions))
    return tuple(common or sorted(counts)[:1])


def _bids_labels(source: Source, derivatives: Path) -> dict[tuple[str, str], list[Path]]:
    """(subject, session) -> label files; of several kinds only the first in `BIDS_LABELS`."""
    by_kind: dict[tuple[str, str], dict[str, list[Path]]] = {}
    if derivatives.is_dir():
        for path in source.holding(derivatives).files(derivatives, VOLUME_SUFFIXES):
            match = BIDS_NAME.fullmatch(stem(path))
            if match and match["suffix"] in BIDS_LABELS:
                key = (match["sub"], match["ses"] or "")
                by_kind.setdefault(key, {}).setdefault(match["suffix"], []).append(path)
    return {
        key: next(found[kind] for kind in BIDS_LABELS if kind in found)
        for key, found in by_kind.items()
    }


def _bids_classes(derivatives: Path) -> dict[int, str] | None:
    """Class names from a *dseg.tsv (columns index and name), where there is one."""
    for path in sorted(derivatives.rglob("*dseg.tsv")) if derivatives.is_dir() else ():
        try:
            rows = list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))
            return {0: "background"} | {int(row["index"]): row["name"] for row in rows}
        except (OSError, csv.Error, KeyError, TypeError, ValueError):
            raise UserError(f"{path}: not a table with the columns index and name") from None
    return None


LAYOUTS: dict[str, Callable[[Path, Options], Listing]] = {
    "msd": msd,
    "nnunet": nnunet,
    "brats": brats,
    "ukb": ukb,
    "bids": bids,
    "folder": trees.folder,
    "dicom": trees.dicom_tree,
    "images": trees.images,
}
