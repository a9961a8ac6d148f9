import functools
import json

import pytest

from ssl3d import probe
from ssl3d.downstream import linear_probe
from tests.support.random_weights import write_encoder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Rank -> the folder of an encoder for pictures, and one of the wrong rank."""
    folder = tmp_path_factory.mktemp("pretrained")
    return {2: write_encoder(folder / "2d", 2, 3), 3: write_encoder(folder / "3d", 3, 2)}


@pytest.fixture
def call(call_command):
    return functools.partial(call_command, probe.main)


def test_as_typed(tiny_options, pictures, pretrained, as_typed, tmp_path):
    options = tiny_options("classify2d", pictures.path, init__encoder=str(pretrained[2]))
    file = tmp_path / "new" / "probe.json"
    done = as_typed("ssl3d.probe", *options, "--split=val", f"--output={file}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line[:19].strip() for line in lines[2:5]] == [
        "pretrained encoder",
        "untrained encoder",
        "majority class",
    ]
    assert "balanced accuracy" in lines[-1]
    assert "against untrained encoder" in lines[-1]
    document = json.loads(file.read_text())
    assert document["split"] == "val"
    assert [row["row"] for row in document["rows"]] == [line[:19].strip() for line in lines[2:5]]


def test_help(call):
    status, out, _ = call("--help")
    assert status == 0
    assert "--config.init.encoder=RUN" in out


def test_the_encoder_is_checked_before_data_are_generated(call, monkeypatch):
    monkeypatch.setattr(linear_probe, "open_dataset", lambda _: pytest.fail("too late"))
    status, _, err = call("--config=configs/segment3d.py", "--config.init.encoder=nowhere")
    assert status == 2
    assert "nowhere: missing" in err


@pytest.mark.parametrize(
    ("name", "encoder", "options", "message"),
    [
        ("classify2d", 2, ["--split=unlabelled"], "invalid choice: 'unlabelled'"),
        ("classify2d", 2, ["--split=tset"], "invalid choice: 'tset'"),
        ("classify2d", 2, ["--output=/dev/null/x/y.json"], "/dev/null/x"),
        ("classify2d", 2, ["--output=."], "is a folder"),
        ("classify2d", 2, ["--config.init.encoder="], "--config.init.encoder=DIR"),
        (
            "classify2d",
            2,
            ["--config.init.encoder=nowhere"],
            "nowhere: missing; give the",
        ),
        ("classify2d", 2, ["--config.data.path=nowhere"], "nowhere: no prepared data set"),
        ("classify2d", 2, ["--config.data.label_fraction=0.0"], "label_fraction"),
        ("classify2d", 2, ["--config.init.encode=x"], "nearest is --config.init.encoder"),
        ("classify2d", 3, [], "an encoder of 3D images does not fit a 2D network"),
        ("rotation2d", None, [], "rotation has no labels"),
    ],
)
def test_errors_are_one_line(
    call, tiny_options, pictures, pretrained, name, encoder, options, message
):
    own = {"init__encoder": str(pretrained[encoder])} if encoder else {}
    status, _, err = call(*tiny_options(name, pictures.path, **own), *options)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
