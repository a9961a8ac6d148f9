"""UK Biobank brain MRI: T1 and T2_FLAIR of each subject (with brain masks), as the zips unpack."""

from __future__ import annotations

import re
from pathlib import Path

from ssl3d.data.layouts.listing import Listing, Options, Source, SourceCase, finish, id_of
from ssl3d.data.layouts.survey import Survey
from ssl3d.data.readers import VOLUME_SUFFIXES, stem

# File names in order of preference: skull-stripped and bias-corrected where available.
FILES = {
    "T1": ("t1_unbiased_brain", "t1_brain", "t1_unbiased", "t1"),
    "T2-FLAIR": ("t2_flair_unbiased_brain", "t2_flair_brain", "t2_flair_unbiased", "t2_flair"),
}
# Of each scan.
FOLDERS = ("t1", "t2_flair")
MASKS = ("t1_brain_mask", "t2_flair_brain_mask")


def find(folder: Path, options: Options) -> Listing:
    """One case per subject and imaging visit. Raises `UserError`."""
    source = Source(folder, options.follow_links)
    wanted = {name for names in (*FILES.values(), MASKS) for name in names}
    scans: dict[tuple[str, str], dict[str, Path]] = {}
    for path in source.files(folder, VOLUME_SUFFIXES):
        name = stem(path).lower()
        if name not in wanted:
            continue
        place = path.parent
        if place.name.lower() in FOLDERS and place != folder:
            place = place.parent
        # The zips are called EID_20252_INSTANCE_0 (T1) and EID_20253_INSTANCE_0 (T2-FLAIR).
        match = re.fullmatch(r"(\d+)_2025[23]_(\d+_\d+)", place.name)
        subject = match[1] if match else re.split(r"_\d+_\d+$", place.name)[0]
        case = f"{match[1]}_{match[2]}" if match else id_of(source.relative(place))
        source.put(scans.setdefault((case, subject), {}), name, path)
    cases = []
    for (case, subject), found in scans.items():
        chosen = {
            modality: next(found[name] for name in names if name in found)
            for modality, names in FILES.items()
            if not found.keys().isdisjoint(names)
        }
        missing = [modality for modality in FILES if modality not in chosen]
        if missing:
            source.problem(case, f"missing modality {missing[0]}; both T1 and T2-FLAIR are needed")
            continue
        mask = next((found[name] for name in MASKS if name in found), None)
        images = tuple((path,) for path in chosen.values())
        cases.append(SourceCase(case, subject, images, mask=mask))
    return finish(
        source,
        options,
        cases=cases,
        splits_by="subject",
        name="UK Biobank",
        rank=3,
        modalities=tuple(FILES),
        classes=None,
    )


def evidence(found: Survey) -> str:
    """See `recognise`."""
    for path in found.volumes:
        place = path.parent if path.parent.name.lower() not in FOLDERS else path.parent.parent
        if re.fullmatch(r"\d+_2025[23]_\d+_\d+", place.name):
            return f"{place.name}/ is called like a download of brain MR"
        if path.parent != place and stem(path).lower() in FILES["T2-FLAIR"]:
            return f"{place.name}/ has {path.parent.name}/{path.name}"
    return ""
