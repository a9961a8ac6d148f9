"""The export for PyTorch: the network there against ours, and a wrong export."""

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ssl3d.exchange
from ssl3d.errors import UserError
from ssl3d.exchange import folders
from ssl3d.models import export, layers
from tests.support import exported, torch_python

KINDS = {
    "unet": {"kind": "unet"},
    "resunet": {"kind": "resunet"},
    "resenc": {"kind": "resenc", "blocks": (1, 2, 1)},
}
FLAT = {
    "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
    "kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
}
CASES = {
    f"{kind}-{rank}d-{norm}": (KINDS[kind] | {"norm": norm}, rank)
    for kind, rank, norm in itertools.product(KINDS, (2, 3), layers.NORMS)
} | {
    "released": ({"kind": "unet", "norm": "batch", "activation_first": True}, 2),
    "pooled": ({"kind": "resunet", "final_pool": "max", "dtype": "bfloat16"}, 2),
    "anisotropic": (KINDS["resenc"] | FLAT | {"max_width": 6}, 3),
}  # fmt: skip
SIZES = {"width": 4, "depth": 3}
# Every kind, rank and norm; `-m slow` takes every combination.
FEW = (
    "unet-2d-group", "unet-3d-batch", "resunet-2d-group", "resunet-3d-instance",
    "resenc-2d-batch", "resenc-3d-instance", "released", "pooled", "anisotropic",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders_of(tmp_path_factory):
    """A function that exports a case for PyTorch; its folder."""
    place = tmp_path_factory.mktemp("exports")

    def write(name):
        settings, rank = CASES[name]
        if not (place / name).exists():
            run = exported.write_encoder(place / f"{name}-run", SIZES | settings, rank)
            folders.export(run, place / name, "torch")
        return place / name

    return write


@pytest.mark.parametrize("names", [FEW, pytest.param(tuple(CASES), marks=pytest.mark.slow)])
def test_every_network_in_torch_has_our_outputs(folders_of, names):
    """To 1e-4 of the largest value, for sizes that no stride divides."""
    torch_python.required()
    torch_python.check(*(folders_of(name) / "encoder.py" for name in names))


def test_it_needs_nothing_of_ours(folders_of, tmp_path):
    """In a folder elsewhere, imported by its name, with a new decoder, in both modes."""
    torch_python.required()
    shutil.copytree(folders_of("resenc-3d-instance"), tmp_path / "elsewhere")
    (tmp_path / "use.py").write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch; from encoder import load\n"
        "levels = load()(torch.zeros(1, 2, 9, 6, 7))\n"
        "print([tuple(level.shape) for level in levels])\n"
        "network = load(classes=3).train()\n"
        "network(torch.randn(1, 2, 9, 6, 7)).sum().backward()\n"
        "print(tuple(network(torch.zeros(1, 2, 9, 6, 7)).shape))\n"
        "print(all(p.grad is not None for p in network.parameters()))\n"
        "assert 'ssl3d' not in sys.modules and 'jax' not in sys.modules\n"
    )
    lines = torch_python.succeeds(tmp_path / "use.py", tmp_path / "elsewhere").splitlines()
    assert lines[0] == "[(1, 4, 9, 6, 7), (1, 8, 5, 3, 4), (1, 16, 3, 2, 2)]"
    assert lines[1:] == ["(1, 3, 9, 6, 7)", "True"]


@pytest.mark.parametrize("name", ["resenc-2d-batch", "resunet-3d-instance", "pooled"])
def test_jax_reads_it_back_bit_for_bit(folders_of, name):
    """Given the folder, or the file of the weights."""
    folder = folders_of(name)
    module, variables = export.load_encoder(folder.with_name(f"{name}-run"))
    for given in (folder, folder / "encoder.safetensors"):
        same_module, same = export.load_encoder(given)
        assert same_module == module
        assert jax.tree.structure(same) == jax.tree.structure(variables)
        jax.tree.map(np.testing.assert_array_equal, same, variables)
    assert export.describe_encoder(folder)["task"] == "rpl"


@pytest.mark.parametrize(
    "script", ["torch_network.py", "nnunet_checkpoint.py", "convert_checkpoint.py"]
)
def test_without_torch_a_script_names_what_to_install(script):
    file = Path(ssl3d.exchange.__path__[0], script)
    command = [sys.executable, "-S", "-B", file]  # -S: without any package
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "pip install torch safetensors" in done.stderr


def swap_axes(weights):
    name = "level_1.first.conv.weight"
    weights[name] = np.ascontiguousarray(weights[name].swapaxes(-1, -2))


WRONG = {
    "differs from its reference": swap_axes,
    "unknown ['more']": lambda weights: weights.update({"more": np.ones(2, np.float32)}),
    "missing ['level_0.first.norm.bias']": lambda weights: weights.pop("level_0.first.norm.bias"),
}

LOAD = """
import importlib.util, sys
for folder in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("encoder", folder + "/encoder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.load()
        print("loaded")
    except ValueError as error:
        print(error)
"""


def test_a_wrong_export_does_not_load(folders_of, tmp_path):
    """Even where no checksum speaks against it."""
    torch_python.required()
    for name, change in [*WRONG.items(), ("checksums differ", swap_axes)]:
        folder = tmp_path / name
        shutil.copytree(folders_of("resunet-2d-group"), folder)
        file = folder / "encoder.safetensors"
        weights = load_file(file)
        change(weights)
        save_file(weights, file)
        if name in WRONG:
            about = json.loads((folder / "encoder.json").read_text())
            about["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
            (folder / "encoder.json").write_text(json.dumps(about))
    names = [*WRONG, "checksums differ"]
    found = torch_python.succeeds("-c", LOAD, *(tmp_path / name for name in names))
    for name, line in zip(names, found.splitlines(), strict=True):
        assert name in line


def test_arrays_of_another_network_are_refused_here_too(folders_of, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(folders_of("resunet-2d-group"), folder)
    shutil.copy(folders_of("unet-2d-group") / "encoder.safetensors", folder)
    with pytest.raises(UserError, match=r"encoder\.safetensors: down_1\.weight is missing"):
        export.load_encoder(folder)


def test_an_export_is_whole_or_not_there(tmp_path, monkeypatch):
    run = exported.write_encoder(tmp_path / "run", SIZES | KINDS["unet"], 2)
    monkeypatch.setattr("ssl3d.exchange.torch_folder.copy_script", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        folders.export(run, tmp_path / "out", "torch")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_network_that_diverged_is_not_exported(tmp_path):
    run = exported.write_encoder(tmp_path / "run", SIZES | KINDS["unet"], 2)
    weights = load_file(run / "encoder.safetensors")
    weights["params/level_0/first/conv/bias"][0] = np.nan
    save_file(weights, run / "encoder.safetensors")
    about = json.loads((run / "encoder.json").read_text())
    del about["sha256"]
    (run / "encoder.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="its outputs are not finite"):
        folders.export(run, tmp_path / "out", "torch")


def test_what_cannot_be_exported_is_named(tmp_path):
    densenet = {"kind": "densenet121", "width": 4, "depth": 2}
    run = exported.write_encoder(tmp_path / "run", densenet, 2)
    with pytest.raises(UserError, match=r"densenet121 has no counterpart .* unet or resunet"):
        folders.export(run, tmp_path / "out", "torch")
    with pytest.raises(UserError, match="already exists"):
        folders.export(run, tmp_path / "run", "torch")
