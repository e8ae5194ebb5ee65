"""Sections whose colour is a known mixture of their components."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sigmma_sc.registration.colour import ColourMap
from sigmma_sc.registration.pose import similarity
from sigmma_sc.registration.squares import Squares

SIDE = 48.0
"""Side of the squares, µm."""


def make_section(rng, noise=0.5, n=5000):
    """Squares, an image of 1,600 × 1,200 µm whose colours they explain but for noise, and the pose that does."""
    shape = (150, 200)
    fields = np.stack([gaussian_filter(rng.normal(size=shape), 5) for _ in range(3)], axis=-1)
    fields /= fields.std(axis=(0, 1))
    blur = np.stack([gaussian_filter(rng.normal(size=shape), 3) for _ in range(4)], axis=-1)
    colours = fields @ rng.normal(size=(3, 4)) + noise * blur / blur.std(axis=(0, 1))
    image = ColourMap(colours.astype(np.float32), np.ones(shape, np.float32), 8.0, SIDE)
    places = np.stack(np.meshgrid(np.arange(100, 1500, 24.0), np.arange(100, 1100, 24.0)), axis=-1).reshape(-1, 2)
    values = ColourMap(fields.astype(np.float32), image.tissue, 8.0, SIDE).at(places)[0].astype(float)
    pose = similarity(np.pi / 2 + 0.1, 1.01, True, (0.0, 0.0), (300.0, 900.0))
    inverse = np.linalg.inv(pose)
    xy = places @ inverse[:2, :2].T + inverse[:2, 2]
    return Squares(xy, (values - values.mean(axis=0)) / values.std(axis=0), np.ones(len(xy)), 24.0), image, pose


@pytest.fixture(scope="session")
def section():
    return make_section
