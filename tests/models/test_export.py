import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ssl3d import atomic
from ssl3d.errors import UserError
from ssl3d.models import encoders, export, load_encoder
from tests.support.random_weights import random_variables

SETTINGS = {
    "plain": {"kind": "unet", "width": 4, "depth": 2, "norm": "batch", "activation_first": True},
    "residual": {"kind": "resunet", "width": 4, "depth": 2, "dtype": "bfloat16"},
}


def variables_of(settings, rank=3, channels=2):
    image = jnp.zeros((1, *(8,) * rank, channels))
    return random_variables(encoders.build(settings), image)


def describe(settings, rank=3, channels=2):
    return {"encoder": settings, "rank": rank, "channels": channels, "task": "rpl"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function that writes a fresh export of the plain encoder and returns its folder."""
    variables = variables_of(SETTINGS["plain"])

    def write():
        folder = tmp_path_factory.mktemp("run") / "encoder"
        export.save_encoder(folder, variables, describe(SETTINGS["plain"]))
        return folder

    return write


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("rank", [2, 3])
def test_round_trip_is_exact(settings, rank, tmp_path):
    variables = variables_of(settings, rank)
    export.save_encoder(tmp_path / "encoder", variables, describe(settings, rank))
    for folder in (tmp_path, str(tmp_path / "encoder")):
        module, loaded = load_encoder(folder)
        assert module == encoders.build(settings)
        assert jax.tree.structure(loaded) == jax.tree.structure(variables)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    x = jnp.ones((1, *(5,) * rank, 2))
    apply = jax.jit(module.apply)
    levels = apply(loaded, x).levels
    for ours, theirs in zip(levels, apply(variables, x).levels, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_equal_weights_give_equal_bytes(exported):
    one, other = exported(), exported()
    for name in (export.WEIGHTS, export.DESCRIPTION):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert sorted(path.name for path in one.iterdir()) == [export.DESCRIPTION, export.WEIGHTS]


def test_a_view_is_stored_as_it_reads(tmp_path):
    settings = SETTINGS["residual"]
    variables = jax.tree.map(np.asarray, variables_of(settings))
    views = jax.tree.map(lambda leaf: np.asfortranarray(leaf), variables)
    export.save_encoder(tmp_path, views, describe(settings))
    jax.tree.map(np.testing.assert_array_equal, load_encoder(tmp_path)[1], variables)


def test_an_export_replaces_the_one_before(exported):
    folder = exported()
    doubled = jax.tree.map(lambda leaf: 2 * leaf, load_encoder(folder)[1])
    export.save_encoder(folder, doubled, describe(SETTINGS["plain"]))
    jax.tree.map(np.testing.assert_array_equal, load_encoder(folder)[1], doubled)


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_kill_while_an_export_is_replaced_leaves_a_pair(exported, monkeypatch, killed_at):
    """Before the first, the second or the third file appears."""
    folder, real = exported(), export.atomic_write
    before = load_encoder(folder)[1]
    after = jax.tree.map(lambda leaf: 2 * leaf, before)
    written = []

    @contextlib.contextmanager
    def atomic_write(path):
        written.append(path.name)
        if len(written) == killed_at:
            raise Killed
        with real(path) as partial:
            yield partial

    description = describe(SETTINGS["plain"]) | {"step": 2}
    with monkeypatch.context() as patch:
        for module in (export, atomic):
            patch.setattr(module, "atomic_write", atomic_write)
        with pytest.raises(Killed):
            export.save_encoder(folder, after, description)
    expected = after if killed_at == 3 else before
    jax.tree.map(np.testing.assert_array_equal, load_encoder(folder)[1], expected)
    # The next export starts from there, and clears up.
    (folder / f".123.{export.WEIGHTS}").write_bytes(b"partial")
    export.save_encoder(folder, before, description)
    jax.tree.map(np.testing.assert_array_equal, load_encoder(folder)[1], before)
    assert sorted(path.name for path in folder.iterdir()) == [export.DESCRIPTION, export.WEIGHTS]
    assert "replaces" not in json.loads((folder / export.DESCRIPTION).read_text())


def test_an_export_that_is_replaced_while_it_is_read(exported, monkeypatch):
    folder, real = exported(), export.safetensors_files.read
    doubled = jax.tree.map(lambda leaf: 2 * leaf, load_encoder(folder)[1])

    def read(path):
        monkeypatch.setattr(export.safetensors_files, "read", real)
        export.save_encoder(folder, doubled, describe(SETTINGS["plain"]))
        return real(path)

    monkeypatch.setattr(export.safetensors_files, "read", read)
    jax.tree.map(np.testing.assert_array_equal, load_encoder(folder)[1], doubled)


def test_an_encoder_by_run_folder_or_file(exported):
    folder = exported()
    for given in (folder.parent, folder, folder / export.WEIGHTS):
        assert export.encoder_folder(given) == folder
    (folder.parent / "config.json").write_text("{}")
    (folder / export.DESCRIPTION).rename(folder.parent / "elsewhere")
    with pytest.raises(UserError, match=r"encoder\.json: missing"):
        export.describe_encoder(folder.parent)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: missing; give the folder of a run, or its encoder/"),
        ("file.pth", r"file\.pth: no folder and no encoder\.safetensors"),
        ("begun", "begun: this run has no encoder yet; it is written at the first checkpoint"),
    ],
)
def test_what_is_no_encoder_is_said(tmp_path, name, message):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    (tmp_path / "file.pth").write_bytes(b"PK")
    with pytest.raises(UserError, match=message):
        export.describe_encoder(tmp_path / name)


def refused(folder, *words):
    with pytest.raises(UserError) as error:
        load_encoder(folder)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


@pytest.mark.parametrize("name", [export.WEIGHTS, export.DESCRIPTION])
def test_a_missing_file_is_named(exported, name):
    folder = exported()
    (folder / name).unlink()
    refused(folder, folder / name)


def test_a_folder_that_is_none(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "missing")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "file")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights_are_refused(exported, kept):
    file = exported() / export.WEIGHTS
    file.write_bytes(file.read_bytes()[:kept])
    refused(file.parent, file)


def test_one_flipped_bit_is_refused(exported):
    file = exported() / export.WEIGHTS
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    refused(file.parent, file, "checksum")


LEAF = "params/level_1/first/conv/kernel"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda leaves: leaves.pop(LEAF), [LEAF, "missing"]),
        (lambda leaves: leaves.pop("batch_stats/level_0/first/norm/mean"), ["batch_stats/level_0"]),
        (lambda leaves: leaves.update({"params/more": np.ones(2)}), ["params/more"]),
        (lambda leaves: leaves.update({LEAF: leaves[LEAF][..., :3]}), [LEAF, "(3, 3, 3, 4, 3)"]),
        (lambda leaves: leaves.update({LEAF: leaves[LEAF].astype(np.float64)}), [LEAF, "float64"]),
    ],
)
def test_a_leaf_that_does_not_fit_is_named(exported, change, words):
    """Even where no checksum speaks against it, as in weights converted from elsewhere."""
    folder = exported()
    leaves = load_file(folder / export.WEIGHTS)
    change(leaves)
    save_file({k: np.ascontiguousarray(v) for k, v in leaves.items()}, folder / export.WEIGHTS)
    description = json.loads((folder / export.DESCRIPTION).read_text())
    del description["sha256"]
    (folder / export.DESCRIPTION).write_text(json.dumps(description))
    refused(folder, folder / export.WEIGHTS, *words)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("encoder"),
        lambda d: d.pop("rank"),
        lambda d: d.update(rank=7),
        lambda d: d.update(channels="many"),
        lambda d: d["encoder"].update(kind="transformer"),
        lambda d: d["encoder"].update(dropout="much"),
        lambda d: d["encoder"].pop("width"),
        lambda d: d["encoder"].update(depth=100_000),
        lambda d: d["encoder"].update(width=1 << 60),
        lambda d: d["encoder"].update(width=3000, depth=12),
        lambda d: d.update(channels=1 << 60),
        lambda d: d.update(encoder=[]),
    ],
)
def test_a_description_that_describes_nothing_is_named(exported, change):
    file = exported() / export.DESCRIPTION
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    refused(file.parent, file)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\xff", "[" * 100_000])
def test_a_description_that_is_no_json_is_named(exported, text):
    file = exported() / export.DESCRIPTION
    file.write_text(text)
    refused(file.parent, file)


def test_weights_of_another_encoder_are_refused(exported):
    """The description says width 8, the weights have 4."""
    file = exported() / export.DESCRIPTION
    description = json.loads(file.read_text())
    description["encoder"]["width"] = 8
    file.write_text(json.dumps(description))
    refused(file.parent, export.WEIGHTS, "level_0")
