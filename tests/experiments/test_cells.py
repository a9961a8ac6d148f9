"""Which cells a study runs, and when it keeps them: splits, encoders, corrected data."""

import dataclasses

import numpy as np

from ssl3d.data import store
from ssl3d.experiments import protocol
from ssl3d.experiments.analysis import results_table
from tests.support.small_study import done, rows, tiny


def test_finished_cells_are_in_the_tables_at_once(call, stand_in):
    """A session that is cut short keeps all but the one that was running."""
    seen, update = [], results_table.update

    def updated(output):
        finished = len(list(output.glob("cells/*/result.json")))
        update(output)
        seen.append((finished, len(rows(output))))

    stand_in.setattr(protocol, "AT_MOST_EVERY", 0.0)
    stand_in.setattr(results_table, "update", updated)
    call("--methods=scratch,rpl3d", "--repetitions=1")
    assert len(seen) == 4 + 1 + 1  # after each run, and at the end
    assert all(finished <= kept for finished, kept in seen)
    assert seen[-1] == (4, 4)


def test_corrected_labels_run_every_cell_again(call, volumes, tmp_path):
    """Prepared again, with the same cases, images and splits."""
    cases = [
        dataclasses.replace(
            case, files=store.write_arrays(tmp_path / "data", case.id, image, label)
        )
        for case in volumes.cases
        for image in [store.load_image(volumes, case)]
        for label in [store.load_label(volumes, case) if case.labelled else None]
    ]
    again = dataclasses.replace(volumes, path=tmp_path / "data", cases=tuple(cases))
    store.write_manifest(again)
    call("--methods=scratch,rpl3d", data=again.path)
    first = done(call.output)
    call("--methods=scratch,rpl3d", data=again.path)
    assert done(call.output) == first
    case = next(case for case in cases if case.labelled)
    label = np.roll(store.load_label(volumes, case), 1, 0)
    files = store.write_arrays(again.path, case.id, store.load_image(volumes, case), label)
    corrected = [dataclasses.replace(c, files=files) if c == case else c for c in cases]
    store.write_manifest(dataclasses.replace(again, cases=tuple(corrected)))
    call("--methods=scratch,rpl3d", data=again.path)
    second = done(call.output) - first
    assert sum(name.startswith("cells/") for name in second) == 8
    assert sum(name.startswith("cells/") for name in first) == 8
    assert "Run: 2026-01-31; 8 cells." in (call.output / "tables.md").read_text()


def test_splits_and_encoders(call):
    call("--methods=scratch,rpl3d", "--fractions=2", "--splits=2", "--encoders=2")
    found = rows(call.output)
    assert sorted((row["method"], row["split"], row["encoder"]) for row in found) == [
        *[("rpl3d", "1", "1"), ("rpl3d", "2", "2")],
        *[("scratch", "1", "0"), ("scratch", "2", "0")],
    ]
    text = (call.output / "tables.md").read_text()
    assert "in each of 2 splits" in text
    assert "| 2 repetitions, 2 splits, 2 encoders |" in text
    assert (call.output / "splits" / ".gitignore").read_text() == "*\n"
    before = done(call.output)
    call("--methods=scratch,rpl3d", "--fractions=2", "--splits=2", "--encoders=2")
    assert done(call.output) == before


def test_fewer_repetitions_have_fewer_encoders(call):
    """And the same cells as the first of more."""
    study = tiny(encoders=5, repetitions=5)
    call("--methods=rpl3d", "--fractions=2", "--repetitions=2", study=study)
    assert {row["encoder"] for row in rows(call.output)} == {"1", "2"}
    first = done(call.output)
    call("--methods=rpl3d", "--fractions=2", "--repetitions=3", study=study)
    assert sum((done(call.output) - first).values()) == 2


def test_cells_of_other_encoders_and_splits_are_kept_but_not_reported(call):
    """Two of one repetition would count twice."""
    options = "--methods=scratch,rpl3d", "--fractions=2"
    for dealt in ((), ("--encoders=2",), ("--encoders=2", "--splits=2")):
        call(*options, *dealt)
        assert "Run: 2026-01-31; 4 cells." in (call.output / "tables.md").read_text()
    assert len(rows(call.output)) == 4 + 1 + 4


def test_a_repetition_alone_has_the_split_and_encoder_that_it_has_among_all(call):
    study = tiny(splits=2, encoders=2)
    call("--methods=rpl3d", "--fractions=2", "--repetitions=1", study=study)
    (row,) = rows(call.output)
    assert (row["split"], row["encoder"]) == ("1", "1")
    first = done(call.output)
    call("--methods=rpl3d", "--fractions=2", study=study)
    assert sum((done(call.output) - first).values()) == 2
    assert "Shorter than planned" not in (call.output / "tables.md").read_text()


def test_what_was_begun_is_finished_before_there_is_a_verdict(call):
    """Fewer methods than before are no study of their own: the others are in the report."""
    call("--methods=scratch,rpl3d,rotation3d", "--fractions=2", "--repetitions=1")
    text = (call.output / "tables.md").read_text()
    assert "Shorter than planned: 1 of the study's 2 repetitions." in text
    assert "Not complete" not in text
    call("--methods=scratch,rpl3d", "--fractions=2")
    text = (call.output / "tables.md").read_text()
    assert "Not complete: 1 of 6 cells are missing." in text
    assert "no verdict yet, 1 of 6 cells are missing" in text
    call("--methods=rotation3d", "--fractions=2")
    text = (call.output / "tables.md").read_text()
    assert "Not complete" not in text
    assert "no verdict yet" not in text


def test_a_row_of_a_method_that_is_no_more_is_left_alone(call):
    call("--methods=scratch", "--fractions=2")
    file = call.output / "results.csv"
    row = file.read_text().splitlines()[1]
    with file.open("a") as text:
        text.write(row.replace("scratch", "telepathy3d") + "\n")
    file = call.output / "cases.csv"
    head, *cases = file.read_text().splitlines()
    name = row.partition(",")[0].replace("scratch", "telepathy3d")
    file.write_text("\n".join([f"{head},{name}", *(f"{case},0.5" for case in cases)]) + "\n")
    call("--methods=scratch", "--fractions=2")
    assert len(rows(call.output)) == 3
    assert "telepathy3d" not in (call.output / "tables.md").read_text()
