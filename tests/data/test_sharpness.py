"""The blur of noise is measured as it was made."""

import numpy as np
import pytest

from ssl3d.data import sharpness
from ssl3d.phantoms import noise


@pytest.mark.parametrize("blur", [(1.0, 1.0, 2.5), (0.8, 3.0)])
def test_blur_of_noise(blur):
    rng = np.random.default_rng(0)
    images = [noise.blurred_noise(rng, (48,) * len(blur), 2, blur) for _ in range(8)]
    np.testing.assert_allclose(sharpness.blur_per_axis(images), blur, rtol=0.1)


def test_a_constant_image_and_an_axis_of_one_voxel_have_no_sharpness():
    assert np.isnan(sharpness.neighbour_correlation(np.ones((4, 4, 1)))).all()
    image = np.random.default_rng(0).normal(size=(8, 1, 1))
    assert np.isnan(sharpness.neighbour_correlation(image)[1])
    assert sharpness.blur_per_axis([np.ones((4, 4, 1))]).tolist() == [0, 0]
