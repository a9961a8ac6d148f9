"""The DenseNet against the library's own forms.

Value and gradient of the whole net, at full width and depth and in float64, also agree with
torchvision's to 2e-15 (tried with torchvision 0.28, which the project does not depend on).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from ssl3d.errors import UserError
from ssl3d.models import densenet, encoders, heads, layers, load_encoder
from ssl3d.training import loop, run_log
from tests.support.examples import traced_step
from tests.support.oracles import SPECS, agree, normal
from tests.support.shipped_configs import PROXY_CONFIGS

TINY = {"kind": "densenet121", "width": 4, "depth": 2}
sizes = st.one_of(*(st.lists(st.integers(1, 9), min_size=r, max_size=r).map(tuple) for r in (2, 3)))


def shapes_of(config, size=(32, 32), channels=3):
    x = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    return jax.eval_shape(encoders.build(config).init, jax.random.key(0), x)


def random_variables(config, channels=3):
    """Scales, shifts and statistics that are not the neutral ones of an initialisation."""
    rng = np.random.default_rng(0)
    flat = traverse_util.flatten_dict(shapes_of(config, channels=channels))
    for path, leaf in flat.items():
        if path[-1] == "kernel":
            value = rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        else:
            value = rng.uniform(0.5, 1.5, leaf.shape)
        flat[path] = jnp.asarray(value, jnp.float32)
    return traverse_util.unflatten_dict(flat)


def test_size_of_the_original():
    """Keras' DenseNet121 without top: 7,037,504 values, of which 83,648 are running statistics."""
    config = {"kind": "densenet121", "width": 32, "depth": 5, "norm": "batch"}
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for name, tree in shapes_of(config).items()
    }
    assert counts == {"params": 7_037_504 - 83_648, "batch_stats": 83_648}
    assert shapes_of(TINY).keys() == {"params"}


@settings(max_examples=3)
@given(sizes)
def test_stem_is_a_strided_convolution(size):
    rank, x = len(size), normal(0, 2, *size, 3)
    stem = densenet.Stem(4, jnp.float32)
    # As large as initialised ones are: a cosine of large sums would amplify their rounding.
    kernel = normal(1, *(7,) * rank, 3, 4) / math.sqrt(7**rank * 3)
    agree(
        lambda x, kernel: stem.apply({"params": {"kernel": kernel}}, x),
        lambda x, kernel: lax.conv_general_dilated(
            x, kernel, (2,) * rank, [(3, 3)] * rank, dimension_numbers=SPECS[rank]
        ),
        x,
        kernel,
    )


@settings(max_examples=4)
@given(sizes, st.booleans())
def test_overlapping_max_pool(size, ties):
    rank, x = len(size), normal(0, 2, *size, 3)
    agree(
        densenet.overlapping_max_pool,
        lambda x: lax.reduce_window(
            x, -jnp.inf, lax.max, (1, *(3,) * rank, 1), (1, *(2,) * rank, 1),
            [(0, 0), *[(1, 1)] * rank, (0, 0)],
        ),
        jnp.round(x) if ties else x,
    )  # fmt: skip


def library_densenet(variables, x, blocks):
    """The definition, operator by operator: the transition's mean comes after its product."""
    params, statistics = variables["params"], variables["batch_stats"]

    def norm_relu(x, *path):
        scale, shift, mean, variance = (
            traverse_util.flatten_dict(tree)[(*path, name)]
            for tree, names in ((params, ("scale", "bias")), (statistics, ("mean", "var")))
            for name in names
        )
        return jnp.maximum((x - mean) / jnp.sqrt(variance + 1e-3) * scale + shift, 0)

    def convolve(x, kernel, stride=1):
        pad = kernel.shape[0] // 2
        return lax.conv_general_dilated(
            x, kernel, (stride,) * 2, [(pad, pad)] * 2, dimension_numbers=SPECS[2]
        )

    levels = [x, norm_relu(convolve(x, params["stem"]["kernel"], 2), "stem_norm")]
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = lax.reduce_window(levels[-1], -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)
    for i, count in enumerate(blocks, start=1):
        if i > 1:
            x = convolve(levels[-1], params[f"transition_{i - 1}"]["kernel"])
            x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        block = f"block_{i}"
        for j in range(1, count + 1):
            y = x
            for name in (f"layer_{j}_narrow", f"layer_{j}_new"):
                kernel = params[block][name]["conv"]["kernel"]
                y = convolve(norm_relu(y, block, name, "norm"), kernel)
            x = jnp.concatenate([x, y], axis=-1)
        levels.append(norm_relu(x, block, "norm"))
    return levels


def test_the_whole_net_is_its_definition():
    config = TINY | {"depth": 3, "norm": "batch"}
    variables, x = random_variables(config), normal(0, 2, 24, 32, 3)
    ours = jax.jit(encoders.build(config).apply)(variables, x).levels
    theirs = jax.jit(lambda v, x: library_densenet(v, x, densenet.BLOCKS[:2]))(variables, x)
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-3 * jnp.abs(right).max())


@pytest.mark.parametrize(
    ("depth", "size"), [(2, (64, 96)), (3, (9, 20, 1)), (4, (1, 7)), (5, (75, 33))]
)
def test_level_shapes_and_the_smallest_norm(depth, size):
    config = TINY | {"depth": depth}
    encoder = encoders.build(config)

    def run(x):
        return encoder.init_with_output(
            jax.random.key(0), x, capture_intermediates=lambda m, _: isinstance(m, layers.Norm)
        )

    features, state = jax.eval_shape(run, jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))
    assert [level.shape for level in features.levels] == [
        (2, *(-(-n // 2**i) for n in size), channels)
        for i, channels in enumerate([3, 8, 32, 64, 128, 128][: depth + 1])
    ]
    voxels = [math.prod(leaf.shape[1:-1]) for leaf in jax.tree.leaves(state["intermediates"])]
    assert encoders.smallest_norm(config, size) == min(voxels)


@pytest.fixture(scope="module")
def pooled():
    """A function (norm, train, x [2, 9, 12, 3]) -> pooled features; each net compiles once."""
    nets = {}

    def run(norm, train, x):
        encoder = encoders.build(TINY | {"norm": norm})
        if norm not in nets:
            variables = random_variables(TINY | {"norm": norm})

            def features(x, train):
                levels, _ = encoder.apply(variables, x, train, mutable=["batch_stats"])
                return heads.pooled(levels)

            nets[norm] = jax.jit(features, static_argnums=1)
        return nets[norm](x, train)

    return run


@pytest.mark.parametrize("norm", layers.NORMS)
def test_different_inputs_have_different_features(pooled, norm):
    for train_mode in (False, True) if norm == "batch" else (False,):
        one, other = pooled(norm, train_mode, normal(0, 2, 9, 12, 3))
        assert jnp.isfinite(one).all()
        assert jnp.linalg.norm(one - other) > 0.02 * jnp.linalg.norm(one)


def test_every_parameter_has_a_gradient():
    encoder, x, direction = encoders.build(TINY), normal(0, 2, 13, 16, 3), normal(1, 32)
    variables = random_variables(TINY)
    gradients = jax.jit(jax.grad(lambda v: (heads.pooled(encoder.apply(v, x)) @ direction).sum()))(
        variables
    )
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert jnp.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)


def test_bfloat16_has_float32_parameters_and_close_values():
    half, x = encoders.build(TINY | {"dtype": "bfloat16"}), normal(0, 2, 16, 16, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(TINY | {"dtype": "bfloat16"}))} == {
        jnp.dtype("float32")
    }
    variables = random_variables(TINY)
    coarse = jax.jit(half.apply)(variables, x)
    fine = heads.pooled(jax.jit(encoders.build(TINY).apply)(variables, x))
    assert {level.dtype for level in coarse.levels} == {jnp.dtype("bfloat16")}
    assert jnp.linalg.norm(heads.pooled(coarse) - fine) < 0.03 * jnp.linalg.norm(fine)


def test_dropout_acts_in_training_alone():
    encoder, x = encoders.build(TINY | {"dropout": 0.5}), normal(0, 1, 16, 16, 3)
    variables = random_variables(TINY)

    @jax.jit
    def dropped(key):
        return encoder.apply(variables, x, train=True, rngs={"dropout": key}).levels[-1]

    assert not np.array_equal(*(dropped(jax.random.key(i)) for i in range(2)))
    jax.eval_shape(encoder.apply, variables, x)  # asks for no key


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 1}, ["encoder.depth", "2 to 5"]),
        ({"depth": 6}, ["encoder.depth", "2 to 5"]),
        ({"final_pool": "max"}, ["encoder.final_pool", "none"]),
        ({"activation_first": True}, ["encoder.activation_first", "False"]),
        ({"norm": "layer"}, ["encoder.norm", "group, instance, batch"]),
        ({"dtype": "float16"}, ["encoder.dtype", "bfloat16"]),
        ({"dropout": 1.0}, ["encoder.dropout"]),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(change, words):
    with pytest.raises(UserError) as error:
        encoders.build(TINY | change)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words)


def test_inputs_of_which_one_voxel_is_left_are_refused():
    encoders.build(TINY | {"depth": 5}, (33, 32))
    with pytest.raises(UserError, match="one is left"):
        encoders.build(TINY | {"depth": 5}, (32, 32))


# It has no level at full resolution, from which a decoder could reconstruct.
RECONSTRUCTING = ("mae2d",)


@pytest.mark.parametrize(
    "name", sorted({n for n in PROXY_CONFIGS if n[-2] == "2"} - {*RECONSTRUCTING})
)
def test_every_proxy_task_without_a_decoder_takes_it(tiny, pictures, monkeypatch, name):
    monkeypatch.setattr(densenet, "BLOCKS", (2,))  # less to trace
    config = tiny(name, pictures.path, encoder__kind="densenet121")
    loss, metrics = traced_step(config, pictures)
    assert loss.shape == (4,)
    assert any(metric.endswith("accuracy") for metric in metrics)


@pytest.mark.parametrize("name", RECONSTRUCTING)
def test_a_task_with_a_decoder_refuses_it(tiny, pictures, name):
    with pytest.raises(UserError, match=r"encoder\.kind='densenet121'.*full resolution"):
        traced_step(tiny(name, pictures.path, encoder__kind="densenet121"), pictures)


@pytest.mark.slow
def test_a_run_trains_and_exports_it(tiny, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(densenet, "BLOCKS", (2,))  # layers of one block: less to compile
    sizes = {"steps": 2, "validate_every": 2}
    config = tiny("rpl2d", pictures.path, encoder__kind="densenet121", **sizes)
    assert loop.train(config, tmp_path)
    lines = run_log.read_metrics(tmp_path)
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    module, variables = load_encoder(tmp_path)
    assert module == encoders.build(config.encoder)
    one, other = heads.pooled(jax.jit(module.apply)(variables, normal(0, 2, 11, 14, 3)))
    assert jnp.linalg.norm(one - other) > 0.02 * jnp.linalg.norm(one)
