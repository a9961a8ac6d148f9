import json
import sys
import types

import pytest

from ssl3d.errors import UserError
from ssl3d.exchange import folders
from ssl3d.models import load_encoder
from tests.support import exported


@pytest.fixture
def run(tmp_path):
    """The folder of a run that never was."""
    folder = tmp_path / "run"
    exported.write_encoder(folder / "encoder", exported.RESENC, 3)
    config = {"batch_size": 4, "data": {"path": str(tmp_path / "gone"), "crop": [24, 24, 24]}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        {"step": 10, "split": "train", "loss": 1.0, "volumes_per_second": 8.0},
        {"step": 30, "split": "train", "loss": 0.5, "volumes_per_second": 16.0},
        {"step": 30, "split": "val", "accuracy": 0.75, "chance": 0.04, "seconds": 1.0},
        {"step": 30, "split": "probe", "dice": 0.61, "untrained": 0.5, "seconds": 1.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_card_tells_where_the_weights_come_from(run, tmp_path):
    output = tmp_path / "hub"
    folders.export(run, output, "hub", licence="cc-by-4.0")
    card = (output / "README.md").read_text()
    for words in (
        "license: cc-by-4.0",
        "| data | phantom brain |",
        "| task | rpl |",
        "| steps | 30, batches of 4 |",
        "| cost | 10 s of training steps |",  # 40 volumes at 8 a second, 80 at 16
        "| validation, step 30 | accuracy 0.750, chance 0.040 |",
        "| probe of the frozen encoder, step 30 | dice 0.610, untrained 0.500 |",
        "| code | ssl3d ",
        "load_encoder(snapshot_download",
        "from encoder import load",
        "nnunet_checkpoint.py",
    ):
        assert words in card
    assert json.loads((output / "config.json").read_text())["layout"] == "torch"
    assert (output / "adaptation_plan.json").exists()
    load_encoder(output)


def test_what_nnunet_cannot_use_is_left_out(tmp_path):
    settings = {"kind": "resunet", "width": 4, "depth": 2}
    encoder = exported.write_encoder(tmp_path / "run", settings, 2)
    folders.export(encoder, tmp_path / "hub", "hub")
    assert "nnU-Net" not in (tmp_path / "hub" / "README.md").read_text()
    assert not (tmp_path / "hub" / "adaptation_plan.json").exists()


def test_an_upload_is_that_of_the_hubs_library(tmp_path, monkeypatch):
    settings = {"kind": "unet", "width": 4, "depth": 1}
    run = exported.write_encoder(tmp_path / "run", settings, 2)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub; the folder is ready"):
        folders.export(run, tmp_path / "one", "hub", upload="lab/encoder")
    assert (tmp_path / "one" / "README.md").exists()
    calls = []
    hub = types.ModuleType("huggingface_hub")
    hub.create_repo = lambda *a, **k: calls.append((a, k))
    hub.upload_folder = lambda **k: calls.append(k) or "its address"
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    said = folders.export(run, tmp_path / "two", "hub", upload="lab/encoder")
    assert "its address" in said
    assert calls[1] == {
        "repo_id": "lab/encoder", "folder_path": tmp_path / "two", "repo_type": "model",
    }  # fmt: skip
    hub.create_repo = lambda *a, **k: 1 / 0
    with pytest.raises(UserError, match="hf auth login"):
        folders.export(run, tmp_path / "three", "hub", upload="lab/encoder")
