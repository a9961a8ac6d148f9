"""Small data sets and seconds-sized configs that the tests share."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

# Before jax is imported. Tests compile far more than they run, and LLVM's optimisation of XLA's
# code is most of that time; convolutions run in a library and do not notice.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import hypothesis
import jax
import numpy as np
import pytest

from ssl3d import cli, tasks
from ssl3d.data import store
from ssl3d.training import trained_model

# The machine may be busy, and the first example of a test compiles.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

SIDE = 24  # voxels of the shared data sets along every axis
HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
SPLITS = {"train": 8, "val": 4, "test": 2}


def write_dataset(folder, rank, channels, seed=0, splits=SPLITS, side=SIDE):
    """A prepared data set of smooth random images that are brighter towards the end of each axis.

    The first two cases are of one subject, as fellow eyes are.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * rank, indexing="ij"), axis=-1)
    slope = np.arange(1, rank + 1) / rank
    cases = []
    for index, split in enumerate(name for name, count in splits.items() for _ in range(count)):
        waves = [np.sin(grid @ rng.normal(0, 3, rank) + rng.uniform(0, 6)) for _ in range(channels)]
        image = np.stack(waves, axis=-1) + (grid @ slope)[..., None]
        image += rng.normal(0, 0.1, image.shape)
        label = (image[..., 0] > 1).astype(np.uint8)
        case_id = f"case_{index:02d}"
        store.write_arrays(folder, case_id, image, label if rank == 3 else None)
        cases.append(
            store.Case(
                id=case_id,
                subject=f"subject_{max(index, 1):02d}",
                split=split,
                shape=image.shape[:-1],
                channels=channels,
                spacing=(1.0,) * rank,
                affine=tuple(map(tuple, np.eye(rank + 1).tolist())),
                labelled=rank == 3,
                grade=None if rank == 3 else index % 3,
                order=index,
                foreground=((2, side - 2),) * rank,
            )
        )
    dataset = store.Dataset(
        path=folder,
        name=f"tiny {rank}D",
        rank=rank,
        modalities=tuple(f"modality {i}" for i in range(channels)),
        classes=("background", "bright") if rank == 3 else ("none", "mild", "severe"),
        splits_by="subject",
        cases=tuple(cases),
    )
    store.write_manifest(dataset)
    return dataset


# Configs that are not named after their task.
DOWNSTREAM = {"segment": "segmentation", "classify": "classification"}


def tiny_overrides(name):
    """Key -> value: what makes the shipped config `name` one of seconds on the shared data."""
    stem, rank = name[:-2], int(name[-2])
    task = DOWNSTREAM.get(stem, stem)
    overrides = {
        "data.phantom.kind": "",
        "data.crop": (SIDE,) * rank,
        "data.margin": 0,
        "data.threads": 1,
        "encoder.width": 4,
        "encoder.depth": 2,
        "head.hidden": (16,),
        "optimizer.warmup_steps": 1,
        "batch_size": 4,
        "steps": 3,
        "log_every": 1,
        "validate_every": 3,
        "checkpoint_every": 3,
        "validation.repeats": 1,
    }
    if task in ("segmentation", "mae"):
        del overrides["head.hidden"]
    if task == "segmentation":
        overrides["predict.mirror"] = False
    if task in ("cpc", "jigsaw", "rpl"):
        overrides["task.jitter"] = 1 if name != "cpc2d" else 0
    return overrides | {
        "cpc": {"task.code": 8, "task.context": 8, "task.overlap": 0 if rank == 3 else SIDE // 6},
        "exemplar": {"task.code": 8, "task.pool": 4},
        "jigsaw": {"task.puzzles": 2, "task.code": 8},
        "mae": {"task.block": 6},
        "rotation": {},
        "rpl": {"task.queries": 3},
    }.get(task, {})


def tiny_config(name, path="", argument="phantom", **overrides):
    """The shipped config `name` (e.g. "rpl3d"), seconds-sized, on the data set at `path`.

    Overrides are written with __ for the dot: optimizer__ema=0.5.
    """
    config = importlib.import_module(f"configs.{name}").get_config(argument)
    chosen = {key.replace("__", "."): value for key, value in overrides.items()}
    config.update_from_flattened_dict(tiny_overrides(name) | {"data.path": str(path)} | chosen)
    return config


def tiny_arguments(name, path, **overrides):
    """Much the same as options of a command, on data that are no phantom."""
    chosen = {key.replace("__", "."): value for key, value in overrides.items()}
    values = tiny_overrides(name) | {"encoder.dtype": "float32", "data.path": str(path)} | chosen
    del values["data.phantom.kind"]
    return [
        f"--config=configs/{name}.py:folder",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]


def save_random_model(workdir, dataset, name="segment3d", kind="best", **overrides):
    """The folder of a run that never was: a model with random weights, for windows of 16 voxels.

    How a model's answers are written and scored does not depend on training, and it costs less.
    """
    rank = int(name[-2])
    sizes = {"data__crop": (16,) * rank, "predict__batch": 3}
    config = tiny_config(name, dataset.path, **sizes | overrides)
    labels = tasks.Labels(dataset.classes, (1,) * len(dataset.classes))
    network = tasks.build(config, labels).network
    inputs = np.zeros((1, *config.data.crop, len(dataset.modalities)), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    trained_model.save(workdir, kind, variables, trained_model.describe(config, dataset, (), 0, {}))
    return workdir


@pytest.fixture(scope="session")
def tiny():
    """The function `tiny_config`."""
    return tiny_config


@pytest.fixture(scope="session")
def make_dataset():
    """The function `write_dataset`."""
    return write_dataset


@pytest.fixture(scope="session")
def tiny_options():
    """The function `tiny_arguments`."""
    return tiny_arguments


@pytest.fixture(scope="session")
def save_model():
    """The function `save_random_model`."""
    return save_random_model


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    """A 3D data set with two channels."""
    return write_dataset(tmp_path_factory.mktemp("data") / "volumes", rank=3, channels=2)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A 2D data set with three channels."""
    return write_dataset(tmp_path_factory.mktemp("data") / "pictures", rank=2, channels=3)


@pytest.fixture(scope="session")
def task04():
    """The hippocampus data of the Decathlon; tests on them are skipped where there are none."""
    folder = os.environ.get("SSL3D_TEST_DATA")
    if not folder:
        pytest.skip("set SSL3D_TEST_DATA to the folder that holds Task04_Hippocampus")
    return Path(folder) / "Task04_Hippocampus"


@pytest.fixture(scope="session")
def datasets(volumes, pictures):
    return {2: pictures, 3: volumes}


@pytest.fixture
def in_repository(request, monkeypatch):
    """Commands name their configs relative to the checkout."""
    monkeypatch.chdir(request.config.rootpath)
    return request.config.rootpath


@pytest.fixture
def as_typed(in_repository):
    """`python -m MODULE ARGUMENT...` in a process of its own, which has ended."""

    def function(module, *arguments):
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return function


@pytest.fixture
def call_command(monkeypatch, capsys, in_repository):
    """A command's `main` with arguments, without a new process: (status, stdout, stderr)."""

    def function(main, *arguments):
        monkeypatch.setattr(sys, "argv", [main.__module__, *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.run(main)
        said = capsys.readouterr()
        return caught.value.code, said.out, said.err

    return function


@pytest.fixture(autouse=True)
def restore_signal_handlers():
    """A run that a test broke off must not leave pytest deaf to Ctrl-C."""
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
