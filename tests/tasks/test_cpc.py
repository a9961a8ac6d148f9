import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import assume, given
from hypothesis import strategies as st

from ssl3d import tasks
from ssl3d.data import pipeline
from ssl3d.data.pipeline import Example
from ssl3d.errors import UserError
from ssl3d.tasks import cpc
from ssl3d.tasks.grid import patch_grid, patches_of, starts
from tests.support.random_weights import random_variables


def test_contexts_and_targets_in_3d_are_the_original_codes():
    grid = patch_grid((16, 16, 16), 4)
    contexts, targets = cpc.contexts(grid, 1, "mirror"), cpc.predicted(grid, 1, 0)
    assert contexts.shape == (16, 10)
    assert targets.shape == (16, 2)
    assert contexts[0].tolist() == [5, 4, 5, 1, 0, 1, 5, 4, 5, 16]
    assert targets[0].tolist() == [32, 48]
    # Column (1, 2), away from the border: the 3 x 3 above it, and the anchor last.
    assert contexts[6].tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11, 22]
    assert targets[6].tolist() == [38, 54]


def test_contexts_and_targets_in_2d_are_the_original_codes():
    grid = patch_grid((24, 24), 5, overlap=4)
    assert cpc.contexts(grid, 1, "zero").tolist() == [
        [25, 0, 1, 5],
        [0, 1, 2, 6],
        [1, 2, 3, 7],
        [2, 3, 4, 8],
        [3, 4, 25, 9],
    ]
    assert cpc.contexts(grid, 1, "mirror")[[0, 4]].tolist() == [[1, 0, 1, 5], [3, 4, 3, 9]]
    # Patches overlap by half, so row 2 shares voxels with the anchor's row and is skipped.
    assert cpc.predicted(grid, 1, 0).tolist() == [[15 + y, 20 + y] for y in range(5)]
    # And a row between them, across which smooth images do not continue.
    assert cpc.predicted(grid, 1, 1).tolist() == [[20 + y] for y in range(5)]


def test_deeper_contexts_are_wider_pyramids():
    grid = patch_grid((35, 35), 7)
    context = cpc.contexts(grid, 2, "mirror")[3]
    assert context.tolist() == [1, 2, 3, 4, 5, 9, 10, 11, 17]


@given(
    st.integers(2, 3),
    st.integers(2, 6),
    st.integers(0, 8),
    st.integers(0, 3),
    st.integers(0, 4),
    st.integers(0, 2),
    st.sampled_from(["mirror", "zero"]),
    st.booleans(),
    st.integers(0, 99),
)
def test_predicted_patches_share_no_voxel_with_their_context(
    rank, per_side, overlap, jitter, row, skip, border, worst, seed
):
    side = per_side * 5 + overlap
    assume(row < per_side and 5 + overlap - jitter >= 2)
    grid = patch_grid((side,) * rank, per_side, jitter, overlap)
    contexts, goals = cpc.contexts(grid, row, border), cpc.predicted(grid, row, skip)
    assert len(contexts) == len(goals) == per_side ** (rank - 1)
    near = starts(grid, np.random.default_rng(seed))[:, 0]
    far = starts(grid, np.random.default_rng(seed + 1))[:, 0]
    if worst:  # the context as far down and the targets as far up as jitter can bring them
        far = np.array(grid.positions)[:, 0] * grid.stride[0]
        near = far + grid.jitter
    for anchor, (context, goal) in enumerate(zip(contexts, goals, strict=True)):
        seen = [i for i in context if i < grid.count]
        assert context[-1] == row * len(contexts) + anchor
        for i, j in itertools.product(seen, goal):
            assert near[i] + grid.patch[0] + skip * grid.stride[0] <= far[j]
        assert all(j % len(contexts) == anchor for j in goal)  # the same column
    if goals.size:  # and from the first such row to the last
        assert goals[0, 0] // len(contexts) == row + grid.rows_apart + skip
        assert goals[-1, -1] == grid.count - 1


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("cpc3d", {}),
        ("cpc2d", {}),
        ("cpc2d", {"task__border": "zero", "encoder__norm": "instance"}),
    ],
)
def test_no_prediction_depends_on_a_voxel_it_predicts(tiny, name, overrides):
    """By the gradient with respect to the voxels of the images, of all predictions of an anchor."""
    config = tiny(name, **overrides)
    task, rank = tasks.build(config), config.rank
    grid = patch_grid(
        config.data.crop, config.task.per_side, config.task.jitter, config.task.overlap
    )
    rng = np.random.default_rng(0)
    at = starts(grid, rng)
    images = jnp.asarray(rng.normal(size=(2, *config.data.crop, 1)), jnp.float32)
    anchor = grid.per_side ** (rank - 1) // 2

    def boxes(i):
        return tuple(slice(a, a + p) for a, p in zip(at[i], grid.patch, strict=True))

    def predict(images, variables):
        patches = jnp.stack([images[:, *boxes(i)] for i in range(grid.count)], axis=1)
        outputs = task.network.apply(variables, patches, train=True)
        return jnp.abs(outputs["predictions"][0, anchor]).sum()

    patches = jnp.zeros((1, grid.count, *grid.patch, 1))
    variables = random_variables(task.network, patches)
    gradient = np.asarray(jax.jit(jax.grad(predict))(images, variables))
    context = cpc.contexts(grid, config.task.anchor_row, config.task.border)[anchor]
    for i in set(context.tolist()) - {grid.count}:
        assert np.abs(gradient[0, *boxes(i)]).max() > 0, f"context patch {i} is not looked at"
    for i in cpc.predicted(grid, config.task.anchor_row, config.task.skip)[anchor]:
        assert (gradient[0, *boxes(i)] == 0).all(), f"predicted patch {i} is seen"
    unseen = np.ones(config.data.crop, bool)
    for i in set(context.tolist()) - {grid.count}:
        unseen[boxes(i)] = False
    assert (gradient[0][unseen] == 0).all()
    assert (gradient[1] == 0).all()  # another image


@pytest.mark.parametrize("name", ["cpc3d", "cpc2d"])
def test_every_patch_is_encoded_once(tiny, name):
    config = tiny(name)
    task = tasks.build(config)
    count = config.task.per_side**config.rank
    encoded = []

    def note(call, arguments, options, context):
        if context.module.name == "encoder" and context.method_name == "__call__":
            encoded.append(arguments[0].shape)
        return call(*arguments, **options)

    image = np.zeros((*config.data.crop, 2), np.float16)
    record = pipeline.arrays(task.record(np.random.default_rng(0), Example(image, None), True))
    grid = patch_grid(
        config.data.crop, config.task.per_side, config.task.jitter, config.task.overlap
    )
    cut = jnp.asarray(patches_of(jax.tree.map(jnp.asarray, record), grid), jnp.float32)
    patches = jnp.stack([cut] * 3)
    with nn.intercept_methods(note):
        outputs, _ = jax.eval_shape(task.network.init_with_output, jax.random.key(0), patches)
    assert encoded == [(3 * count, *patches.shape[2:])]
    assert outputs["codes"].shape == (3, count, 8)
    anchors = config.task.per_side ** (config.rank - 1)
    assert outputs["predictions"].shape == (3, anchors, 1, 8)


GOALS = np.array([[3, 6], [4, 7], [5, 8]])


@functools.partial(jax.jit, static_argnums=2)
def info_nce(outputs, targets, temperature=0.1):
    return cpc.info_nce(outputs, targets, GOALS, temperature)


def outputs_and_targets(batch=4, count=9, anchors=3, steps=2, code=5, seed=0):
    rng = np.random.default_rng(seed)
    outputs = {
        "codes": rng.normal(size=(batch, count, code)).astype(np.float32),
        "predictions": rng.normal(size=(batch, anchors, steps, code)).astype(np.float32),
    }
    targets = {"subject": np.array([7, 3, 7, 5]), "valid": np.array([True, True, True, False])}
    return outputs, targets


def info_nce_by_hand(outputs, targets, temperature):
    """Loops over every prediction and every candidate, from the definition."""

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    codes, predictions = outputs["codes"].astype(float), outputs["predictions"].astype(float)
    losses, accuracies = [], []
    for b, volume in enumerate(predictions):
        terms, hits = [], []
        for a, anchor in enumerate(volume):
            for step, prediction in enumerate(anchor):
                true = cosine(prediction, codes[b, GOALS[a, step]])
                negatives = [
                    cosine(prediction, codes[c, n])
                    for c in range(len(codes))
                    for n in range(codes.shape[1])
                    if (c == b and n != GOALS[a, step])
                    or (targets["subject"][c] != targets["subject"][b] and targets["valid"][c])
                ]
                scores = np.array([true, *negatives]) / temperature
                terms.append(np.log(np.exp(scores).sum()) - scores[0])
                own = [cosine(prediction, code) for code in np.delete(codes[b], GOALS[a, step], 0)]
                hits.append(all(true > other for other in own))
        losses.append(np.mean(terms))
        accuracies.append(np.sum(hits))
    return np.array(losses), np.array(accuracies)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_info_nce_is_what_its_definition_says(temperature):
    outputs, targets = outputs_and_targets()
    # Some predictions are good, so that accuracy is neither 0 nor 1.
    outputs["predictions"][:2] += 3 * outputs["codes"][:2, GOALS]
    loss, metrics = info_nce(outputs, targets, temperature)
    losses, hits = info_nce_by_hand(outputs, targets, temperature)
    np.testing.assert_allclose(loss, losses, rtol=1e-4)
    np.testing.assert_array_equal(metrics["accuracy"][0], hits)
    np.testing.assert_array_equal(metrics["accuracy"][1], 6)
    assert 0 < hits.sum() < 24
    np.testing.assert_allclose(metrics["chance"][0] / metrics["chance"][1], 1 / 9, rtol=1e-6)


def with_codes(outputs, row, codes):
    """Outputs with other codes of one row, in a copy: jax may still be reading the array."""
    changed = outputs["codes"].copy()
    changed[row] = codes
    return outputs | {"codes": changed}


@pytest.mark.parametrize("row", [2, 3], ids=["same subject", "padding"])
def test_codes_of_the_same_subject_and_of_padding_are_no_negatives(row):
    outputs, targets = outputs_and_targets()
    before, _ = info_nce(outputs, targets)
    after, _ = info_nce(with_codes(outputs, row, outputs["codes"][row][::-1] + 1), targets)
    unchanged = np.isclose(before, after, rtol=1e-6)
    # Row 2 is of subject 7 like row 0; row 3 is padding, so only its own loss knows its codes.
    assert unchanged.tolist() == ([True, False, False, False] if row == 2 else [True] * 3 + [False])


def test_other_volumes_are_negatives():
    outputs, targets = outputs_and_targets()
    targets |= {"subject": np.arange(4), "valid": np.ones(4, bool)}
    before, _ = info_nce(outputs, targets)
    after, _ = info_nce(with_codes(outputs, 1, outputs["codes"][1] + 1), targets)
    assert not np.isclose(before, after, rtol=1e-4).any()


def test_constant_codes_rank_nothing_first_and_true_ones_everything():
    outputs, targets = outputs_and_targets()
    constant = {key: np.ones_like(value) for key, value in outputs.items()}
    loss, metrics = info_nce(constant, targets)
    assert metrics["accuracy"][0].sum() == 0
    # Rows 0 and 2 (subject 7) choose among 2 x 9 patches: of themselves and of subject 3.
    np.testing.assert_allclose(loss, np.log([18, 27, 18, 36]), rtol=1e-5)
    outputs["predictions"] = outputs["codes"][:, GOALS] * 2
    _, metrics = info_nce(outputs, targets)
    np.testing.assert_array_equal(metrics["accuracy"][0], metrics["accuracy"][1])


def test_the_original_objective_tells_one_true_column_from_one_false():
    outputs, targets = outputs_and_targets()
    pair = np.random.default_rng(1).uniform(size=(4, 9)).astype(np.float32)
    binary = jax.jit(lambda *arrays: cpc.binary(*arrays, GOALS))
    loss, metrics = binary(outputs, targets | {"pair": pair})
    assert loss.shape == (4,)
    assert np.isfinite(loss).all()
    # Every score is 0: undecided, and never right.
    outputs["predictions"] = np.zeros_like(outputs["predictions"])
    loss, metrics = binary(outputs, targets | {"pair": pair})
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    assert metrics["pair_accuracy"][0].sum() == 0


binary = jax.jit(functools.partial(cpc.binary, goals=GOALS))


@pytest.mark.parametrize("row", [2, 3], ids=["same subject", "padding"])
def test_the_original_objective_samples_no_negative_from_the_same_subject_and_padding(row):
    """Whatever number is drawn; anchor 0 of volume 0 has 2 + 3 columns to choose from."""
    outputs, targets = outputs_and_targets()
    changed = with_codes(outputs, row, outputs["codes"][row][::-1] + 1)
    for draw in np.linspace(0, 0.999, 11, dtype=np.float32):
        pair = {"pair": np.full((4, 9), draw)}
        before, _ = binary(outputs, targets | pair)
        after, _ = binary(changed, targets | pair)
        kept = [0] if row == 2 else [0, 1, 2]
        np.testing.assert_allclose(before[jnp.array(kept)], after[jnp.array(kept)], rtol=1e-6)


def test_the_original_objective_samples_every_other_column():
    """By the loss of one anchor, with codes that tell the columns apart."""
    outputs, _ = outputs_and_targets(code=1)
    targets = {"subject": np.array([7, 3, 7, 5]), "valid": np.array([True] * 4)}
    outputs["predictions"] = np.zeros((4, 3, 2, 1), np.float32)
    outputs["predictions"][0, 1] = 1
    outputs["codes"] = np.arange(1, 37, dtype=np.float32).reshape(4, 9, 1) / 36
    column = outputs["codes"][:, GOALS].mean((2, 3))  # [B, A]
    rest = 4 * np.log(2)  # of the anchors without a prediction

    def negative(draw):
        loss, _ = binary(outputs, targets | {"pair": np.full((4, 9), draw)})
        softplus = float(loss[0]) * 6 - np.log1p(np.exp(-column[0, 1])) - rest
        return np.log(np.expm1(softplus))

    seen = {round(float(negative(draw)), 3) for draw in (np.arange(8, dtype=np.float32) + 0.5) / 8}
    wanted = [*column[0, [0, 2]], *column[1], *column[3]]
    assert sorted(seen) == pytest.approx(sorted(wanted), abs=2e-3)


def test_the_original_flips_each_patch_on_its_own_along_the_rows():
    patches = np.random.default_rng(0).normal(size=(16, 3, 4, 1)).astype(np.float32)
    shown, _ = cpc.views(jax.random.key(0), jnp.asarray(patches), True, 0.0, True)
    flipped = [np.array_equal(a, b[::-1]) for a, b in zip(shown, patches, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(shown, patches, strict=True)]
    assert np.logical_xor(flipped, kept).all()
    assert 0 < sum(flipped) < 16


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"encoder__norm": "batch"}, "config.encoder.norm=batch"),
        ({"task__anchor_row": 3}, "config.task.anchor_row"),
        ({"task__overlap": 5, "task__anchor_row": 2}, "config.task.anchor_row"),
        ({"task__objective": "triplet"}, "config.task.objective"),
        ({"task__border": "wrap"}, "config.task.border"),
        ({"task__anchor_row": -1}, "config.task.anchor_row"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tiny, overrides, key):
    with pytest.raises(UserError, match=key):
        tasks.build(tiny("cpc3d", **overrides))
