"""Runs, collections and encoders that the tests of this folder share."""

import jax
import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations

from ssl3d import prepare
from ssl3d.data import store
from ssl3d.training import loop
from tests.support.evaluating import AFFINE, SHAPE
from tests.support.random_weights import write_encoder


@pytest.fixture(scope="session")
def segmented(tiny, volumes, tmp_path_factory):
    """A run of segmentation in 3D: small windows, and several batches of them."""
    workdir = tmp_path_factory.mktemp("segmented")
    short = {"batch_size": 2, "steps": 2, "validate_every": 1, "checkpoint_every": 2}
    config = tiny("segment3d", volumes.path, data__crop=(16, 16, 16), predict__batch=3, **short)
    loop.train(config, workdir)
    return workdir


@pytest.fixture(scope="session")
def classified(save_model, pictures, tmp_path_factory):
    """A model that grades pictures."""
    return save_model(tmp_path_factory.mktemp("classified"), pictures, "classify2d")


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """A collection of rotated, anisotropic scans; the labels lie along other axes than these."""
    folder = tmp_path_factory.mktemp("scans")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for index in range(5):
        rng = np.random.default_rng(index)
        grid = np.stack(np.indices(SHAPE), -1) * (2.0, 1.0, 1.5)
        centre = np.array([19, 15, 18]) + rng.uniform(-2, 2, 3)
        distance = np.linalg.norm(grid - centre, axis=-1)
        image = (distance < 12) * (rng.integers(1, 200, SHAPE) + 10 * grid[..., 1])
        label = 2 * (np.linalg.norm(grid - centre - (3, 1, 0), axis=-1) < 5)
        label[np.linalg.norm(grid - centre + (3, 0, 3), axis=-1) < 4] = 5
        image = nib.Nifti1Image(image.astype(np.int16), AFFINE)
        label = nib.Nifti1Image(label.astype(np.uint8), AFFINE).as_reoriented(
            orientations.ornt_transform(
                orientations.io_orientation(AFFINE), orientations.axcodes2ornt("PIL")
            )
        )
        nib.save(image, folder / f"images/scan{index}.nii.gz")
        nib.save(label, folder / f"labels/scan{index}.nii.gz")
    return folder


def prepared(scans, output, *options):
    prepare.main(
        [
            "--layout=folder",
            f"--source={scans}",
            f"--output={output}",
            "--recipe=brats",  # crops to the voxels that are not 0
            "--classes=0:nothing,2:liver,5:tumour",
            "--workers=1",
            *options,
        ]
    )
    return store.read(output)


@pytest.fixture(scope="session")
def exact(scans, tmp_path_factory):
    """Turned and cropped, not resampled."""
    return prepared(scans, tmp_path_factory.mktemp("exact"), "--spacing=1,1.5,2")


@pytest.fixture(scope="session")
def resampled(scans, tmp_path_factory):
    """To voxels that are larger along every axis, and cropped."""
    return prepared(scans, tmp_path_factory.mktemp("resampled"), "--spacing=1.4,1.9,2.3")


@pytest.fixture(scope="session")
def scanned(save_model, exact, tmp_path_factory):
    """A model for the scans."""
    return save_model(tmp_path_factory.mktemp("scanned"), exact, data__crop=(8, 8, 8))


@pytest.fixture(scope="session")
def scanned_resampled(save_model, resampled, tmp_path_factory):
    """A model for the resampled scans."""
    return save_model(tmp_path_factory.mktemp("scanned_resampled"), resampled, data__crop=(8, 8, 8))


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """Rank -> the folder of an encoder for the shared data set of that rank."""
    folder = tmp_path_factory.mktemp("pretrained")
    return {
        2: write_encoder(folder / "2d", 2, 3),
        3: write_encoder(folder / "3d", 3, 2),
        "slices": write_encoder(folder / "slices", 2, 2),
    }


@pytest.fixture
def compiler_options(monkeypatch):
    """A list: the compiler options of each jitted function, which is compiled without them."""
    given = []
    jit = jax.jit

    def record(function, compiler_options=None, **options):
        given.append(compiler_options or {})
        return jit(function, **options)

    monkeypatch.setattr(jax, "jit", record)
    return given
