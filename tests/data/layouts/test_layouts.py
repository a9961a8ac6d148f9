"""Properties of every layout."""

from __future__ import annotations

import json

import pytest

from ssl3d.data.layouts import LAYOUTS
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.listings import listed


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_lists_its_cases_in_one_order(layout, tmp_path):
    folder = files.WRITERS[layout](tmp_path / "source")
    first, second = listed(layout, folder), listed(layout, folder)
    assert first == second
    assert first.problems == ()
    assert [case.id for case in first.cases] == sorted(case.id for case in first.cases)
    assert len(first.cases) >= 3
    assert all(path.exists() for case in first.cases for path in case.files)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_an_empty_or_missing_folder_is_one_line(layout, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        listed(layout, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        listed(layout, tmp_path / "empty")


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"dicom", "images", "ukb"}))
def test_labels_can_be_left_alone_with_all_their_faults(layout, tmp_path):
    folder = files.WRITERS[layout](tmp_path / "source")
    whole = listed(layout, folder)
    assert any(case.label for case in whole.cases)
    for case in whole.cases:
        if case.label:
            case.label.rename(case.label.with_name(f"x{case.label.name}"))
    for path in folder.rglob("*dseg.tsv"):
        path.write_text("none")
    document = folder / "dataset.json"
    if document.exists():
        document.write_text(json.dumps(json.loads(document.read_text()) | {"labels": "none"}))
    listing = listed(layout, folder, no_labels=True)
    assert listing.problems == ()
    assert not any(case.label for case in listing.cases)
    assert [case.id for case in listing.cases] == [case.id for case in whole.cases]
    assert listing.classes is None


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"msd", "nnunet"}))
def test_links_out_of_the_source_are_followed_unless_told_otherwise(layout, tmp_path):
    folder = files.WRITERS[layout](tmp_path / "source")
    inside = next(path for case in listed(layout, folder).cases for path in case.files)
    outside = tmp_path / inside.name
    inside.rename(outside)
    inside.symlink_to(outside)
    listing = listed(layout, folder)
    assert listing.problems == ()
    assert inside in {path for case in listing.cases for path in case.files}
    problems = listed(layout, folder, follow_links=False).problems
    assert any(str(inside) in p.name and "leaves the source" in p.reason for p in problems)
