import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d import bounds, tasks
from ssl3d.configs import joint3d
from ssl3d.data import pipeline
from ssl3d.errors import UserError
from ssl3d.tasks import joint
from ssl3d.training import crop_fit
from ssl3d.training import step as steps


def batch_of(config, dataset, task):
    return next(
        pipeline.train_batches(
            dataset, dataset.split("train"), task.record, rank=config.rank, slice_axis=2, margin=0,
            batch_size=4, seed=0, threads=1,
        )
    )  # fmt: skip


def blank_inputs(task, batch):
    """Zeros of the shapes that the network is given."""
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jax.eval_shape(
        lambda: jax.vmap(lambda k, r: task.views(k, r, True)[0])(keys, batch["record"])
    )
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), inputs)


def gradients(config, dataset, variables=None):
    """Of one step: gradients of the parameters, metrics, and the parameters."""
    task = tasks.build(config)
    batch = batch_of(config, dataset, task)
    if variables is None:
        blank = blank_inputs(task, batch)
        variables = jax.jit(task.network.init)(jax.random.key(1), blank)["params"]
    state = {"params": variables, "batch_stats": {}, "step": jnp.int32(3)}
    grads, _, metrics = jax.jit(steps.make_gradients(config, task))(state, batch)
    return grads, metrics, variables


def mean_loss(metrics, name):
    total, count = metrics[f"{name}_loss"]
    return float(total / count)


def alone(parts, name):
    """The parameters of a part's own network, from those of the joint one."""
    return {"encoder": parts["encoder"], **parts[f"parts_{name}"]}


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("rpl", 2),
        pytest.param("rotation", 3, marks=pytest.mark.slow),
        pytest.param("exemplar", 2, marks=pytest.mark.slow),
        pytest.param("mae", 2, marks=pytest.mark.slow),
    ],
)
def test_one_part_is_that_task_alone(tiny, datasets, rank, name):
    config = tiny(f"joint{rank}d", datasets[rank].path, task__parts=(name,))
    together, metrics, variables = gradients(config, datasets[rank])
    part = joint.configs(config)[name]
    own, own_metrics, _ = gradients(part, datasets[rank], alone(variables, name))
    for one, other in zip(
        jax.tree.leaves(alone(together, name)), jax.tree.leaves(own), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert metrics["loss"] == own_metrics["loss"]
    for key in own_metrics.keys() - {"loss"}:
        assert metrics[f"{name}_{key}"] == own_metrics[key]
    assert metrics.get("chance") == own_metrics.get("chance")


def test_the_gradient_is_the_weighted_sum_of_the_parts(tiny, pictures):
    weights = {"rpl": 2.0, "rotation": 0.5}
    config = tiny("joint2d", pictures.path, task__parts=tuple(weights))
    for name, weight in weights.items():
        config.parts[name].weight = weight
    together, metrics, variables = gradients(config, pictures)
    seen = {}
    for name in weights:
        # The other parts stay, without a say, so that this one sees the same crops.
        for other in weights:
            config.parts[other].weight = float(other == name)
        seen[name], one, _ = gradients(config, pictures, variables)
        assert float(one["loss"]) == pytest.approx(mean_loss(metrics, name), rel=1e-5)
    expected = jax.tree.map(
        lambda *leaves: sum(w * leaf for w, leaf in zip(weights.values(), leaves, strict=True)),
        *(seen[name]["encoder"] for name in weights),
    )
    found = jax.tree.leaves(together["encoder"])
    for leaf, wanted in zip(found, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())
    assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in found)
    total = sum(weight * mean_loss(metrics, name) for name, weight in weights.items())
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-5)


def test_parts_draw_numbers_of_their_own(tiny, pictures):
    """Two parts of the same task share neither patches, augmentation nor targets."""
    config = tiny("joint2d", pictures.path, task__parts=("rpl", "again"))
    config.parts.again = config.parts.rpl.copy_and_resolve_references()
    task = tasks.build(config)
    image = np.random.default_rng(0).normal(size=(24, 24, 3)).astype(np.float16)
    record = pipeline.arrays(
        task.record(np.random.default_rng(0), pipeline.Example(image, None), True)
    )
    assert {key.partition("/")[0] for key in record} == {"rpl", "again"}
    record = jax.tree.map(jnp.asarray, record)
    inputs, _ = jax.jit(lambda key: task.views(key, record, True))(jax.random.key(0))
    assert inputs["rpl"].shape == inputs["again"].shape
    assert not np.allclose(inputs["rpl"], inputs["again"])
    record["again/patches"] = record["rpl/patches"]
    inputs, _ = jax.jit(lambda key: task.views(key, record, True))(jax.random.key(0))
    assert not np.allclose(inputs["rpl"], inputs["again"])  # augmentation
    rng, example = np.random.default_rng(0), pipeline.Example(image, None)
    draws = [task.record(rng, example, True) for _ in range(50)]
    first = [draw["rpl/chosen"][1] == draw["again/chosen"][1] for draw in draws]
    assert 0 < np.mean(first) < 0.4


@pytest.mark.parametrize("queries", [3, 26])  # a few, and all
def test_equal_patches_are_cut_once_and_others_for_each_part(tiny, queries):
    parts = ("rpl", "jigsaw", "rotation")
    config = tiny("joint3d", task__parts=parts, parts__rpl__task__queries=queries)
    task = tasks.build(config)
    image = np.random.default_rng(0).normal(size=(24, 24, 24, 2)).astype(np.float16)
    record = pipeline.arrays(
        task.record(np.random.default_rng(0), pipeline.Example(image, None), True)
    )
    patches = {"rpl/chosen", "jigsaw/patches", "jigsaw/starts"}
    assert record.keys() == patches | {"rotation/volume", "rotation/start"}
    on_device = jax.tree.map(jnp.asarray, record)
    inputs, targets = jax.device_get(task.views(jax.random.key(0), on_device, False))
    np.testing.assert_array_equal(
        inputs["rpl"], inputs["jigsaw"][0][record["rpl/chosen"]], strict=True
    )
    whole = task.panels(record, inputs, targets)[0]
    starts = [box.start for box in whole.boxes[: 1 + queries]]
    assert starts == [tuple(record["jigsaw/starts"][i]) for i in record["rpl/chosen"]]
    assert task.spatial == ("rotation/volume",)
    config.parts.jigsaw.task.jitter = 2
    record = tasks.build(config).record(
        np.random.default_rng(0), pipeline.Example(image, None), True
    )
    assert {"rpl/patches", "jigsaw/patches"} < record.keys()


def test_one_encoder_serves_all(tiny, pictures):
    config = tiny("joint2d", pictures.path, task__parts=("rpl", "jigsaw", "rotation"))
    task = tasks.build(config)
    blank = blank_inputs(task, batch_of(config, pictures, task))
    variables = jax.eval_shape(task.network.init, jax.random.key(1), blank)["params"]
    assert variables.keys() == {"encoder", "parts_rpl", "parts_jigsaw", "parts_rotation"}
    for name in ("rpl", "jigsaw", "rotation"):
        assert "encoder" not in variables[f"parts_{name}"]


def test_panels_of_all_parts(tiny):
    config = tiny("joint2d", task__parts=("rpl", "rotation"))
    task = tasks.build(config)
    image = np.random.default_rng(0).normal(size=(24, 24, 3)).astype(np.float16)
    record = pipeline.arrays(
        task.record(np.random.default_rng(0), pipeline.Example(image, None), True)
    )
    on_device = jax.tree.map(jnp.asarray, record)
    inputs, targets = jax.device_get(task.views(jax.random.key(0), on_device, True))
    panels = task.panels(record, inputs, targets)
    assert [panel.title.partition(":")[0] for panel in panels] == [
        "whole image", *["rpl"] * 4, "rotation",
    ]  # fmt: skip
    assert panels[0].image is None
    assert len(panels[0].boxes) == 4 + 1


def test_the_first_headline_counts_and_the_others_are_shown(tiny):
    task = tasks.build(tiny("joint3d", task__parts=("exemplar", "rpl")))
    assert task.headline == "exemplar_accuracy"
    assert task.shown == ("rpl_accuracy",)
    assert task.needs_whole_batch
    data = {"embeddings": np.eye(4)[:, None].repeat(2, 1), "histogram": np.ones((4, 2, 3))}
    scores = task.score({"exemplar": data}, np.arange(4), np.zeros(4, int))
    assert scores["exemplar_accuracy"][0].sum() == 4
    assert scores["exemplar_accuracy_histogram"][0].sum() == 0
    np.testing.assert_allclose(scores["chance"][0], 1 / 4)
    assert tasks.build(tiny("joint3d", task__parts=("rpl", "rotation"))).collect is None


# Settings.


def test_parts_have_the_settings_of_their_own_configs():
    config = joint3d.get_config("hippocampus")
    for module in joint3d.SHIPPED:
        own = module.get_config("hippocampus")
        section = config.parts[own.task.name]
        assert section.crop == own.data.crop
        # Where the joint crop is smaller, what follows from it is too.
        if own.data.crop == config.data.crop:
            assert section.task == own.task


def test_values_that_follow_from_the_crop_follow_the_joint_one():
    config = joint3d.get_config("phantom")
    assert config.parts.rpl.task.jitter == 4
    config.data.crop = (30, 30, 30)
    bounds.derive(config)
    assert config.parts.rpl.task.jitter == 2
    config.parts.rpl.crop = (18, 18, 18)
    config.parts.jigsaw.task.jitter = 3
    bounds.derive(config)
    assert config.parts.rpl.task.jitter == 1
    assert config.parts.jigsaw.task.jitter == 3
    config.parts.rpl.task.intensity = 7.0
    with pytest.raises(UserError, match=r"config.parts.rpl.task.intensity=7.0"):
        bounds.check(config)


def test_a_crop_suits_every_part(tiny, volumes):
    config = tiny("joint3d", data__crop=(22, 24, 20), task__parts=("rpl", "rotation"))
    config.parts.rotation.task.coarsen = 2
    parts = joint.configs(config)
    assert parts["rpl"].data.crop == (22, 24, 20)
    assert parts["rotation"].data.crop == (20, 20, 20)
    config.parts.rotation.crop = (15, 24, 24)
    assert joint.configs(config)["rotation"].data.crop == (14, 14, 14)
    config.data.crop = (40, 24, 20)
    fitted = crop_fit.fit_collection(config, volumes.split("train"), volumes.split("val"))
    assert config.data.crop == (24, 24, 20)
    assert not fitted.left_out


def test_parts_adapt_to_the_collection(tiny):
    config = tiny("joint2d", task__parts=("rpl", "rotation"))
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(24, 12, 1)).repeat(2, axis=1) for _ in range(4)]
    message = tasks.adapt(config, images)
    assert "axes differ in sharpness" in message
    assert config.parts.rotation.task.blur[0] > config.parts.rotation.task.blur[1]
    assert joint.configs(config)["rotation"].task.blur == config.parts.rotation.task.blur


def test_a_module_of_ones_own_is_a_part(tiny, tmp_path, monkeypatch):
    (tmp_path / "my_tasks").mkdir()
    (tmp_path / "my_tasks" / "turned.py").write_text(
        "from ssl3d.tasks import rotation\n\n"
        "def build(config):\n"
        "    settings = dict(group='axes', turns=1, coarsen=1, blur=(0, 0), intensity=0.0)\n"
        "    config.task.update(settings)\n"
        "    return rotation.build(config)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = tasks.build(tiny("joint2d", task__parts=("rpl", "my_tasks.turned")))
    assert task.shown == ("turned_accuracy",)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"task__parts": ("rpl", "chess")}, "config.task.parts='chess' does not exist; choose"),
        ({"task__parts": ("rpl", "my.chess")}, "config.task.parts='my.chess': there is no module"),
        ({"task__parts": ("rpl", "rpl")}, "config.task.parts=.*rpl comes twice"),
        ({"task__parts": ("rpl", "ssl3d.tasks.segmentation")}, "segmentation learns from labels"),
        ({"parts__rpl__task__queries": 40}, r"config.parts.rpl.task.queries=40: between"),
    ],
)
def test_parts_that_cannot_be_are_refused(tiny, overrides, message):
    with pytest.raises(UserError, match=message):
        tasks.build(tiny("joint3d", **overrides))


def test_no_parts_are_refused_by_the_bound(tiny):
    with pytest.raises(UserError, match=r"config.task.parts=\(\): must be names"):
        bounds.check(tiny("joint3d", task__parts=()))
