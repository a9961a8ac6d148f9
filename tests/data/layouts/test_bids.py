"""BIDS."""

from __future__ import annotations

import pytest

from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.listings import listed


def test_sessions_and_labels(tmp_path):
    folder = files.write_bids(tmp_path)
    listing = listed("bids", folder)
    assert listing.modalities == ("FLAIR", "T1w")
    assert listing.classes == {0: "background", 1: "lesion", 2: "core"}
    assert len(listing.cases) == 6
    assert {case.subject for case in listing.cases} == {"sub-0", "sub-1", "sub-2"}
    assert listing.cases[0].label.name == "sub-0_ses-01_space-T1w_dseg.nii.gz"
    assert listed("bids", folder, modalities=("T1w",)).modalities == ("T1w",)


def test_missing_modalities_and_unmatched_or_several_labels(tmp_path):
    folder = files.write_bids(tmp_path)
    (folder / "sub-0/ses-01/anat/sub-0_ses-01_FLAIR.nii.gz").unlink()
    labels = folder / "derivatives/lesions"
    files.write_nifti(labels / "sub-9/anat/sub-9_dseg.nii.gz", files.segmentation())
    files.write_nifti(
        folder / "derivatives/other/sub-1/sub-1_ses-01_dseg.nii.gz", files.segmentation()
    )
    listing = listed("bids", folder)
    problems = {p.name.rsplit("/", 1)[-1]: p.reason for p in listing.problems}
    assert "missing modality FLAIR" in problems["sub-0_ses-01"]
    assert "several labels" in problems["sub-1_ses-01"]
    assert "a label without an image" in problems["sub-9_dseg.nii.gz"]
    chosen = listed("bids", folder, labels=labels)
    assert len(chosen.cases) == 5


def test_labels_outside_the_source(tmp_path):
    source = files.write_bids(tmp_path / "source")
    (source / "derivatives").rename(tmp_path / "truth")
    listing = listed("bids", source, labels=tmp_path / "truth")
    assert all(case.label for case in listing.cases)
    assert not listing.problems
    assert listing.classes == {0: "background", 1: "lesion", 2: "core"}
    with pytest.raises(UserError, match="gone: no such folder"):
        listed("bids", source, labels=tmp_path / "gone")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["run-2_dseg"], ("run-2_T1w", "run-2_dseg")),  # the image it was drawn on
        (["run-1_dseg", "run-2_dseg"], ("run-1_T1w", "run-1_dseg")),
        (["dseg"], ("run-1_T1w", "dseg")),
        (["run-3_dseg"], ("run-1_T1w", None)),
    ],
)
def test_a_label_is_that_of_its_run(tmp_path, labels, found):
    for run in (1, 2):
        files.write_nifti(tmp_path / f"sub-0/anat/sub-0_run-{run}_T1w.nii.gz", files.scan(run))
    for name in labels:
        path = tmp_path / f"derivatives/m/sub-0/anat/sub-0_{name}.nii.gz"
        files.write_nifti(path, files.segmentation())
    listing = listed("bids", tmp_path)
    (case,) = listing.cases
    image, label = found
    assert case.images[0][0].name == f"sub-0_{image}.nii.gz"
    assert (case.label and case.label.name) == (label and f"sub-0_{label}.nii.gz")
    assert [problem.reason for problem in listing.problems] == (
        [] if label else ["a label of another run than the images"]
    )
