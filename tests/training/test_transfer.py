import importlib
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ssl3d import bounds
from ssl3d.errors import UserError
from ssl3d.models import encoders, export
from ssl3d.training import loop, trained_model, transfer
from tests.support.random_weights import ENCODER, random_variables, write_encoder


@pytest.fixture
def pretrained(tmp_path):
    """Of another depth than the downstream config's: the architecture is taken from the encoder."""
    return write_encoder(tmp_path / "pretrained", 2, 3)


def flat(tree):
    return {name: np.asarray(x) for name, x in traverse_util.flatten_dict(tree, sep="/").items()}


def downstream(tiny, pictures, pretrained, mode, **overrides):
    return tiny(
        "classify2d", pictures.path, init__encoder=str(pretrained), transfer__mode=mode, **overrides
    )


def parts(workdir, kind="last"):
    """The encoder's and the other weights of a model, flat."""
    weights = flat(trained_model.load(workdir, kind).variables)
    encoder = {name: x for name, x in weights.items() if "/encoder/" in name}
    return encoder, {name: x for name, x in weights.items() if name not in encoder}


def loaded_weights(pretrained):
    _, variables = export.load_encoder(pretrained)
    return {name.replace("/", "/encoder/", 1): x for name, x in flat(variables).items()}


def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


# The three modes.


class Spied(NamedTuple):
    """A run, and what it saw: ("head", weights), ("val", cases) or (step, (batch, views))."""

    workdir: Path
    pretrained: Path
    seen: list


@pytest.fixture(scope="module")
def runs(tiny, pictures, tmp_path_factory):
    """Mode -> a run of three steps from the same encoder, whose norm keeps statistics."""
    folder = tmp_path_factory.mktemp("modes")
    pretrained = write_encoder(folder / "pretrained", 2, 3, ENCODER | {"norm": "batch"})
    seen = []
    real = loop.make_step, loop.validate

    def make_step(config, task, optimizers, mesh, frozen=False):
        function = real[0](config, task, optimizers, mesh, frozen)
        augmented = jax.jit(jax.vmap(lambda key, one: task.views(key, one, True)))

        def step(state, batch):
            number = int(state["step"])
            if number == 0:
                rest = {k: v for k, v in state["params"].items() if k != "encoder"}
                seen.append(("head", flat(jax.device_get(rest))))
            keys = jax.random.split(jax.random.key(number), len(batch["case"]))
            views = augmented(keys, batch["record"])
            seen.append((number, jax.device_get((batch, views))))
            return function(state, batch)

        return step

    def validate(evaluation, task, variables, batches, mesh, case_ids):
        batches = list(batches)
        seen.append(("val", [batch["case"].tolist() for batch in batches]))
        return real[1](evaluation, task, variables, iter(batches), mesh, case_ids)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_step", make_step)
        patch.setattr(loop, "validate", validate)
        for mode in transfer.MODES:
            seen.clear()
            config = downstream(
                tiny, pictures, pretrained, mode, data__label_fraction=0.5,
                optimizer__weight_decay=0.1, optimizer__ema=0.9,
            )  # fmt: skip
            assert loop.train(config, folder / mode)
            found[mode] = Spied(folder / mode, pretrained, list(seen))
    return found


def test_all_modes_see_the_same(runs):
    """Data order, crops, augmentation, steps, validation cases, the new layers' first weights."""
    by_mode = {}
    for mode, run in runs.items():
        assert [name for name, _ in run.seen] == ["val", "head", 0, 1, 2, "val"]
        by_mode[mode] = jax.tree.map(np.asarray, [what for _, what in run.seen])
    for mode in ("frozen", "finetune"):
        jax.tree.map(np.testing.assert_array_equal, by_mode[mode], by_mode["random"])


def test_a_frozen_encoder_and_its_statistics_stay_bit_for_bit(runs):
    encoder, rest = parts(runs["frozen"].workdir)
    assert {name.partition("/")[0] for name in encoder} == {"params", "batch_stats"}
    assert equal(encoder, loaded_weights(runs["frozen"].pretrained))
    assert any(np.abs(x).max() > 0 for name, x in rest.items() if name.endswith("bias"))


def test_statistics_of_an_encoder_that_learns_follow_the_data(runs):
    encoder, _ = parts(runs["finetune"].workdir)
    before = loaded_weights(runs["finetune"].pretrained)
    moved = [not np.array_equal(before[name], x) for name, x in encoder.items() if "stats" in name]
    assert moved
    assert all(moved)


def test_random_takes_the_architecture_and_not_the_weights(runs):
    workdir, pretrained, _ = runs["random"]
    encoder, _ = parts(workdir)
    wanted = loaded_weights(pretrained)
    assert {name: x.shape for name, x in encoder.items()} == {k: x.shape for k, x in wanted.items()}
    kernels = [name for name in wanted if name.endswith("kernel")]
    assert not any(np.allclose(encoder[name], wanted[name]) for name in kernels)
    assert json.loads((workdir / "config.json").read_text())["encoder"]["depth"] == 3


def test_fine_tuning_says_what_it_loaded_and_begins_after_the_warm_up(
    tiny, pictures, pretrained, tmp_path, capsys
):
    config = downstream(
        tiny, pictures, pretrained, "finetune", transfer__warmup_steps=3, steps=6,
        checkpoint_every=3, optimizer__warmup_steps=0,
    )  # fmt: skip
    assert loop.train(config, tmp_path / "run", stop_at=3)
    wanted = loaded_weights(pretrained)
    assert f"all {len(wanted)} arrays of the encoder loaded from" in capsys.readouterr().out
    encoder, rest = parts(tmp_path / "run")
    assert equal(encoder, wanted)
    assert loop.train(config, tmp_path / "run")
    later, rest_later = parts(tmp_path / "run")
    changed = [name for name in later if not np.array_equal(later[name], encoder[name])]
    assert len(changed) > len(later) / 2
    assert not equal(rest, rest_later)


# What is said and what is refused.


def test_more_channels_repeat_the_first_layer(tmp_path):
    """With the same values in all channels the encoder answers as it did to the one."""
    folder = write_encoder(tmp_path, 2, 1)
    module, loaded = export.load_encoder(folder)
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 1))
    wide = jnp.repeat(x, 3, axis=-1)
    own = {"params": {"encoder": jax.jit(module.init)(jax.random.key(1), wide)["params"]}}
    merged, said = transfer.load_into(own, {"encoder": loaded}, str(folder))
    assert "level_0/first/conv/kernel" in said
    assert "shortcut" in said
    apply = jax.jit(module.apply)
    before = apply(loaded, x).levels[-1]
    after = apply({"params": merged["params"]["encoder"]}, wide).levels[-1]
    np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize(
    ("rank", "channels", "mode", "message"),
    [
        (3, 3, "finetune", "an encoder of 3D images does not fit a 2D network"),
        (2, 4, "finetune", "trained on 4 channels, the data set has 3"),
        (2, 3, "both", "config.transfer.mode='both'"),
    ],
)
def test_the_wrong_encoder_is_refused_before_anything_is_compiled(
    tiny, pictures, tmp_path, monkeypatch, rank, channels, mode, message
):
    monkeypatch.setattr(loop, "init_state", lambda *_: pytest.fail("too late"))
    folder = write_encoder(tmp_path / "pretrained", rank, channels)
    config = downstream(tiny, pictures, folder, mode)
    with pytest.raises(UserError, match=message):
        loop.train(config, tmp_path / "run")


def test_fine_tuning_needs_an_encoder(tiny, pictures, tmp_path):
    config = tiny("classify2d", pictures.path, transfer__mode="finetune")
    with pytest.raises(UserError, match=r"--config\.init\.encoder=DIR"):
        loop.train(config, tmp_path)
    config = downstream(tiny, pictures, tmp_path / "nothing", "finetune")
    with pytest.raises(UserError, match=r"nothing.*missing"):
        loop.train(config, tmp_path)


def test_a_damaged_encoder_is_refused_before_anything_is_written(
    tiny, pictures, pretrained, tmp_path
):
    file = pretrained / "encoder" / export.WEIGHTS
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"encoder\.safetensors"):
        loop.train(downstream(tiny, pictures, pretrained, "finetune"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_it_is_said_where_weights_are_not_used(tiny, pictures, pretrained):
    config = downstream(tiny, pictures, pretrained, "random")
    assert "its weights are not used" in transfer.explain(config)
    assert "stays as it is initialised" in transfer.explain(
        tiny("classify2d", transfer__mode="frozen")
    )
    assert transfer.explain(tiny("classify2d")) == transfer.explain(tiny("rpl2d")) == ""


@pytest.mark.parametrize("what", ["missing", "renamed", "reshaped"])
def test_every_leaf_must_fit(pretrained, what):
    _module, variables = export.load_encoder(pretrained)
    own = {"params": {"encoder": variables["params"]}}
    changed = flat(variables)
    name = "params/level_1/first/conv/kernel"
    leaf = changed.pop(name)
    if what != "missing":
        changed[f"{name}s" if what == "renamed" else name] = leaf[..., :1]
    other = traverse_util.unflatten_dict(changed, sep="/")
    with pytest.raises(UserError, match="level_1/first/conv/kernel"):
        transfer.load_into(own, {"encoder": other}, str(pretrained))
    export.save_encoder(pretrained / "encoder", other, export.describe_encoder(pretrained))
    with pytest.raises(UserError, match="level_1/first/conv/kernel"):
        export.load_encoder(pretrained)


def test_settings_that_an_older_file_lacks_are_those_of_their_time(tiny, pictures, tmp_path):
    folder = write_encoder(tmp_path / "pretrained", 2, 3)
    assert "final_pool" not in export.describe_encoder(folder)["encoder"]
    config = downstream(tiny, pictures, folder, "finetune")
    config.encoder.final_pool, config.encoder.dropout = "max", 0.3
    config.encoder.blocks, config.encoder.dtype = (1, 1), "bfloat16"
    transfer.adopt_architecture(config, 3)
    assert (config.encoder.final_pool, config.encoder.dropout) == ("none", 0.0)
    assert tuple(config.encoder.blocks) == ()
    assert config.encoder.dtype == "bfloat16"  # how it is computed stays the config's


def test_the_warm_up_must_end(tiny, pictures, pretrained, tmp_path):
    config = downstream(tiny, pictures, pretrained, "finetune", transfer__warmup_steps=3)
    with pytest.raises(UserError, match=r"config\.transfer\.warmup_steps=3"):
        loop.train(config, tmp_path)


# A proxy task goes on from the weights of another pretraining.


def test_a_pretraining_goes_on_from_an_unfinished_one(tiny, pictures, tmp_path, capsys):
    still = {"optimizer__learning_rate": 1e-12, "optimizer__weight_decay": 0.0, "steps": 4}
    before = tiny("rpl2d", pictures.path, checkpoint_every=1, **still)
    assert loop.train(before, tmp_path / "run", stop_at=1)
    longer = tiny("rpl2d", pictures.path, seed=1, init__encoder=str(tmp_path / "run"), **still)
    assert loop.train(longer, tmp_path / "longer")
    said = capsys.readouterr().out
    assert "arrays of the encoder loaded" in said
    assert "step 1 of 4" in said
    assert "at step 0" in said.splitlines()[-1]
    before, after = (
        flat(export.load_encoder(tmp_path / run)[1]["params"]) for run in ("run", "longer")
    )
    for name, leaf in before.items():
        np.testing.assert_allclose(after[name], leaf, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cpc2d", ENCODER | {"norm": "batch"}, r"norm.*\(the encoder is that of config\.init"),
        ("rpl2d", ENCODER | {"depth": 5}, r"encoder\.depth is 5: .* config\.init\.encoder=.*run"),
        ("mae2d", {"kind": "densenet121", "width": 4, "depth": 5}, "no level at full resolution"),
    ],
)
def test_an_encoder_that_does_not_suit_a_proxy_task(
    tiny, pictures, tmp_path, monkeypatch, name, settings, message
):
    monkeypatch.setattr(loop, "init_state", lambda *_: pytest.fail("too late"))
    variables = random_variables(encoders.build(settings), jnp.zeros((1, 32, 32, 3)))
    about = {"encoder": settings, "rank": 2, "channels": 3}
    export.save_encoder(tmp_path / "run" / "encoder", variables, about)
    config = tiny(name, pictures.path, init__encoder=str(tmp_path / "run"))
    with pytest.raises(UserError, match=message):
        loop.train(config, tmp_path / "longer")


@pytest.mark.parametrize(("encoder", "mode"), [("", "random"), ("runs/pretrained", "finetune")])
@pytest.mark.parametrize("name", ["segment3d", "segment2d", "classify3d", "classify2d"])
def test_a_pretrained_encoder_is_fine_tuned_unless_said_otherwise(name, encoder, mode):
    config = importlib.import_module(f"ssl3d.configs.{name}").get_config("folder")
    config.init.encoder = encoder
    bounds.derive(config)
    assert config.transfer.mode == mode
    config.transfer.mode = "frozen"
    bounds.derive(config)
    assert config.transfer.mode == "frozen"


def test_a_run_of_a_version_without_the_key_goes_on(tiny, pictures, tmp_path):
    config = tiny("rpl2d", pictures.path, steps=1)
    assert loop.train(config, tmp_path / "run")
    file = tmp_path / "run/config.json"
    document = json.loads(file.read_text())
    del document["init"]
    file.write_text(json.dumps(document))
    assert loop.train(config, tmp_path / "run")
