"""Segmentation networks in PyTorch and MONAI."""

import json

import pytest

from ssl3d.errors import UserError
from ssl3d.exchange import folders
from tests.support import exported, torch_python
from tests.support.datasets import write_dataset
from tests.support.random_models import save_random_model

ENCODERS = {
    "resunet": {"encoder__kind": "resunet", "encoder__depth": 3},
    "unet": {
        "encoder__kind": "unet",
        "encoder__depth": 3,
        "encoder__activation_first": True,
        "encoder__final_pool": "max",
    },
    "resenc": {
        "encoder__kind": "resenc",
        "encoder__depth": 3,
        "encoder__norm": "instance",
        "encoder__blocks": (1, 2, 1),
        "encoder__strides": ((1, 1), (2, 1), (2, 2)),
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of segmentations that never were, in 2D, with deep supervision."""
    place = tmp_path_factory.mktemp("runs")
    dataset = write_dataset(place / "data", rank=2, channels=2)
    return {
        name: save_random_model(
            place / name, dataset, "segment2d", "best", task__deep=1, **overrides
        )
        for name, overrides in ENCODERS.items()
    }


def test_segmentation_networks_have_our_logits(runs, tmp_path):
    torch_python.required()
    for name, run in runs.items():
        folders.export(run, tmp_path / name, "torch", model="best")
        about = json.loads((tmp_path / name / "network.json").read_text())
        assert about["outputs"] == len(about["classes"])
    torch_python.check(*(tmp_path / name / "network.py" for name in runs))


@pytest.mark.slow
def test_monai_builds_the_networks_of_its_bundle(runs, tmp_path):
    torch_python.required("monai")
    run = exported.write_encoder(tmp_path / "run", exported.RESENC, 3)
    folders.export(run, tmp_path / "encoder", "monai")
    folders.export(runs["resunet"], tmp_path / "network", "monai", model="best")
    use = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch\n"
        "from monai.bundle import ConfigParser\n"
        "parser = ConfigParser()\n"
        "parser.read_config(sys.argv[1] + '/configs/network.json')\n"
        "parser.read_meta(sys.argv[1] + '/configs/metadata.json')\n"
        "if 'classes' in parser: parser['classes'] = 4\n"
        "network = parser.get_parsed_content('network_def')\n"
        "x = torch.zeros(1, *map(int, sys.argv[2].split(',')))\n"
        "inferer = parser.get_parsed_content('inferer') if 'inferer' in parser else None\n"
        "y = inferer(x, network) if inferer else network(x)\n"
        "print(*y.shape)\n"
    )
    for name, size, shape in (
        ("encoder", "2,12,9,8", "1 4 12 9 8"),
        ("network", "2,40,37", "1 3 40 37"),
    ):
        found = torch_python.succeeds("-c", use, tmp_path / name, size)
        assert found.split("\n")[-2] == shape


def test_what_is_no_segmentation_is_named(tmp_path, runs):
    with pytest.raises(UserError, match="--format=nnunet: exports an encoder"):
        folders.export(runs["resenc"], tmp_path / "out", "nnunet", model="best")
    with pytest.raises(UserError, match=r"model.json: missing"):
        folders.export(tmp_path / "nowhere", tmp_path / "out", "torch", model="best")
