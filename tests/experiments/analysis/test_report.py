"""The verdicts in words."""

import shutil
from types import SimpleNamespace

import pytest

from ssl3d.experiments import command
from ssl3d.experiments.analysis import findings, tables
from ssl3d.experiments.analysis.templates import render, sentences
from tests.support.hand_made_study import record_of, result, rows_of, with_2d
from tests.support.small_study import tiny


def test_verdicts(found):
    by_place = {row[:2]: row[3] for row in tables.comparisons(found).rows}
    # Scratch with twice the steps is a check of scratch, not a method against it.
    assert set(by_place) == {("rpl3d", "5%"), ("rpl3d", "all")}
    assert {row[2] for row in tables.comparisons(found).rows} == {"scratch"}
    assert by_place["rpl3d", "5%"].startswith("gain: +0.100 [+0.")
    assert by_place["rpl3d", "all"].startswith("no gain shown: +0.000 [")
    words = sentences("summary", found)
    assert words[0].startswith("With 5% labels significantly better than scratch: rpl3d (+0.100")
    assert words[-1] == "With all labels no gain of any pretraining over scratch is shown."


def test_2d_scratch_has_a_plateau_of_its_own(study, record):
    more = with_2d(with_2d(record, "scratch2d", 0.3), "scratch2d-double", 0.32)
    facts = findings.find(study, more, 2, draws=200)
    row = tables.plateau(study, facts).rows[0]
    assert (*row[:3], *row[4:]) == ("scratch2d", "5%", "+0.0200", "2", "not at its plateau in dice")
    assert not any(key.method == "scratch2d-double" for key, _ in facts.comparisons)
    (said,) = [
        line for line in sentences("summary", facts) if "plateau" in line
    ]  # scratch is at its own
    assert said.startswith("With 5% labels scratch2d is not at its plateau: twice the steps change")
    assert said.endswith(" it by +0.020 [+0.020, +0.020].")
    # Without it there is nothing to compare its double with, least of all 3D scratch.
    alone = findings.find(study, with_2d(record, "scratch2d-double", 0.32), 2, draws=200)
    assert set(alone.plateau) == {("scratch", "all")}
    assert sentences("unchecked", facts) == [
        "Whether scratch was trained to its plateau with 5% labels was not checked here "
        "(--methods=scratch,scratch-double checks it)."
    ]


@pytest.mark.parametrize(("double", "said"), [(0.55, "gain: +0.050 "), (0.60, "no gain shown: ")])
def test_gains_are_looked_at_against_twice_the_steps(study, record, double, said):
    """They have to be 0.1 of scratch, in all repetitions; of others nobody asks."""
    doubles = [result("scratch-double", "5%", n, double + n / 100, 12) for n in (1, 2)]
    facts = findings.find(study, record_of(rows_of(record) + doubles), 2, draws=2000)
    about = findings.Key("rpl3d", "finetune"), "5%", "scratch-double"
    assert set(facts.beyond) == {about}
    assert set(facts.equal_steps_only) == ({about} if said.startswith("no") else set())
    ((*row, verdict, repetitions),) = tables.beyond(facts).rows
    assert (*row, repetitions) == ("rpl3d", "5%", "scratch-double", "2")
    assert verdict.startswith(said)
    words = "rpl3d against scratch-double, a longer training of scratch, in 2 repetitions"
    assert f"With 5% labels {words}: {verdict}." in sentences("summary", facts)
    assert facts.plateau["scratch", "5%"].difference == pytest.approx(double - 0.5)


def test_reports_of_stored_tables_are_made_again(stand_in, volumes, tmp_path):
    """As of a checkout's results, which keep the four tables alone."""
    typed = [f"--data={volumes.path}", f"--output={tmp_path / 'out'}", "--methods=scratch,rpl3d"]
    command.main(tiny(), typed)
    made = {
        file.relative_to(tmp_path / "out"): file.read_bytes()
        for pattern in ("tables.*", "report.html", "figures/*")
        for file in (tmp_path / "out").glob(pattern)
    }
    assert len(made) == 9
    stored = tmp_path / "stored"
    stored.mkdir()
    for name in ("results.csv", "pretraining.csv", "cases.csv", "curves.csv"):
        shutil.copy(tmp_path / "out" / name, stored)
    before = {file.name: file.read_bytes() for file in stored.iterdir()}
    typed[1] = f"--output={stored}"
    assert command.main(tiny(), [*typed, "--report-only"]) == 0
    assert {name: (stored / name).read_bytes() for name in made} == made
    assert {name: (stored / name).read_bytes() for name in before} == before


def test_a_gain_at_equal_steps_only_is_the_first_line(study, record):
    longer = [result("scratch-long", "5%", n, 0.61 + n / 100, 12) for n in (1, 2)]
    facts = findings.find(study, record_of(rows_of(record) + longer), 2, draws=500)
    (said,) = sentences("equal_steps_only", facts)
    assert said.startswith("With 5% labels rpl3d gains over scratch (+0.1")
    longer = "scratch-long, scratch trained as long as pretraining and fine-tuning: -0.010 ["
    assert f"), but is worse than {longer}" in said
    assert said.endswith("] in 2 repetitions.")
    shown = dict.fromkeys(("opening", "notes", "summary", "about", "tables"), ())
    page = render("tables.md", study=study, equal_steps_only=[said], **shown)
    assert page.splitlines()[2] == f"**{said}**"
    assert sentences("equal_steps_only", findings.find(study, record, 2, draws=500)) == []


def test_a_diverged_cell_is_shown(study, record):
    rows = [
        row | {"diverged": "step 120" if row["cell"] == "rpl3d-5%-2" else ""}
        for row in rows_of(record)
    ]
    facts = findings.find(study, record_of(rows), 2, draws=200)
    assert facts.diverged == [(findings.Key("rpl3d", "finetune"), "5%", 2, "step 120")]
    plan = SimpleNamespace(transductive=False, study=study)
    wanted = "Diverged, and counted as a score of 0: rpl3d with 5% labels, repetition 2 (step 120)."
    assert wanted in sentences("notes", plan, facts)


def test_a_study_of_controls_alone_has_something_to_say(study):
    rows = [result("scratch", "5%", n, 0.6 + n / 100) for n in (1, 2, 3)]
    own = {"mode": "finetune", "pretraining": "supervised-x"}
    rows += [result("supervised", "5%", n, 0.7 + n / 100, **own) for n in (1, 2, 3)]
    said = sentences("summary", findings.find(study, record_of(rows), 2, draws=500))
    assert said[0].startswith("With 5% labels the positive control, an encoder trained on other")
    assert not [text for text in said if text.startswith("Nothing to compare")]
