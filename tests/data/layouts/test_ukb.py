"""UK Biobank."""

from __future__ import annotations

from tests.support import source_files as files
from tests.support.listings import listed, the_problem


def test_modalities_masks_and_visits(tmp_path):
    folder = files.write_ukb(tmp_path)
    listing = listed("ukb", folder)
    assert listing.modalities == ("T1", "T2-FLAIR")
    assert {case.id: case.subject for case in listing.cases} == {
        "1000000_2_0": "1000000",
        "1000000_3_0": "1000000",
        "1000001_2_0": "1000001",
        "1000002_2_0": "1000002",
    }
    assert all(case.mask.name == "T1_brain_mask.nii.gz" for case in listing.cases)
    brain = folder / "1000001_20252_2_0/T1/T1_unbiased_brain.nii.gz"
    files.write_nifti(brain, files.scan(3))
    (folder / "1000002_20253_2_0/T2_FLAIR/T2_FLAIR.nii.gz").unlink()
    listing = listed("ukb", folder)
    assert next(c for c in listing.cases if c.subject == "1000001").images[0] == (brain,)
    the_problem(listing, "1000002_2_0", "missing modality T2-FLAIR")


def test_one_folder_per_subject(tmp_path):
    for subject in ("1000001", "1000002_2_0"):
        files.write_nifti(tmp_path / subject / "T1/T1_brain.nii.gz", files.scan(0))
        files.write_nifti(tmp_path / subject / "T2_FLAIR/T2_FLAIR_brain.nii.gz", files.scan(1))
    listing = listed("ukb", tmp_path)
    assert [(c.id, c.subject) for c in listing.cases] == [
        ("1000001", "1000001"),
        ("1000002_2_0", "1000002"),
    ]
