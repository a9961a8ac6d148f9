"""BraTS: one folder per case, CASE_t1ce.nii.gz (2018 to 2021) or CASE-t1c.nii.gz (from 2023)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ssl3d.data.layouts.listing import Listing, Options, Source, SourceCase, finish
from ssl3d.data.layouts.survey import Survey
from ssl3d.data.readers import VOLUME_SUFFIXES, stem
from ssl3d.errors import UserError

# Order of the channels as in the paper's code, so that its encoders stay comparable.
MODALITIES = {
    "T1ce": ("t1ce", "t1c", "t1gd"),
    "FLAIR": ("flair", "t2f"),
    "T1": ("t1", "t1n"),
    "T2": ("t2", "t2w"),
}
# One case of BraTS 2020 has "_Segm" instead of "_seg".
LABELS = ("seg", "segm")
# The enhancing tumour is 4 until 2021 and 3 in 2023. From 2024 on 4 is something else: the
# resection cavity after treatment, oedema in children.
CLASSES = {
    0: "background",
    1: "necrosis",
    2: "oedema",
    3: "enhancing tumour",
    4: "enhancing tumour",
}

# Ids since 2023, whose label maps of 2023 have no 4, and those before, whose maps have no 3.
SINCE_2023 = re.compile(r"BraTS-.+", re.IGNORECASE)
UNTIL_2021 = re.compile(r"BraTS(1\d|20|2021)_.+", re.IGNORECASE)
ENHANCING_UNTIL_2021, ENHANCING_2023 = 4, 3


def find(folder: Path, options: Options) -> Listing:
    """Every folder that holds the four modalities. Raises `UserError`."""
    source = Source(folder, options.follow_links)
    folders: dict[Path, dict[str, list[Path]]] = {}
    for path in source.files(folder, VOLUME_SUFFIXES):
        what = _modality(path)
        if what and not (what == "label" and options.no_labels):
            folders.setdefault(path.parent, {}).setdefault(what, []).append(path)
    cases = []
    for place, found in folders.items():
        several = next((paths for paths in found.values() if len(paths) > 1), None)
        missing = [modality for modality in MODALITIES if modality not in found]
        if several:
            both = " and ".join(path.name for path in several[:2])
            source.problem(place, f"{both} are the same modality; one case per folder")
        elif missing:
            endings = "/".join(MODALITIES[missing[0]])
            source.problem(place, f"missing modality {missing[0]} (a file ending in {endings})")
        else:
            images = tuple((found[modality][0],) for modality in MODALITIES)
            label = found.get("label", [None])[0]
            cases.append(SourceCase(place.name, _subject(place.name), images, label))
    return finish(
        source,
        options,
        cases=cases,
        splits_by="subject",
        name="BraTS",
        rank=3,
        modalities=tuple(MODALITIES),
        classes=None,
        classes_from=_classes,
    )


def _modality(path: Path) -> str:
    """What a file holds by the end of its name: a modality, "label" or ""."""
    end = re.split(r"[_-]", stem(path))[-1].lower()
    known = (modality for modality, names in MODALITIES.items() if end in names)
    return "label" if end in LABELS else next(known, "")


def _classes(values: Mapping[Path, Iterable[int]]) -> dict[int, str]:
    """`CLASSES`. Raises `UserError`: the labels are those of another year."""
    # Names of another kind tell no year; where 3 is found too, 4 may be another class.
    both = any(ENHANCING_2023 in found for found in values.values())
    for path, found in values.items():
        if ENHANCING_UNTIL_2021 not in found:
            continue
        known = UNTIL_2021.fullmatch(path.parent.name) and ENHANCING_2023 not in found
        if SINCE_2023.fullmatch(path.parent.name) or (both and not known):
            raise UserError(
                f"{path}: label value 4 where others are 3, or in a case named as since 2023, "
                "is none of the classes of BraTS 2018 to 2023 (2024: 4 is the resection cavity, in "
                "children oedema); name them, e.g. --classes="
                "'0:background,1:necrosis,2:oedema,3:enhancing tumour,4:resection cavity', or "
                "prepare the images alone, --no-labels"
            )
    return CLASSES


def _subject(case: str) -> str:
    """The case id without the examination number that ids of 2017 to 2019 and of 2023 end in."""
    match = re.fullmatch(r"(Brats1[789]_.+)_\d+|(BraTS-[A-Za-z]+-\d+)-\d+", case, re.IGNORECASE)
    return (match[1] or match[2]) if match else case


def evidence(found: Survey) -> str:
    """See `recognise`."""
    seen: dict[Path, set[str]] = {}
    for path in found.volumes:
        modality = _modality(path)
        if modality in MODALITIES:
            seen.setdefault(path.parent, set()).add(modality)
            if len(seen[path.parent]) == len(MODALITIES):
                return f"{path.parent.name}/ has T1ce, FLAIR, T1 and T2"
    return ""
