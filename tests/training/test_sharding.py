"""Several devices and several processes: the same numbers as one device gives.

This file is also the program of the process that has eight devices.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssl3d import main
from ssl3d.training import run_log

ROOT = Path(__file__).parents[2]

# Configs, and how many of the eight devices share a volume.
SHARED = [("rpl3d", 1), ("cpc3d", 1), ("rotation3d", 2), ("segment3d", 2)]


def gradients_on(mesh, config, dataset):
    """Gradients and metrics of the same batch with the draws of three steps, over `mesh`."""
    import jax
    import jax.numpy as jnp

    from ssl3d import tasks, xla
    from ssl3d.data import pipeline
    from ssl3d.training import sharding
    from ssl3d.training import step as steps
    from ssl3d.training.cases import labels_of

    task = tasks.build(config, labels_of(dataset, dataset.split("train")))
    batch = next(
        pipeline.train_batches(
            dataset,
            dataset.split("train"),
            task.record,
            rank=config.rank,
            slice_axis=0,
            margin=0,
            batch_size=config.batch_size,
            seed=0,
            threads=1,
            label_map=config.task.name == "segmentation",
        )
    )
    record = jax.tree.map(lambda leaf: leaf[0], batch["record"])
    state = steps.init_state(config, task, steps.make_optimizers(config), record, mesh)
    whole = sharding.replicated(mesh)
    step = xla.jit(steps.make_gradients(config, task), out_shardings=whole)
    placed = sharding.to_devices(batch, mesh)
    for name, leaf in placed["record"].items():
        in_space = name in ("volume", "label")
        sides = [mesh.shape["data"], mesh.shape["space"] if in_space else 1]
        own = leaf.addressable_shards[0].data
        assert [n * side for n, side in zip(own.shape, sides, strict=False)] == list(leaf.shape[:2])
    results = [step(state | {"step": jnp.int32(number)}, placed) for number in range(3)]
    return [(grads, metrics) for grads, _, metrics in jax.device_get(results)]


def relative_difference(one, other):
    """The largest over the leaves of |a - b| / |a|, each a norm."""
    import jax

    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12) for a, b in pairs)


def compare(name, space, folder):
    """Prints how far eight devices are from one; `space` of the eight share a volume.

    The smallest difference among three draws: where some activation is as good as zero, at the
    ReLU's kink, rounding alone moves the gradient by 1e-3 or more, on a single device too.
    """
    import jax

    from ssl3d.data import store
    from ssl3d.training import sharding
    from tests.conftest import tiny_config

    assert jax.device_count() == 8
    config = tiny_config(name, folder, batch_size=8, mesh__space=space)
    alone = jax.make_mesh(
        (1, 1), ("data", "space"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )
    one, eight = (
        gradients_on(mesh, config, store.read(folder))
        for mesh in (alone, sharding.make_mesh(space))
    )
    difference = min(relative_difference(a, b) for a, b in zip(one, eight, strict=True))
    print(name, space, difference, float(one[0][1]["loss"]), flush=True)


def share_unevenly(folder):
    """Prints how a run answers whose volumes two devices cannot share."""
    from ssl3d.training import loop
    from tests.conftest import tiny_config

    overrides = {"data__crop": (21,) * 3, "task__coarsen": 1, "mesh__space": 2, "batch_size": 4}
    try:
        loop.train(tiny_config("rotation3d", folder, **overrides), folder.parent / "uneven")
    except Exception as error:
        print("uneven", type(error).__name__, " ".join(str(error).split()), flush=True)


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        task, axis = argument.split(",")
        compare(task, int(axis), Path(sys.argv[1]))
    share_unevenly(Path(sys.argv[1]))
    sys.exit()


def python(arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def eight_devices(volumes):
    """What the process with eight devices says, by the first word of each line."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    process = python(
        [__file__, volumes.path, *(f"{name},{space}" for name, space in SHARED)], XLA_FLAGS=flags
    )
    try:
        said, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return dict(line.split(maxsplit=1) for line in said.splitlines() if " " in line)


@pytest.mark.parametrize(("name", "space"), SHARED)
def test_eight_devices_give_the_gradients_of_one(eight_devices, name, space):
    devices, difference, loss = map(float, eight_devices[name].split())
    assert devices == space
    # A sum over the voxels of a label map is rounded more often than one over a few patches.
    assert difference < (5e-5 if name == "segment3d" else 1e-5)
    assert loss > 1


def test_a_crop_that_the_devices_cannot_share_is_refused(eight_devices):
    assert eight_devices["uneven"].startswith("UserError config.mesh.space=2")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_train_as_one_does(tiny, tiny_options, pictures, in_repository, tmp_path):
    options = tiny_options("cpc2d", pictures.path, steps=2, validate_every=2, checkpoint_every=2)
    assert main.main([*options, f"--workdir={tmp_path / 'one'}"]) == 0
    coordinator = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
    }
    command = ["-m", "ssl3d.main", *options, f"--workdir={tmp_path / 'two'}"]
    processes = [python(command, **coordinator, JAX_PROCESS_ID=str(i)) for i in range(2)]
    said = []
    try:
        for process in processes:
            # If one of them dies the other waits for it far longer than this.
            said.append(process.communicate(timeout=240)[0])
            assert process.returncode == 0, said[-1]
    finally:
        for process in processes:
            process.kill()
    assert "2 cpu device(s)" in said[0]
    assert "step" not in said[1]  # one of them reports
    lines = [run_log.read_metrics(tmp_path / name) for name in ("one", "two")]
    assert len(lines[0]) == 4
    for alone, together in zip(*lines, strict=True):
        for key in ("step", "split", "chance"):
            assert alone[key] == together[key]
        for key in ("loss", "accuracy"):
            assert together[key] == pytest.approx(alone[key], rel=1e-4, abs=2e-6), alone["split"]
    assert (tmp_path / "two" / "encoder" / "encoder.safetensors").exists()
