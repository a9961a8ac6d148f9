"""The studies end to end: training and all, on small sets in the layouts that people have."""

import csv
import dataclasses
import itertools
import json
import re
from collections import Counter

import pytest

from ssl3d import prepare
from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.experiments import (
    abdomen,
    brats,
    command,
    hippocampus_levels,
    pancreas,
    phantom,
    protocol,
    retina,
)
from ssl3d.experiments.engine.study import METHODS
from tests.support import source_files
from tests.support.long_axis import write_hippocampi
from tests.support.small_study import tiny

# Seconds on a quiet machine; a busy one takes minutes to compile each run.
pytestmark = pytest.mark.timeout(1800)

SMALL = {
    "encoder": {"kind": "resunet", "width": 4, "depth": 2, "dtype": "float32"},
    "repetitions": 1,
    "labels": ("all",),
    "validations": 1,
    "data": {"data.threads": 1},
    "pretraining": {
        "steps": 2,
        "batch_size": 2,
        "optimizer.warmup_steps": 1,
        "validation.repeats": 1,
        "data.margin": 0,
    },
    "finetuning": {
        "steps": 3,
        "batch_size": 2,
        "optimizer.warmup_steps": 1,
        "transfer.warmup_steps": 1,
        "data.margin": 0,
    },
    "finetuning_slices": {},
    "pretraining_of": {},
    "finetuning_of": {},
}


@pytest.mark.parametrize(
    ("study", "tasks", "rate", "told"),
    [
        (brats.STUDY, ("cpc3d", "rpl3d"), 1e-5, "171 of them are left to train on: all is 60 %"),
        (pancreas.STUDY, ("cpc3d", "rpl3d"), 1e-5, "169 are left to train on"),
        (retina.STUDY, ("cpc2d", "rpl2d"), 5e-5, "ours trains on 60 %"),
    ],
)
def test_the_papers_studies_can_settle_something(study, tasks, rate, told):
    """Few arms, ten repetitions and encoders of their own; the paper's rates and what differs."""
    assert (study.repetitions, study.encoders) == (10, 5)
    assert tuple(name for name in study.methods if not METHODS[name].control) == tasks
    assert {"scratch", "scratch-double"} < set(study.methods)
    assert study.finetuning["optimizer.learning_rate"] == rate
    assert [note for note in study.notes if told in note]
    assert [note for note in study.notes if "fractions" in note]


def small(study, crop, **changes):
    """The study with sizes of seconds."""
    sizes = dict(SMALL)
    for name in ("pretraining", "finetuning"):
        sizes[name] = sizes[name] | {"data.crop": crop}
    return dataclasses.replace(study, **(sizes | changes))


def prepared(folder, layout, write, *options, **arguments):
    source = write(folder / f"{layout} source", **arguments)
    output = folder / f"{layout} prepared"
    options = [*source_files.ARGUMENTS[layout], *options, "--workers=1"]
    prepare.main([f"--layout={layout}", f"--source={source}", f"--output={output}", *options])
    return output


def run(study, data, output, *options):
    assert command.main(study, [f"--data={data}", f"--output={output}", *options]) == 0
    with (output / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:  # no validation label chooses what is tested
        summary = output / "cells" / row["cell"] / "run" / "evaluation" / "summary.json"
        assert json.loads(summary.read_text())["model"] == {
            "kind": "last",
            "step": int(row["steps"]),
        }
    for name in ("report.html", "tables.tex", "figures/convergence.pdf"):
        assert (output / name).exists()
    return rows, (output / "tables.md").read_text()


@pytest.mark.slow
def test_three_methods_as_they_are(volumes, tmp_path):
    study = tiny(methods=("scratch", "rotation3d", "rpl2d"), labels=("2",), repetitions=1)
    rows, table = run(study, volumes.path, tmp_path)
    assert [row["method"] for row in rows] == ["rotation3d", "rpl2d", "scratch"]
    for row in rows:
        assert 0 <= float(row["dice"]) <= 1
        assert float(row["peak_memory_mb"]) > 100
        assert float(row["device_seconds"]) > 0
    for method in ("rotation3d", "rpl2d"):
        assert re.search(
            rf"\| {method} \| 2 \| scratch \| no gain shown: .* a single repetition", table
        )


@pytest.mark.slow
def test_brats_pretrained_on_uk_biobank(tmp_path):
    data = prepared(tmp_path, "brats", source_files.write_brats)
    corpus = prepared(tmp_path, "ukb", source_files.write_ukb, "--val=0.34")
    # Wider than the four contrasts are many: a first level as wide has no shortcut to repeat.
    encoder = SMALL["encoder"] | {"width": 8}
    study = small(brats.STUDY, (16, 16, 16), encoder=encoder)
    rows, table = run(
        study, data, tmp_path / "out", f"--pretrain-data={corpus}", "--methods=scratch,rotation3d"
    )
    assert {row["method"] for row in rows} == {"scratch", "rotation3d"}
    assert all(row["WT"] != "" for row in rows)
    assert "Isensee et al." in table
    assert "| 0.880 |" in table  # the paper's, beside ours


@pytest.mark.slow
def test_pancreas(tmp_path):
    data = prepared(
        tmp_path, "msd", source_files.write_msd, "--recipe=mr", "--classes=0:b,1:pancreas,2:tumour"
    )
    study = small(pancreas.STUDY, (16, 16, 16), finetuning_slices={"data.crop": (16, 16)})
    rows, table = run(study, data, tmp_path / "out", "--methods=scratch,scratch2d,rotation3d")
    assert len(rows) == 3
    assert "Reference_dice: mean Dice of background, pancreas and tumour" in table
    assert "| scratch2d |" in table
    assert "mean validation Dice of background, pancreas and tumour, by epoch" in table


@pytest.mark.slow
def test_retina(tmp_path):
    data = prepared(tmp_path, "images", source_files.write_images, count=20)
    study = small(retina.STUDY, (24, 24))
    study = dataclasses.replace(study, finetuning=dict(study.finetuning) | {"task.head": "ordinal"})
    rows, table = run(study, data, tmp_path / "out", "--methods=scratch,rotation2d")
    assert {row["mode"] for row in rows} == {"random", "finetune"}
    assert "| ≈ 0.735 |" in table  # the paper's, pretrained on the same pictures as ours
    assert "| rotation2d on UK Biobank |" in table
    assert "validation accuracy of the five bits" in table


@pytest.mark.slow
def test_levels_of_the_hippocampus_are_of_slices_cut_on_first_use(tmp_path):
    data = write_hippocampi(tmp_path / "volumes").path
    study = small(hippocampus_levels.STUDY, (8, 8), labels=("2",))
    out = tmp_path / "out"
    rows, _ = run(study, data, out, "--methods=rotation2d")
    assert {row["mode"] for row in rows} == {"finetune"}
    slices = Counter((case.split, case.subject) for case in store.read(out / "data").cases)
    of_training = sorted(count for (split, _), count in slices.items() if split == "train")
    assert len(of_training) == 3
    sums = {str(a + b) for a, b in itertools.combinations(of_training, 2)}
    assert {row["training_cases"] for row in rows} <= sums
    with (out / "pretraining.csv").open(newline="") as file:
        (pretraining,) = csv.DictReader(file)
    seen = sum(n for (split, _), n in slices.items() if split in ("train", "unlabelled"))
    assert int(pretraining["cases"]) == seen < slices.total()


def test_cut_slices_are_kept_out_of_repositories_from_the_start(tmp_path):
    volumes = write_hippocampi(tmp_path / "volumes")
    out = tmp_path / "out"

    def cut(dataset, folder):
        assert (folder / ".gitignore").read_text() == "*\n"
        raise UserError("killed")

    study = small(dataclasses.replace(hippocampus_levels.STUDY, derive=cut), (8, 8))
    with pytest.raises(UserError, match="killed"):
        command.main(study, [f"--data={volumes.path}", f"--output={out}"])


def test_grades_have_no_source_to_be_scored_on(tmp_path):
    volumes = write_hippocampi(tmp_path / "volumes")
    options = [f"--data={volumes.path}", f"--output={tmp_path / 'out'}", f"--source={tmp_path}"]
    with pytest.raises(UserError, match="--source: scores label maps, and hippocampus_levels has"):
        command.main(hippocampus_levels.STUDY, options)
    assert not (tmp_path / "out" / "data").exists()  # said before anything is cut


def test_a_phantom_to_pretrain_on_is_generated_on_first_use(tmp_path):
    shape = {"data.phantom.shape": (32, 32, 32)}
    study = small(
        abdomen.STUDY,
        (16, 16, 16),
        data=shape,
        corpus=shape
        | {
            "data.phantom.train": 2,
            "data.phantom.val": 1,
            "data.phantom.test": 0,
            "data.phantom.seed": 1,
        },
    )
    (tmp_path / "corpus").mkdir()

    def made(folder, make):
        return make()

    found = protocol.open_corpus(study, tmp_path / "corpus", made)
    assert [case.split for case in found.cases].count("train") == 2
    assert found.extra["seed"] == 1
    assert protocol.open_corpus(study, tmp_path / "corpus", made) == found
    assert protocol.open_corpus(phantom.STUDY, None, made) is None


def test_the_phantom_is_drawn_on_first_use(tmp_path):
    data = {
        "data.threads": 1,
        "data.phantom.shape": (32, 32, 32),
        "data.phantom.train": 3,
        "data.phantom.val": 2,
        "data.phantom.test": 2,
    }
    study = small(phantom.STUDY, (16, 16, 16), data=data)
    options = command.parser(study).parse_args([f"--output={tmp_path}"])
    command.check_counts(study, options)
    found = protocol.open_data(study, options, tmp_path)
    assert len(found.dataset.cases) == 3 + 2 + 2
    assert (tmp_path / "data" / "dataset.json").exists()
    assert (tmp_path / "data" / ".gitignore").exists()
