import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d import bounds, tasks, xla
from ssl3d.configs import segment3d
from ssl3d.data import store
from ssl3d.downstream import linear_probe
from ssl3d.errors import UserError
from ssl3d.models import export, heads, readouts
from ssl3d.training import problem, transfer
from ssl3d.training.cases import choose_cases
from tests.support import exported
from tests.support.datasets import forget_digests
from tests.support.random_weights import write_encoder


def modified(dataset, folder, change, label=None):
    """A copy of the data set in which every case is `change(case)` and has the label `label(case)`.

    Without `label` the label maps are the same.
    """
    shutil.copytree(dataset.path, folder)
    cases = [change(case) for case in dataset.cases]
    for index, case in enumerate(cases):
        if label:
            image = np.array(store.load_image(dataset, case))
            files = store.write_arrays(folder, case.id, image, label(case))
            cases[index] = dataclasses.replace(case, files=files)
    copy = dataclasses.replace(dataset, path=folder, cases=tuple(cases))
    store.write_manifest(copy)
    return copy


def test_what_is_linear_in_the_features_of_voxels_is_found(tiny, volumes, pretrained, tmp_path):
    module, variables = export.load_encoder(pretrained[3])
    coefficients = jnp.asarray(np.random.default_rng(1).normal(size=(4 + 8 + 16, 1)))
    coefficients /= jnp.linalg.norm(coefficients)

    @jax.jit
    def of_image(image):
        levels = module.apply(variables, image).levels
        return readouts.scores_of(levels, coefficients, jnp.zeros(1))[0, ..., 0]

    def score(case):
        image = np.asarray(store.load_image(volumes, case), np.float32)[None]
        return np.asarray(of_image(image))

    limit = np.quantile([score(case) for case in volumes.cases], 0.8)
    dataset = modified(
        volumes, tmp_path / "data", lambda case: case, lambda case: score(case) > limit
    )
    config = tiny("segment3d", dataset.path, init__encoder=str(pretrained[3]))
    rows = {row["row"]: row for row in linear_probe.probe(config, "test")["rows"]}
    dice = {name: row["scores"]["mean foreground Dice"]["value"] for name, row in rows.items()}
    # Least squares approximates a threshold on a sum, but not exactly.
    assert dice["pretrained encoder"] > 0.9
    assert dice["untrained encoder"] < 0.8
    assert dice["raw intensities"] < 0.8
    assert rows["pretrained encoder"]["features"] == 28
    assert rows["raw intensities"]["features"] == 2


def test_sizes_that_follow_from_the_data_are_those_of_a_run(volumes, tmp_path, monkeypatch):
    """They follow from the depth of the pretrained encoder."""

    class Seen(Exception):
        pass

    def build(config, labels):
        raise Seen(config.data.crop, config.encoder.depth)

    settings = {"kind": "resunet", "width": 4, "depth": 2}
    encoder = exported.write_encoder(tmp_path / "encoder", settings, 3)
    config = segment3d.get_config("folder")
    config.data.path, config.init.encoder = str(tmp_path / "data"), str(encoder)
    (tmp_path / "data").mkdir()
    cases = tuple(dataclasses.replace(case, shape=(27,) * 3) for case in volumes.cases)
    store.write_manifest(dataclasses.replace(volumes, path=tmp_path / "data", cases=cases))
    run = problem.open_problem(config.copy_and_resolve_references())[0].config
    bounds.derive(config)
    assert (config.data.crop, run.data.crop) == ((24,) * 3, (26,) * 3)
    monkeypatch.setattr(linear_probe.tasks, "build", build)
    with pytest.raises(Seen) as seen:
        linear_probe.probe(config, "test")
    assert seen.value.args == (run.data.crop, run.encoder.depth)


def test_what_is_linear_in_the_pooled_features_is_found(tiny, pretrained, tmp_path, make_dataset):
    splits = {"train": 200, "val": 40, "test": 40}
    pictures = make_dataset(tmp_path / "plain", 2, 3, splits=splits, side=16)
    module, variables = export.load_encoder(pretrained[2])
    images = np.stack([store.load_image(pictures, case) for case in pictures.cases])
    features = jax.jit(module.apply)(variables, jnp.asarray(images, jnp.float32))
    pooled = np.concatenate([heads.pooled(features, how) for how in ("mean", "max")], axis=-1)
    pooled = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-3)
    score = pooled @ np.random.default_rng(0).normal(size=pooled.shape[1])
    grades = dict(
        zip((case.id for case in pictures.cases), (score > np.median(score)) * 1, strict=True)
    )
    dataset = modified(
        pictures,
        tmp_path / "data",
        lambda case: dataclasses.replace(case, grade=int(grades[case.id])),
    )
    config = tiny("classify2d", dataset.path, init__encoder=str(pretrained[2]), data__crop=(16, 16))
    document = linear_probe.probe(config, "test")
    rows = {row["row"]: row for row in document["rows"]}
    areas = {name: row["scores"]["AUROC"]["value"] for name, row in rows.items()}
    assert areas["pretrained encoder"] > 0.9
    assert areas["untrained encoder"] < 0.8
    assert areas["majority class"] == 0.5
    assert rows["pretrained encoder"]["features"] == pooled.shape[1]
    assert rows["majority class"]["scores"]["quadratic kappa"]["value"] == 0
    assert [d["row"] for d in document["differences"]] == ["untrained encoder", "majority class"]
    kappa = rows["pretrained encoder"]["scores"]["quadratic kappa"]["value"]
    assert document["differences"][1]["value"] == pytest.approx(kappa)


def without_seconds(document):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in document["rows"]]


@pytest.fixture(scope="module")
def graded(tiny, pictures, pretrained):
    """A function: overrides -> config and document of a probe of the shared pictures."""

    def run(**overrides):
        config = tiny(
            "classify2d",
            pictures.path,
            init__encoder=str(pretrained[2]),
            data__label_seed=2,
            **overrides,
        )
        return config, linear_probe.probe(config, "test")

    return run


@pytest.fixture(scope="module")
def whole(graded):
    """The same with all labels."""
    return graded()


def test_rows_are_reproducible_and_the_untrained_one_is_of_the_seed(graded, whole):
    first, again, other = (without_seconds(run[1]) for run in (whole, graded(), graded(seed=1)))
    assert first == again
    assert first[0] == other[0]
    assert first[1] != other[1]


def test_the_label_fraction_is_respected(graded, whole, pictures):
    penalties = []
    for config, document in (graded(data__label_fraction=0.25), whole):
        training, validation = choose_cases(config, pictures)
        assert document["cases"] == {
            "train": [case.id for case in training],
            "validation": [case.id for case in validation],
            "test": [case.id for case in pictures.split("test")],
        }
        penalties.append(without_seconds(document)[0])
    assert penalties[0] != penalties[1]


@pytest.mark.parametrize("name", [pytest.param("segment2d", marks=pytest.mark.slow), "classify3d"])
def test_slices_of_volumes_and_grades_of_volumes(tiny, volumes, pretrained, tmp_path, name):
    dataset = modified(
        volumes,
        tmp_path / "data",
        lambda case: dataclasses.replace(case, grade=case.order % 2),
    )
    encoder = pretrained["slices" if name == "segment2d" else 3]
    config = tiny(name, dataset.path, init__encoder=str(encoder), predict__batch=24)
    document = linear_probe.probe(config, "test")
    for row in document["rows"]:
        assert all(np.isfinite(score["value"]) for score in row["scores"].values())


def test_gpus_encode_with_channels_last_if_the_config_says_so(
    tiny, pictures, pretrained, compiler_options
):
    config = tiny("classify2d", init__encoder=str(pretrained[2]), xla__channels_last=True)
    transfer.adopt_architecture(config, len(pictures.modalities))
    task = tasks.build(config, tasks.Labels(pictures.classes, (1, 1, 1)))
    with xla.compiling_for("gpu"):
        linear_probe.build_encoders(config, pictures, task)
    assert "xla_gpu_force_conv_nhwc" in compiler_options[-1]


def test_an_encoder_of_fewer_channels_is_repeated(tiny, pictures, tmp_path):
    folder = write_encoder(tmp_path, 2, 1)
    config = tiny("classify2d", pictures.path, init__encoder=str(folder))
    assert linear_probe.probe(config, "test")["rows"][0]["features"] == 2 * 16


def test_data_that_do_not_fit_are_refused(tiny, volumes, pretrained, tmp_path):
    config = tiny("classify2d", volumes.path, init__encoder=str(pretrained["slices"]))
    with pytest.raises(UserError, match=r"holds volumes.*classify3d"):
        linear_probe.probe(config, "test")
    dataset = modified(volumes, tmp_path / "data", lambda case: case)
    forget_digests(dataset.path)
    for case in dataset.split("val"):
        path = store.label_path(dataset.path, case.id)
        np.save(path, np.zeros_like(np.load(path)))
    config = tiny("segment3d", dataset.path, init__encoder=str(pretrained[3]))
    with pytest.raises(UserError, match="no case of the split val has any foreground"):
        linear_probe.probe(config, "test")


def test_scores_that_are_not_defined_are_null(tiny, volumes, pretrained, tmp_path):
    empty, _ = volumes.split("test")
    dataset = modified(
        volumes,
        tmp_path / "data",
        lambda case: case,
        lambda case: np.asarray(store.load_label(volumes, case)) * (case.id != empty.id),
    )
    file = tmp_path / "probe.json"
    config = tiny("segment3d", dataset.path, init__encoder=str(pretrained[3]))
    linear_probe.write(linear_probe.probe(config, "test"), file)
    row = json.loads(file.read_text())["rows"][0]
    assert row["dice"][empty.id] is None
    assert row["scores"]["mean foreground Dice"]["low"] is None
    assert 0 <= row["scores"]["mean foreground Dice"]["value"] <= 1
