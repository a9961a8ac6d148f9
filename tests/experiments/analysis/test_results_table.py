"""The stored tables: wide rows of cases and curves, and the long ones of older outputs."""

import csv
import gzip

import pandas as pd
import pytest

from ssl3d.errors import UserError
from ssl3d.experiments.analysis import results_table
from ssl3d.experiments.analysis.results_table import Record

RESULTS = [{"cell": name, "pretraining": "rpl3d-x" * (name == "b")} for name in ("a", "b")]
PRETRAINING = [{"pretraining": "rpl3d-x"}]
SEGMENTED = [
    {"id": "c0", "subject": "s0", "score": "dice", "a": "0.5", "b": "0.25"},
    {"id": "c0", "subject": "s0", "score": "WT", "a": "nan", "b": "0.75"},
    {"id": "c1", "subject": "s1", "score": "dice", "a": "0.125"},
]
GRADED = [
    {"id": "c0", "subject": "s0", "grade": "2", "score": "predicted", "a": "2", "b": "1"},
    {"id": "c1", "subject": "s0", "grade": "0", "score": "predicted", "a": "0", "b": "0"},
]
CURVES = [{"cell": "a", "0": "0.1", "10": "0.4"}, {"cell": "b", "0": "nan", "5": "0.3"}]


def record_of(cases, curves=CURVES):
    keys = [key for key in ("id", "subject", "grade", "score") if key in cases[0]]
    return Record(
        pd.DataFrame(RESULTS),
        pd.DataFrame(PRETRAINING),
        pd.DataFrame(cases).set_index(keys).fillna(""),
        pd.DataFrame(curves).set_index("cell").T.rename(index=int).sort_index().fillna(""),
    )


def rows(table):
    """The rows of a table, without the fields that do not exist."""
    return [{k: v for k, v in row.items() if v != ""} for row in table.to_dict("records")]


def cases_of(record):
    return rows(record.cases.reset_index())


def curves_of(record):
    return rows(record.curves.rename(index=str).T.rename_axis("cell").reset_index())


def write(file, *lines):
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("cases", [SEGMENTED, GRADED], ids=["segmented", "graded"])
def test_tables_read_as_they_were_written(tmp_path, cases):
    record = record_of(cases)
    results_table.write(tmp_path, record)
    for found, written in zip(results_table.read(tmp_path), record, strict=True):
        pd.testing.assert_frame_equal(found, written, check_names=False)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    results_table.update(tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_compressed_table_stays_compressed(tmp_path):
    results_table.write(tmp_path, record_of(GRADED))
    plain, packed = tmp_path / "cases.csv", tmp_path / "cases.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    more = [row | {"c": "1"} for row in GRADED]
    results_table.write(tmp_path, record_of(more))
    assert cases_of(results_table.read(tmp_path)) == more
    once = packed.read_bytes()
    results_table.update(tmp_path)
    assert packed.read_bytes() == once
    assert not plain.exists()
    packed.write_bytes(once[:-12])
    with pytest.raises(UserError, match=r"cases\.csv\.gz: cannot be read"):
        results_table.read(tmp_path)


def test_tables_are_wide(tmp_path):
    results_table.write(tmp_path, record_of(SEGMENTED))
    assert (tmp_path / "cases.csv").read_text().splitlines() == [
        "id,subject,score,a,b",
        "c0,s0,dice,0.5,0.25",
        "c0,s0,WT,nan,0.75",
        "c1,s1,dice,0.125,",
    ]
    assert (tmp_path / "curves.csv").read_text().splitlines() == [
        "cell,0,5,10",
        "a,0.1,,0.4",
        "b,nan,0.3,",
    ]


def test_long_tables_of_older_outputs_are_read(tmp_path):
    """A row per cell and case, or step; an unfinished study goes on with them."""
    results_table.write(tmp_path, record_of(SEGMENTED))
    write(
        tmp_path / "cases.csv",
        "cell,id,subject,dice,WT",
        "a,c0,s0,0.5,",
        "a,c1,s1,0.125,0.5",
        "b,c0,s0,0.25,0.75",
        "b,c1,s1,0.375,1.0",
    )
    write(tmp_path / "curves.csv", "cell,step,score", "a,0,0.1", "a,10,0.4", "b,0,", "b,5,0.3")
    found = results_table.read(tmp_path)
    assert curves_of(found) == CURVES
    assert cases_of(found) == [
        {"id": "c0", "subject": "s0", "score": "dice", "a": "0.5", "b": "0.25"},
        {"id": "c0", "subject": "s0", "score": "WT", "a": "nan", "b": "0.75"},
        {"id": "c1", "subject": "s1", "score": "dice", "a": "0.125", "b": "0.375"},
        {"id": "c1", "subject": "s1", "score": "WT", "a": "0.5", "b": "1.0"},
    ]
    results_table.update(tmp_path)
    for again, table in zip(results_table.read(tmp_path), found, strict=True):
        pd.testing.assert_frame_equal(again, table, check_names=False)
    with (tmp_path / "cases.csv").open(newline="") as text:
        assert next(csv.reader(text)) == ["id", "subject", "score", "a", "b"]


def test_long_graded_cases_are_read(tmp_path):
    results_table.write(tmp_path, record_of(SEGMENTED))
    write(
        tmp_path / "cases.csv",
        "cell,id,subject,grade,predicted",
        *(f"{cell},{row['id']},s0,{row['grade']},{row[cell]}" for cell in "ab" for row in GRADED),
    )
    assert cases_of(results_table.read(tmp_path)) == GRADED


def test_restricted_to_some_cells():
    record = record_of(SEGMENTED)
    own = results_table.restrict(record, ["b"])
    assert own.known() == {"b"}
    assert (rows(own.pretraining), curves_of(own)) == (PRETRAINING, CURVES[1:])
    assert cases_of(own) == [
        {"id": "c0", "subject": "s0", "score": "dice", "b": "0.25"},
        {"id": "c0", "subject": "s0", "score": "WT", "b": "0.75"},
    ]
    assert results_table.restrict(record, ["a"]).pretraining.empty


def test_a_cell_without_test_cases_is_an_error(tmp_path):
    lacking = [{key: row[key] for key in row if key != "b"} for row in SEGMENTED]
    results_table.write(tmp_path, record_of(lacking))
    with pytest.raises(UserError, match=r"cases\.csv: has no column b; restore.*results\.csv"):
        results_table.read(tmp_path)


def test_no_flipped_bit_of_a_compressed_table_is_a_traceback(tmp_path):
    results_table.write(tmp_path, record_of(GRADED))
    plain, packed = tmp_path / "cases.csv", tmp_path / "cases.csv.gz"
    whole = gzip.compress(plain.read_bytes(), mtime=1)
    plain.unlink()
    failed = 0
    for place in range(10, len(whole)):
        packed.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            results_table.read(tmp_path)
        except UserError as error:
            failed += "cases.csv.gz: cannot be read" in str(error)
    assert failed == len(whole) - 10


def test_a_table_beside_its_compressed_form_is_an_error(tmp_path):
    """Which of them is the newer, nobody can tell: `gzip -k` leaves both."""
    results_table.write(tmp_path, record_of(GRADED))
    plain = tmp_path / "cases.csv"
    plain.with_suffix(".csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(UserError, match=r"cases\.csv: is beside cases\.csv\.gz; remove the older"):
        results_table.read(tmp_path)
