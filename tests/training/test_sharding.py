"""Several devices and several processes compute what one device does."""

import json
import os
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from ssl3d import bounds, main
from ssl3d.models import weight_gradient
from ssl3d.training import run_log, sharding
from tests.support.shipped_configs import PROXY

ROOT = Path(__file__).parents[2]

# Configs, and how many of the eight devices share an image: its voxels or, in tasks on patches,
# its patches.
SHARED = [("rpl2d", 1), ("rotation2d", 2)]
ALL = [(f"{task}3d", 2) for task in (*PROXY, "segment")]
ALL += [("rpl2d", 4), ("cpc2d", 2), ("mae2d", 2), ("segment2d", 2)]


def python(arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ask_eight_devices(volumes, shared, program="eight_devices"):
    """What a process with eight devices says, by the first word of each line."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    process = python(
        ["-m", f"tests.support.{program}", volumes.path, *(f"{n},{k}" for n, k in shared)],
        XLA_FLAGS=flags,
    )
    try:
        said, _ = process.communicate(timeout=200 * len(shared))
    finally:
        process.kill()
    assert process.returncode == 0, said
    return dict(line.split(maxsplit=1) for line in said.splitlines() if " " in line)


@pytest.fixture(scope="module")
def eight_devices(volumes):
    return ask_eight_devices(volumes, SHARED)


def assert_as_one_device(said, name, space):
    devices, difference, loss = map(float, said[name].split())
    assert devices == space
    # A sum over the voxels of a volume is rounded more often than one over a few patches.
    assert difference < (5e-5 if name in ("mae3d", "segment3d") else 1e-5)
    assert loss > 0


@pytest.mark.parametrize(("name", "space"), SHARED)
def test_eight_devices_give_the_gradients_of_one(eight_devices, name, space):
    assert_as_one_device(eight_devices, name, space)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_eight_devices_give_the_gradients_of_one_for_every_task(volumes):
    said = ask_eight_devices(volumes, ALL)
    for name, space in ALL:
        assert_as_one_device(said, name, space)
    assert_an_eighth(said["cpc2d:work"])  # whose patches the devices share in pairs


def assert_twenty_losses_agree(volumes, shared):
    said = ask_eight_devices(volumes, shared, "twenty_losses")
    assert set(said) == {f"{name},{space}" for name, space in shared}
    for name, differences in said.items():
        assert max(map(float, differences.split())) < 1e-3, name


@pytest.mark.slow
def test_two_and_eight_devices_train_as_one_does(volumes):
    assert_twenty_losses_agree(volumes, [("rotation2d", 2)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_and_eight_devices_train_as_one_does_for_every_task(volumes, pictures):
    shared = [(f"{task}{rank}d", 1) for rank in (2, 3) for task in (*PROXY, "segment")]
    assert_twenty_losses_agree(volumes, [*shared, ("cpc3d", 2)])
    assert_twenty_losses_agree(pictures, [("classify2d", 1)])  # the volumes have no grades


def test_a_crop_that_the_devices_cannot_share_is_refused(eight_devices):
    assert eight_devices["uneven"].startswith("UserError config.mesh.space=2")


def test_a_batch_that_the_devices_cannot_share_is_refused(eight_devices):
    said = eight_devices["batch"]
    assert said.startswith("UserError config.batch_size=12: must be a multiple of 8")
    assert "e.g. 8 or 16" in said
    assert "auto" in said


def test_devices_that_split_the_batch_exchange_the_gradients_alone(eight_devices):
    sent = json.loads(eight_devices["rpl2d:sent"])
    parameters = sent.pop("parameters")
    assert 4 * parameters <= sent.pop("all-reduce") <= 4 * parameters + 100  # loss and metrics
    assert not any(sent.values())


def test_devices_that_share_volumes_exchange_borders_too(eight_devices):
    sent = json.loads(eight_devices["rotation2d:sent"])
    assert sent["all-reduce"] >= 4 * sent["parameters"]
    assert sent["collective-permute"] > 0


def assert_an_eighth(work):
    # Not the small layers that score all pairs of the batch.
    assert 1 / 8 <= float(work) < 0.14


def test_each_of_eight_devices_does_an_eighth_of_the_work_on_patches(eight_devices):
    assert_an_eighth(eight_devices["rpl2d:work"])


def devices(count, processes):
    return [types.SimpleNamespace(process_index=i * processes // count) for i in range(count)]


@pytest.mark.parametrize(
    ("count", "processes", "space", "accumulate", "batch"),
    [(1, 1, 1, 1, 3), (4, 1, 1, 1, 4), (4, 1, 2, 1, 4), (2, 1, 1, 3, 6), (8, 2, 8, 1, 4)],
)
def test_an_automatic_batch_is_the_least_that_divides(count, processes, space, accumulate, batch):
    mesh = types.SimpleNamespace(
        shape={"data": count // space, "space": space},
        devices=np.array(devices(count, processes), object).reshape(count // space, space),
    )
    config = bounds.Config({"batch_size": 3, "optimizer": {"accumulate": accumulate}})
    sharding.fit_batch(config, mesh)
    assert config.batch_size == 3
    bounds.make_automatic(config, "batch_size")
    sharding.fit_batch(config.copy_and_resolve_references(), mesh)
    sharding.fit_batch(config, mesh)
    assert config.batch_size == batch
    sharding.check_batch(config.batch_size, "batch_size", mesh)
    # One that divides is left as it is, with the rule that it may follow from.
    assert bounds.is_automatic(config, "batch_size") == (batch == 3)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("each", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_two_processes_train_as_one_does(
    tiny, tiny_options, pictures, in_repository, tmp_path, each
):
    """One process per device, one of them without the native gradient, or one per host of four."""
    every = dict.fromkeys(("steps", "validate_every", "checkpoint_every", "probe_every"), 2)
    options = tiny_options("cpc2d", pictures.path, batch_size=max(4, 2 * each), **every)
    assert main.main([*options, f"--workdir={tmp_path / 'one'}"]) == 0
    coordinator = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={each}",
    }
    command = ["-m", "ssl3d.main", *options, f"--workdir={tmp_path / 'two'}"]
    native = ["1", "0" if each == 1 else "1"]
    processes = [
        python(command, **coordinator, JAX_PROCESS_ID=str(i), SSL3D_NATIVE=native[i])
        for i in range(2)
    ]
    said = []
    try:
        for process in processes:
            # If one of them dies the other waits for it far longer than this.
            said.append(process.communicate(timeout=240)[0])
            assert process.returncode == 0, said[-1]
    finally:
        for process in processes:
            process.kill()
    assert f"{2 * each} cpu device(s)" in said[0]
    assert "step" not in said[1]  # one of them reports
    disagreeing = each == 1 and weight_gradient.available()
    agreed = "no native weight gradient: 1 of 2 processes have none, process 1 among them"
    assert (agreed in said[0]) == disagreeing
    about = json.loads((tmp_path / "two" / "config.json").read_text())
    assert about["native_weight_gradient"] == (weight_gradient.available() and not disagreeing)
    lines = [run_log.read_metrics(tmp_path / name) for name in ("one", "two")]
    probes = [[line for line in part if line["split"] == "probe"] for part in lines]
    assert [line["step"] for line in probes[0]] == [0, 2]
    for alone, together in zip(*probes, strict=True):
        for key in ("step", "untrained", "intensities"):
            assert alone[key] == together[key]
    lines = [[line for line in part if line["split"] != "probe"] for part in lines]
    assert len(lines[0]) == 4
    for alone, together in zip(*lines, strict=True):
        for key in ("step", "split", "chance"):
            assert alone[key] == together[key]
        for key in ("loss", "accuracy"):
            assert together[key] == pytest.approx(alone[key], rel=1e-4, abs=2e-6), alone["split"]
    assert (tmp_path / "two" / "encoder" / "encoder.safetensors").exists()


def test_a_killed_process_ends_the_others_with_a_line(
    tiny_options, pictures, in_repository, tmp_path
):
    options = tiny_options("cpc2d", pictures.path, steps=100_000, log_every=1, validate_every=10**6)
    coordinator = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
    }
    command = ["-m", "ssl3d.main", *options, f"--workdir={tmp_path / 'run'}"]
    processes = [python(command, **coordinator, JAX_PROCESS_ID=str(i)) for i in range(2)]
    try:
        deadline = time.monotonic() + 240
        while not any(line["split"] == "train" for line in run_log.read_metrics(tmp_path / "run")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        processes[1].kill()
        said, _ = processes[0].communicate(timeout=200)
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 1
    assert "error: another process of the run has failed or was killed" in said.splitlines()[-1]
    assert "Traceback" not in said


def start(wait=1, **environment):
    """Status and output of a process that joins a run, with only these of the variables set."""
    names = ("SLURM", "OMPI", "JAX_COORD", "JAX_NUM", "JAX_PROC", "TPU_WORKER")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(names)}
    code = (
        "from ssl3d import cli\nfrom ssl3d.training import sharding\n"
        f"sharding.WAIT = {wait}\n"
        "cli.run(lambda arguments: print('alone') if sharding.start() is None else None)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return found.returncode, found.stdout + found.stderr


BATCH = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    "beside",
    [
        {},  # a batch script
        {"SLURM_STEP_NODELIST": "node1", "SLURM_STEP_NUM_TASKS": "1"},  # an interactive step
    ],
)
def test_a_slurm_job_without_srun_runs_as_one_process(beside):
    status, said = start(**BATCH, **beside)
    assert status == 0
    assert "start the command with srun" in said
    assert said.splitlines()[-1] == "alone"


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({}, None),
        # One process per host.
        ({"SLURM_STEP_NUM_TASKS": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [0, 1, 2, 3]),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_GPUS_ON_NODE": "8"}, list(range(8))),
        # One per GPU, which sees all or its own alone.
        ({"SLURM_STEP_NUM_TASKS": "8", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),
        ({"SLURM_STEP_NUM_TASKS": "8", "CUDA_VISIBLE_DEVICES": "3"}, [0]),
    ],
)
def test_a_process_takes_the_gpus_that_no_other_process_of_its_host_takes(environment, gpus):
    assert sharding.local_gpus(environment | {"SLURM_STEP_NUM_NODES": "2"}) == gpus


@pytest.mark.parametrize(
    "environment",
    [
        {**BATCH, "SLURM_STEP_NODELIST": "localhost"},
        {**BATCH, "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": "1"},
        {
            "JAX_COORDINATOR_ADDRESS": "nowhere.invalid:1234",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": "1",
        },
    ],
)
def test_processes_that_do_not_arrive_are_waited_for_no_longer_than_announced(environment):
    status, said = start(**environment)
    assert status == 1
    first, last = said.splitlines()
    assert first.startswith("waiting for the ")
    assert first.endswith("for 1 s at most")
    assert last.startswith("error: the ")
    assert last.endswith("did not all arrive within 1 s")


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        ({**BATCH, "SLURM_NTASKS": "4(x2)"}, "SLURM_NTASKS='4(x2)'"),
        ({**BATCH, "SLURM_STEP_NODELIST": "a", "SLURM_PROCID": ""}, "SLURM_PROCID=''"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "set JAX_COORDINATOR_ADDRESS"),
        ({"OMPI_COMM_WORLD_SIZE": "many"}, "OMPI_COMM_WORLD_SIZE='many'"),
        ({"JAX_NUM_PROCESSES": "2"}, "set JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID too"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "set JAX_NUM_PROCESSES and JAX_PROCESS_ID too"),
        *(
            (
                {
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": count,
                    "JAX_PROCESS_ID": index,
                },
                what,
            )
            for address, count, index, what in (
                ("host", "2", "0", "write HOST:PORT"),
                ("host:99999", "2", "0", "write HOST:PORT"),
                ("host:1234", "two", "0", "JAX_NUM_PROCESSES='two'"),
                ("host:1234", "2", "2", "JAX_PROCESS_ID=2: must be from 0"),
            )
        ),
    ],
)
def test_garbage_in_the_environment_is_one_line(environment, what):
    status, said = start(**environment)
    assert status == 2
    assert what in said.splitlines()[-1]
    assert "Traceback" not in said
