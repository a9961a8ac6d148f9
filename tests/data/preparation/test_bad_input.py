"""Invalid sources: one line per fault, and no effect on the valid cases.

Each of `DAMAGES` breaks one thing in a valid collection. Without --on-error=skip the command ends
with a `UserError` (status 2) and writes no manifest; with it the other cases are byte for byte
those of the undamaged collection.
"""

from __future__ import annotations

import pytest

from ssl3d.data import store
from ssl3d.errors import UserError
from tests.support import damaged_collections, damaged_nifti
from tests.support import source_files as files
from tests.support.source_files import run_prepare as run

DAMAGES = [*damaged_nifti.DAMAGES, *damaged_collections.DAMAGES]


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    """Layout -> {case id: bytes of its arrays}, from collections without damage."""
    found = {}

    def of(layout):
        if layout not in found:
            folder = tmp_path_factory.mktemp(layout)
            run(layout, files.WRITERS[layout](folder / "source"), folder / "out")
            found[layout] = arrays(folder / "out")
        return found[layout]

    return of


def arrays(output):
    return {
        case.id: store.image_path(output, case.id).read_bytes() for case in store.read(output).cases
    }


def test_every_layout_has_damages():
    assert len(DAMAGES) >= 40
    assert {damage.layout for damage in DAMAGES} == set(files.WRITERS)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: f"{damage.layout}: {damage.name}")
def test_damage(damage, tmp_path, capsys, undamaged):
    source = files.WRITERS[damage.layout](tmp_path / "source")
    damage.do(source)

    with pytest.raises(UserError):
        run(damage.layout, source, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / store.MANIFEST).exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in damage.words:
        assert word in lines[0]
    assert "Traceback" not in lines[0]

    run(damage.layout, source, tmp_path / "skipped", "--on-error=skip")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 1
    clean = undamaged(damage.layout)
    found = arrays(tmp_path / "skipped")
    assert found
    same = [name for name in found if found[name] == clean.get(name)]
    others = set(found) - set(same)
    # A picture without a valid row remains as an unlabelled one.
    assert others <= {"eye9"}
    assert len(found) >= len(clean) - 2
    assert "left out" in (tmp_path / "skipped" / "report.csv").read_text()


@pytest.mark.parametrize(
    ("layout", "file", "text", "what"),
    [
        ("msd", "dataset.json", "[" * 100_000, "nested more than 64 deep"),
        ("msd", "dataset.json", '{"modality": {}, "labels": {}}', '"modality" is missing'),
        ("msd", "dataset.json", '{"modality": {"0": "A", "2": "B"}}', '"modality" is missing'),
        ("bids", "derivatives/lesions/dseg.tsv", f"index\tname\n1\t{'a' * 200_000}", "dseg.tsv"),
        ("bids", "derivatives/lesions/dseg.tsv", "index\tname\n-1\ta", "the label value -1"),
        ("images", "train.csv", f'id_code,diagnosis\n"{"a" * 200_000}",1', "field larger"),
        ("images", "train.csv", "id_code;diagnosis\neye0;1", "no CSV with a name"),
    ],
)
def test_an_invalid_table_is_one_line(tmp_path, layout, file, text, what):
    source = files.WRITERS[layout](tmp_path / "source")
    (source / file).write_text(text)
    with pytest.raises(UserError) as error:
        run(layout, source, tmp_path / "out")
    assert what in str(error.value)
    assert str(source) in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", sorted(files.WRITERS))
def test_an_empty_source_is_one_line(layout, tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError) as error:
        run(layout, tmp_path / "source", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
