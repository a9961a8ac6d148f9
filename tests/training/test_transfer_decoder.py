"""A pretraining run with a decoder exports it, and a segmentation may start from it."""

import json
import shutil

import numpy as np
import pytest
from flax import traverse_util

from ssl3d.errors import UserError
from ssl3d.models import export
from ssl3d.training import loop, trained_model

SIZES = {"data__crop": (16,) * 3, "validate_every": 9, "optimizer__warmup_steps": 1}
STILL = {"optimizer__learning_rate": 1e-9}


def flat(tree):
    return {name: np.asarray(x) for name, x in traverse_util.flatten_dict(tree, sep="/").items()}


def pretrain(tiny, volumes, workdir, norm):
    config = tiny("mae3d", volumes.path, steps=2, task__block=4, encoder__norm=norm, **SIZES)
    assert loop.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def pretrained(tiny, volumes, tmp_path_factory):
    """The folder of a pretraining run, of group norm."""
    return pretrain(tiny, volumes, tmp_path_factory.mktemp("runs") / "pretrained", "group")


def segmentation(tiny, volumes, pretrained, **overrides):
    options = {"init__encoder": str(pretrained), "transfer__decoder": True} | overrides
    return tiny("segment3d", volumes.path, **{"steps": 1} | SIZES | options)


def same(workdir, pretrained, part, within=0.0):
    """Name of each of a part's trained arrays -> whether it is the exported one, up to `within`."""
    trained = flat(trained_model.load(workdir, "last").variables)
    exported = flat(
        export.load_decoder(pretrained) if part == "decoder" else export.load_encoder(pretrained)[1]
    )
    return {
        name: name.replace(f"/{part}/", "/") in exported
        and np.abs(leaf - exported[name.replace(f"/{part}/", "/")]).max() <= within
        for name, leaf in trained.items()
        if f"/{part}/" in name and not name.startswith("batch_stats")
    }


def test_a_decoder_is_exported_beside_the_encoder(pretrained):
    encoder, decoder = (
        json.loads((pretrained / part / f"{part}.json").read_text())
        for part in ("encoder", "decoder")
    )
    assert encoder.pop("sha256") != decoder.pop("sha256")
    assert encoder == decoder
    assert {name.split("/")[1] for name in flat(export.load_decoder(pretrained))} == {
        "up_0", "level_0", "logits_0",
    }  # fmt: skip


@pytest.mark.parametrize(("where", "decoder"), [("encoder", True), ("", False)])
def test_segmentation_starts_from_it_if_asked_to(
    tiny, volumes, pretrained, tmp_path, capsys, decoder, where
):
    config = segmentation(
        tiny, volumes, pretrained / where, transfer__mode="finetune", transfer__decoder=decoder,
        **STILL,
    )  # fmt: skip
    assert loop.train(config, tmp_path / "run")
    said = capsys.readouterr().out
    assert f"arrays of the encoder loaded from {pretrained / 'encoder'}" in said
    assert ("of the decoder loaded from" in said) == decoder
    random = "2 arrays of decoder/logits_0\n" if decoder else "10 arrays of decoder\n"
    assert f"starting at random: {random}" in said
    assert all(same(tmp_path / "run", pretrained, "encoder", within=1e-6).values())
    found = same(tmp_path / "run", pretrained, "decoder", within=1e-6)
    for name, equal in found.items():
        if "kernel" in name:
            assert equal == (decoder and "logits" not in name), name


def assert_the_decoder_alone_is_trained(tiny, volumes, pretrained, workdir):
    config = segmentation(tiny, volumes, pretrained, steps=3, transfer__mode="frozen")
    assert loop.train(config, workdir)
    assert all(same(workdir, pretrained, "encoder").values())
    assert not any(same(workdir, pretrained, "decoder").values())


def test_frozen_keeps_the_encoder_and_trains_the_decoder(tiny, volumes, pretrained, tmp_path):
    assert_the_decoder_alone_is_trained(tiny, volumes, pretrained, tmp_path / "run")


@pytest.mark.slow
def test_frozen_keeps_the_statistics_of_the_encoder(tiny, volumes, tmp_path):
    pretrained = pretrain(tiny, volumes, tmp_path / "pretrained", "batch")
    assert_the_decoder_alone_is_trained(tiny, volumes, pretrained, tmp_path / "run")


def test_random_mode_loads_no_decoder(tiny, volumes, pretrained, tmp_path, capsys):
    config = segmentation(tiny, volumes, pretrained, transfer__mode="random", **STILL)
    assert loop.train(config, tmp_path / "run")
    assert "its weights are not used" in capsys.readouterr().out
    kernels = {
        k: v for k, v in same(tmp_path / "run", pretrained, "decoder").items() if "kern" in k
    }
    assert kernels
    assert not any(kernels.values())


def refused(config, workdir, message):
    with pytest.raises(UserError, match=message):
        loop.train(config, workdir)


@pytest.mark.parametrize("mode", ["random", "frozen"])
def test_a_decoder_of_no_run_is_refused(tiny, volumes, tmp_path, mode):
    config = segmentation(tiny, volumes, "", transfer__mode=mode)
    refused(config, tmp_path, r"transfer\.decoder=True: give .*--config\.init\.encoder=DIR")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", r"decoder\.json: missing.*config\.transfer\.decoder=False"),
        ("no json", r"decoder\.json: cannot be read"),
        ("short", r"decoder\.safetensors: cannot be read"),
        ("other", r"decoder\.safetensors: damaged, or from another run"),
    ],
)
def test_a_damaged_decoder_is_refused_before_anything_is_written(
    tiny, volumes, pretrained, tmp_path, what, message
):
    copy = tmp_path / "pretrained"
    shutil.copytree(pretrained, copy, ignore=shutil.ignore_patterns("checkpoints"))
    weights = copy / "decoder" / "decoder.safetensors"
    if what == "no folder":
        shutil.rmtree(copy / "decoder")
    elif what == "no json":
        weights.with_suffix(".json").write_text("[]")
    elif what == "short":
        weights.write_bytes(weights.read_bytes()[:-4])
    else:
        weights.write_bytes(weights.read_bytes()[:-4] + b"1234")
    config = segmentation(tiny, volumes, copy, transfer__mode="finetune")
    refused(config, tmp_path / "run", message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "level_0/first/conv/kernel is missing"),
        ("renamed", "level_0/first/conv/kernels is not part of"),
        ("reshaped", "level_0/first/conv/kernel is float32"),
    ],
)
def test_every_leaf_must_fit(tiny, volumes, pretrained, tmp_path, what, message):
    copy = tmp_path / "pretrained"
    shutil.copytree(pretrained, copy, ignore=shutil.ignore_patterns("checkpoints"))
    changed = flat(export.load_decoder(copy))
    name = "params/level_0/first/conv/kernel"
    leaf = changed[name] if what == "renamed" else changed.pop(name)
    if what != "missing":
        changed[f"{name}s" if what == "renamed" else name] = leaf[..., :1]
    export.save_decoder(copy / "decoder", traverse_util.unflatten_dict(changed, sep="/"), {})
    config = segmentation(tiny, volumes, copy, transfer__mode="finetune")
    refused(config, tmp_path / "run", message)
