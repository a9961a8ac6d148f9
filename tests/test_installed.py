"""The package as `pip install` leaves it: in an environment outside the checkout."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from ssl3d import commands

ROOT = Path(__file__).parents[1]
SOURCES = ("ssl3d", "configs", "experiments")
BUILT_FROM = (*SOURCES, "pyproject.toml", "requirements.txt", "README.md", "LICENSE")


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by way of a source distribution, from a copy: builds leave files behind."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    code = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    name = run([sys.executable, "-c", code], cwd=folder).splitlines()[-1]
    options = ["--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", folder / "dist" / name]
    run([sys.executable, "-m", "pip", "wheel", "--no-index", *options])
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """The programs of an environment that has the wheel; its dependencies are this one's."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    python = folder / "bin" / "python"
    place = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    (Path(place) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--no-index", "--no-deps"]
    run([*pip, wheel])
    return folder / "bin"


@pytest.fixture
def elsewhere(tmp_path):
    """A folder that has its own `configs` and `experiments`, as many projects do."""
    for package in ("configs", "experiments"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('not this one')\n")
    return tmp_path


def in_folder(folder, *command):
    """Output of a command called from a folder, where nothing leads to the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return run(command, cwd=folder, env=environment)


def test_the_wheel_holds_every_file_of_the_package(wheel):
    expected = {
        (file if source == "ssl3d" else Path("ssl3d") / file)
        for source in SOURCES
        for file in (path.relative_to(ROOT) for path in (ROOT / source).rglob("*"))
        if (ROOT / file).is_file() and file.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {Path(name) for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        about = email.message_from_bytes(archive.read(metadata))
    assert held == expected
    assert Path("ssl3d/py.typed") in held
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Description-Content-Type"] == "text/markdown"
    assert set(about.get_all("Provides-Extra")) >= {"cuda", "tpu", "torch"}
    bounded = ("jax", "flax", "orbax-checkpoint", "grain")
    required = about.get_all("Requires-Dist")
    for name in bounded:
        (own,) = (line for line in required if line.startswith(f"{name}<"))
        assert ">=" in own
    # The extras ask for the same versions of jax.
    jax = [re.sub(r"\[.*\]|;.*", "", line).strip() for line in required]
    assert len({line for line in jax if re.match(r"jax\W", line)}) == 1


def test_shipped_configs_are_found_by_name(scripts, elsewhere):
    said = in_folder(elsewhere, scripts / "ssl3d", "main", "--config=rpl3d:ukb", "--print_config")
    assert "config.name = 'rpl3d_ukb'\n" in said
    command = (scripts / "python", "-m", "ssl3d.main", "--config=rpl3d:ukb", "--print_config")
    assert in_folder(elsewhere, *command) == said


def test_a_config_of_ones_own_imports_ours_and_its_neighbours(scripts, elsewhere):
    (elsewhere / "configs" / "__init__.py").write_text("")
    (elsewhere / "configs" / "common.py").write_text("STEPS = 12\n")
    (elsewhere / "configs" / "mine.py").write_text(
        "from configs import common\nfrom ssl3d.configs import datasets, rpl3d\n\n"
        "datasets.PRESETS['knee'] = datasets.PRESETS['folder']\n\n\n"
        "def get_config(arg='knee'):\n"
        "    config = rpl3d.get_config(arg)\n    config.steps = common.STEPS\n    return config\n"
    )
    for command in ([scripts / "ssl3d", "main"], [scripts / "python", "-m", "ssl3d.main"]):
        said = in_folder(elsewhere, *command, "--config=configs/mine.py", "--print_config")
        assert "config.steps = 12\n" in said
        assert "config.name = 'rpl3d_knee'\n" in said


@pytest.mark.parametrize("taken", [True, False])
def test_an_import_from_configs_is_put_right(scripts, elsewhere, taken):
    """There may be a `configs` of one's own, or none; ours is never called so."""
    shutil.rmtree(elsewhere / "configs")
    if taken:
        (elsewhere / "configs").mkdir()
        (elsewhere / "configs" / "__init__.py").write_text("")
    (elsewhere / "mine.py").write_text("from configs import rpl3d\n")
    command = [scripts / "ssl3d", "main", "--config=mine.py", "--print_config"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "import the shipped configs from ssl3d.configs" in done.stderr


def test_a_copy_of_a_shipped_config_is_a_config_of_ones_own(scripts, elsewhere):
    shutil.copy(ROOT / "configs" / "rpl3d.py", elsewhere / "mine.py")
    said = in_folder(elsewhere, scripts / "ssl3d", "main", "--config=mine.py", "--print_config")
    assert "config.name = 'rpl3d_phantom'\n" in said


def test_studies_are_reachable(scripts, elsewhere):
    listed = in_folder(elsewhere, scripts / "ssl3d", "study", "--help")
    assert all(f"  {name} " in listed for name in commands.find("ssl3d.experiments"))
    said = in_folder(elsewhere, scripts / "ssl3d", "study", "phantom", "--help")
    assert said.startswith("usage: ssl3d study phantom ")


@pytest.mark.slow
def test_a_run_from_any_folder(scripts, elsewhere):
    tiny = ("--config.steps=5", "--config.data.phantom.shape=(24, 24, 24)", "--workdir=run")
    size = ("--config.data.crop=(24, 24, 24)", "--config.encoder.depth=2")
    said = in_folder(elsewhere, scripts / "ssl3d", "main", "--config=rpl3d", *tiny, *size)
    assert said.splitlines()[-1].startswith("rpl3d_phantom: 5 steps")
    assert (elsewhere / "run" / "encoder" / "encoder.safetensors").exists()
    # What a study starts for each of its runs.
    worker = [scripts / "python", "-m", "ssl3d.experiments.engine.worker", elsewhere]
    done = subprocess.run(worker, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{elsewhere / 'job.json'}: no such file; start the study again" in done.stderr


# Containers and environments, of which no test can build the whole.


def test_the_image_is_built_from_what_the_package_takes():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(BUILT_FROM)


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("Dockerfile", r"ssl3d\[(\w+)\]"),
        ("environment.yml", r"\.\[(\w+)\]"),
        ("docs/install.md", r"\.\[(\w+)\]"),
    ],
)
def test_extras_that_are_named_exist(file, pattern):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = set(re.findall(pattern, (ROOT / file).read_text()))
    assert named
    assert named <= set(extras)


def test_the_conda_environment_has_the_projects_python_and_the_package():
    document = yaml.safe_load((ROOT / "environment.yml").read_text())
    *packages, pip = document["dependencies"]
    assert f"python={(ROOT / '.python-version').read_text().strip()}" in packages
    assert pip == {"pip": ["."]}
