"""Public data sets that may be downloaded without registration, with their published checksums.

Checksums, all of them MD5, are those that MONAI (Decathlon), TorchIO (IXI) and Zenodo
(TotalSegmentator) publish. They find damage, not malice: MD5 can be forged.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

from ssl3d.errors import UserError

_DECATHLON = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
_IXI = "http://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI"
_ZENODO = "https://zenodo.org/records"


class PublicSet(NamedTuple):
    """A data set in one archive.

    Attributes:
      name: as on the command line.
      about: what it holds.
      url: of the archive, .tar or .zip.
      md5: of the archive.
      gigabytes: of the archive, about; 0 where nobody publishes it.
      folder: that the archive unpacks to; "" where its files are not in one.
      licence, terms: its name, and a page on the data.
      prepare: options of `ssl3d.prepare` beside --source and --output.
    """

    name: str
    about: str
    url: str
    md5: str
    gigabytes: float
    folder: str
    licence: str
    terms: str
    prepare: str = ""


def _decathlon(name: str, about: str, md5: str, gigabytes: float) -> PublicSet:
    return PublicSet(
        name,
        f"Medical Segmentation Decathlon: {about}",
        f"{_DECATHLON}/{name}.tar",
        md5,
        gigabytes,
        name,
        "CC BY-SA 4.0",
        "http://medicaldecathlon.com",
    )


def _ixi(modality: str, md5: str) -> PublicSet:
    return PublicSet(
        f"IXI-{modality}",
        f"brain MR ({modality}) of nearly 600 healthy people, without labels",
        f"{_IXI}/IXI-{modality}.tar",
        md5,
        0,
        "",
        "CC BY-SA 3.0",
        "https://brain-development.org/ixi-dataset/",
        "--recipe=mr --subject-pattern='^(IXI[0-9]+)'",
    )


def _totalsegmentator(name: str, about: str, place: str, md5: str, gigabytes: float) -> PublicSet:
    return PublicSet(
        name,
        f"CT with 117 structures, one mask each: {about}",
        f"{_ZENODO}/{place}",
        md5,
        gigabytes,
        "",
        "CC BY 4.0",
        "https://zenodo.org/records/10047292",
        "--layout=folder --recipe=ct --images=ct.nii.gz --labels=segmentations/liver.nii.gz",
    )


SETS = {
    entry.name: entry
    for entry in (
        _decathlon(
            "Task01_BrainTumour", "multi-contrast MR", "240a19d752f0d9e9101544901065d872", 7.1
        ),
        _decathlon("Task02_Heart", "cardiac MR", "06ee59366e1e5124267b774dbd654057", 0.4),
        _decathlon("Task03_Liver", "CT, with tumours", "a90ec6c4aa7f6a3d087205e23d4e6397", 27),
        _decathlon("Task04_Hippocampus", "MR", "9d24dba78a72977dbd1d2e110310f31b", 0.03),
        _decathlon(
            "Task05_Prostate", "MR of two contrasts", "35138f08b1efaef89d7424d2bcc928db", 0.2
        ),
        _decathlon("Task06_Lung", "CT, tumours", "8afd997733c7fc0432f71255ba4e52dc", 8.5),
        _decathlon("Task07_Pancreas", "CT, with tumours", "4f7080cfca169fa8066d17ce6eb061e4", 11.5),
        _decathlon(
            "Task08_HepaticVessel", "CT, with tumours", "641d79e80ec66453921d997fbf12a29c", 8.7
        ),
        _decathlon("Task09_Spleen", "CT", "410d4a301da4e5b2f6f86ec3ddba524e", 1.5),
        _decathlon("Task10_Colon", "CT, cancer", "bad7a188931dc2f6acf72b08eb6202d0", 5.8),
        _ixi("T1", "34901a0593b41dd19c1a1f746eac2d58"),
        _ixi("T2", "e3140d78730ecdd32ba92da48c0a9aaa"),
        _ixi("PD", "88ecd9d1fa33cb4a2278183b42ffd749"),
        _ixi("MRA", "29be7d2fee3998f978a55a9bdaf3407e"),
        _totalsegmentator(
            "TotalSegmentator",
            "1228 people",
            "10047292/files/Totalsegmentator_dataset_v201.zip",
            "fe250e5718e0a3b5df4c4ea9d58a62fe",
            23.6,
        ),
        _totalsegmentator(
            "TotalSegmentator-small",
            "102 people",
            "10047263/files/Totalsegmentator_dataset_small_v201.zip",
            "6b5524af4b15e6ba06ef2d700c0c73e0",
            3.2,
        ),
    )
}


def find(name: str) -> PublicSet:
    """A set by its name, in any letter case. Raises `UserError`."""
    spelled = {known.lower(): known for known in SETS}
    if name.lower() in spelled:
        return SETS[spelled[name.lower()]]
    near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.3)
    hint = f"; did you mean {spelled[near[0]]}?" if near else ""
    raise UserError(f"{name}: no such data set{hint} (python -m ssl3d.fetch lists them)")


def table() -> str:
    """The sets, a line each."""
    rows = [
        (
            entry.name,
            f"{entry.gigabytes:g} GB" if entry.gigabytes else "",
            entry.licence,
            entry.about,
        )
        for entry in SETS.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )
