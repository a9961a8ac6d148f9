import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.models import encoders, export
from ssl3d.training import checkpoint, loop, problem, run_log, trained_model, transfer
from ssl3d.training import step as steps
from ssl3d.training.cases import choose_cases

# Another depth than the downstream config's: the architecture is taken from the encoder.
ENCODER = {"kind": "resunet", "width": 4, "depth": 3, "norm": "group"}


def write_encoder(folder, settings=ENCODER, rank=2, channels=3, seed=5):
    encoder = encoders.build(settings)
    x = jnp.zeros((1, *(16,) * rank, channels))
    variables = jax.jit(encoder.init)(jax.random.key(seed), x)
    export.save_encoder(
        folder / "encoder",
        jax.device_get(variables),
        {"encoder": settings, "rank": rank, "channels": channels},
    )
    return folder


@pytest.fixture
def pretrained(tmp_path):
    return write_encoder(tmp_path / "pretrained")


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


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_frozen_encoder_stays_bit_for_bit(tiny, pictures, tmp_path, norm):
    pretrained = write_encoder(tmp_path / "pretrained", ENCODER | {"norm": norm})
    config = downstream(
        tiny, pictures, pretrained, "frozen", optimizer__weight_decay=0.1, optimizer__ema=0.9,
        steps=4,
    )  # fmt: skip
    assert loop.train(config, tmp_path / "run")
    encoder, rest = parts(tmp_path / "run")
    assert equal(encoder, loaded_weights(pretrained))
    assert any(np.abs(x).max() > 0 for name, x in rest.items() if name.endswith("bias"))


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


def test_the_thawed_encoder_has_a_warm_up_of_its_own(tiny):
    config = tiny("classify2d", steps=100, optimizer__warmup_steps=10)
    config.transfer.mode, config.transfer.warmup_steps = "finetune", 40
    rate, whole = steps.schedule(config, start=40), steps.schedule(config)
    assert float(rate(0)) == pytest.approx(float(whole(40)) / 10)
    assert float(rate(30)) == pytest.approx(float(whole(70)))
    assert float(rate(60)) == pytest.approx(0, abs=1e-9)


def test_random_takes_the_architecture_and_not_the_weights(tiny, pictures, pretrained, tmp_path):
    config = downstream(tiny, pictures, pretrained, "random", steps=1, validate_every=1)
    assert loop.train(config, tmp_path / "run")
    encoder, _ = parts(tmp_path / "run")
    wanted = loaded_weights(pretrained)
    assert {name: x.shape for name, x in encoder.items()} == {k: x.shape for k, x in wanted.items()}
    kernels = [name for name in wanted if name.endswith("kernel")]
    assert not any(np.allclose(encoder[name], wanted[name]) for name in kernels)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["encoder"]["depth"] == 3


def test_all_modes_see_the_same(tiny, pictures, pretrained, tmp_path, monkeypatch):
    """Data order, crops, augmentation, steps, validation cases, the new layers' first weights."""
    seen = []
    real = loop.make_step, loop.validate

    def make_step(config, task, optimizers, mesh, frozen=False):
        function = real[0](config, task, optimizers, mesh, frozen)

        def step(state, batch):
            number = int(state["step"])
            if number == 0:
                rest = {k: v for k, v in state["params"].items() if k != "encoder"}
                seen.append(("head", flat(jax.device_get(rest))))
            keys = jax.random.split(jax.random.key(number), len(batch["case"]))
            views = jax.vmap(lambda key, one: task.views(key, one, True))(keys, batch["record"])
            seen.append((number, jax.device_get((batch, views))))
            return function(state, batch)

        return step

    def validate(evaluation, task, variables, batches, mesh):
        batches = list(batches)
        seen.append(("val", [batch["case"].tolist() for batch in batches]))
        return real[1](evaluation, task, variables, iter(batches), mesh)

    monkeypatch.setattr(loop, "make_step", make_step)
    monkeypatch.setattr(loop, "validate", validate)
    by_mode = {}
    for mode in transfer.MODES:
        seen.clear()
        config = downstream(tiny, pictures, pretrained, mode, data__label_fraction=0.5)
        assert loop.train(config, tmp_path / mode)
        assert [name for name, _ in seen] == ["val", "head", 0, 1, 2, "val"]
        by_mode[mode] = jax.tree.map(np.asarray, [what for _, what in seen])
    for mode in ("frozen", "finetune"):
        jax.tree.map(np.testing.assert_array_equal, by_mode[mode], by_mode["random"])


# What is said and what is refused.


def test_more_channels_repeat_the_first_layer(tmp_path):
    """With the same values in all channels the encoder answers as it did to the one."""
    folder = write_encoder(tmp_path, channels=1)
    module, loaded = export.load_encoder(folder)
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 1))
    wide = jnp.repeat(x, 3, axis=-1)
    own = {"params": {"encoder": module.init(jax.random.key(1), wide)["params"]}}
    merged, said = transfer.load_into(own, {"encoder": loaded}, str(folder))
    assert "level_0/first/conv/kernel" in said
    assert "shortcut" in said
    before = module.apply(loaded, x).levels[-1]
    after = module.apply({"params": merged["params"]["encoder"]}, wide).levels[-1]
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
    folder = write_encoder(tmp_path / "pretrained", rank=rank, channels=channels)
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


def test_the_warm_up_must_end(tiny, pictures, pretrained, tmp_path):
    config = downstream(tiny, pictures, pretrained, "finetune", transfer__warmup_steps=3)
    with pytest.raises(UserError, match=r"config\.transfer\.warmup_steps=3"):
        loop.train(config, tmp_path)


# Labels.


def test_label_fractions_are_nested_and_leave_validation_alone(tiny, pictures):
    for seed in (0, 1, 2):
        before = set()
        for fraction in (0.1, 0.3, 0.6, 1.0):
            config = tiny("classify2d", data__label_fraction=fraction, data__label_seed=seed)
            training, validation = choose_cases(config, pictures)
            ids = {case.id for case in training}
            assert before <= ids
            assert [case.id for case in validation] == [c.id for c in pictures.split("val")]
            subjects = {case.subject for case in pictures.split("train")}
            assert len({case.subject for case in training}) == max(
                1, round(fraction * len(subjects))
            )
            before = ids
        assert before == {case.id for case in pictures.split("train")}


def test_another_label_seed_is_another_subset(tiny, pictures):
    chosen = set()
    for seed in range(6):
        config = tiny("classify2d", data__label_fraction=0.3, data__label_seed=seed)
        chosen.add(tuple(case.id for case in choose_cases(config, pictures)[0]))
    assert len(chosen) > 2


def test_cases_without_a_label_are_left_out(tiny, volumes, tmp_path):
    shutil.copytree(volumes.path, tmp_path / "data")
    dataset = store.read(tmp_path / "data")
    cases = tuple(
        dataclasses.replace(case, labelled=index not in (2, 9))
        for index, case in enumerate(dataset.cases)
    )
    config = tiny("segment3d", tmp_path / "data")
    training, validation = choose_cases(config, dataclasses.replace(dataset, cases=cases))
    assert (len(training), len(validation)) == (7, 3)


# The models that are kept.


def test_best_and_last_are_kept_and_go_on_after_a_stop(tiny, pictures, tmp_path):
    config = tiny(
        "classify2d", pictures.path, steps=6, validate_every=1, checkpoint_every=2, data__threads=1
    )
    assert loop.train(config, tmp_path / "whole")
    scores = {
        line["step"]: line["kappa"]
        for line in run_log.read_metrics(tmp_path / "whole")
        if line["split"] == "val" and line["step"]
    }
    best = trained_model.load(tmp_path / "whole", "best")
    assert best.step == min(step for step in scores if scores[step] == max(scores.values()))
    assert trained_model.load(tmp_path / "whole", "last").step == 6
    assert loop.train(config, tmp_path / "pieces", stop_at=3)
    assert loop.train(config, tmp_path / "pieces")
    for kind in trained_model.KINDS:
        files = [
            tmp_path / run / "model" / kind / trained_model.WEIGHTS for run in ("whole", "pieces")
        ]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture(scope="module")
def one_step(tiny, pictures, tmp_path_factory):
    """The folder of a run of one step."""
    workdir = tmp_path_factory.mktemp("one_step")
    loop.train(tiny("classify2d", pictures.path, steps=1, validate_every=1), workdir)
    return workdir


def test_a_model_knows_what_it_needs(one_step, pictures):
    loaded = trained_model.load(one_step)
    assert loaded.config.task.name == "classification"
    assert (loaded.dataset.classes, loaded.dataset.modalities) == (
        pictures.classes,
        pictures.modalities,
    )
    manager = checkpoint.open_manager(one_step)
    assert manager.latest_step() == 1
    manager.close()


def test_damaged_models_are_refused(one_step, tmp_path):
    with pytest.raises(UserError, match=r"model\.json: missing"):
        trained_model.load(tmp_path)
    shutil.copytree(one_step / "model", tmp_path / "model")
    file = tmp_path / "model" / "last" / trained_model.WEIGHTS
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        trained_model.load(tmp_path, "last")
    (tmp_path / "model" / "best" / trained_model.DESCRIPTION).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        trained_model.load(tmp_path, "best")


def test_other_cases_in_the_same_workdir_are_refused(tiny, pictures, tmp_path):
    """Splits that were dealt anew would train on former test cases."""
    shutil.copytree(pictures.path, tmp_path / "data")
    config = tiny("classify2d", tmp_path / "data", steps=2, checkpoint_every=1)
    assert loop.train(config, tmp_path / "run", stop_at=1)
    dataset = store.read(tmp_path / "data")
    swap = {"train": "test", "test": "train", "val": "val"}
    cases = [dataclasses.replace(case, split=swap[case.split]) for case in dataset.cases]
    store.write_manifest(dataclasses.replace(dataset, cases=tuple(cases)))
    with pytest.raises(UserError, match=r"cases\.train"):
        loop.train(config, tmp_path / "run")


WEIGHTS = {"params": {"x": np.zeros(1, np.float32)}}


@pytest.fixture
def make_keeper(tiny, pictures, tmp_path):
    """A function: whether the run resumes -> the keeper of its models."""
    given, _ = problem.open_problem(tiny("classify2d", pictures.path))
    return lambda resumed: trained_model.Keeper(given, tmp_path, resumed)


def best_step(workdir):
    file = workdir / "model" / "best" / trained_model.DESCRIPTION
    return json.loads(file.read_text())["step"]


def test_a_best_model_outlives_a_kill(make_keeper, tmp_path):
    """Steps after the last checkpoint are repeated; their best model is still this run's."""
    keeper = make_keeper(resumed=False)
    keeper.offer(100, {"kappa": 0.80}, WEIGHTS)
    keeper.offer(150, {"kappa": 0.85}, WEIGHTS)
    make_keeper(resumed=True).offer(120, {"kappa": 0.5}, WEIGHTS)
    assert best_step(tmp_path) == 150
    make_keeper(resumed=False).offer(20, {"kappa": 0.5}, WEIGHTS)
    assert best_step(tmp_path) == 20


def test_an_undefined_score_is_the_lowest(make_keeper, tmp_path):
    keeper = make_keeper(resumed=False)
    for step, score in enumerate((np.nan, np.nan, -1.0, np.nan), start=1):
        keeper.offer(step, {"kappa": score}, WEIGHTS)
    assert best_step(tmp_path) == 3


def test_an_untrained_model_is_not_kept(make_keeper, tmp_path):
    keeper = make_keeper(resumed=False)
    keeper.offer(0, {"kappa": 0.9}, WEIGHTS)
    assert not (tmp_path / "model").exists()
    keeper.save_last(0, WEIGHTS)
    last = json.loads((tmp_path / "model" / "last" / trained_model.DESCRIPTION).read_text())
    assert last["scores"] == {"kappa": 0.9}
