"""Padding beside tissue, whatever its colour and amount, leaves the features of the tissue's tiles as they are."""

import numpy as np
import pytest
import torch
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from sigmma_sc import Config, ImageEncoder
from sigmma_sc.encoders.stain import StainStatistics
from sigmma_sc.features.data import MIN_TISSUE, TissueData
from sigmma_sc.tissue.frame import image_levels
from sigmma_sc.tissue.setup import Setup, resolve_slides

pytestmark = pytest.mark.filterwarnings("ignore::sigmma_sc.errors.ImageWarning")

SETUP = Setup("he", None, "global", None, None, None, 0.5, 64.0, (1,))
SIDE = 768
"""A multiple of the side of a tile, 128 px, so that tiles are the same with and without padding."""


def network():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 16, 5, 2), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 5, 2), torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return ImageEncoder(module, name="network", input_size=64)


def stain_stats():
    return ImageEncoder(StainStatistics(), name="stains", input_size=64, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture(scope="module", params=[stain_stats, network])
def encoder(request):
    return request.param()


@pytest.fixture(scope="module")
def tissue(tiny):
    return image_levels(tiny, "he_image")[0].to_numpy()[:, 400 : 400 + SIDE, 400 : 400 + SIDE]


def features_of(pixels, encoder):
    """Standardised features and share of tissue of each tile, by its corner."""
    names = list("rgba")[: len(pixels)]
    sdata = SpatialData.init_from_elements({"he": Image2DModel.parse(pixels, ("c", "y", "x"), c_coords=names)})
    (slide,) = resolve_slides(sdata, SETUP)
    data = TissueData(SETUP, encoder, Config())
    tensors = data.tensors(slide, slide.tiles, torch.device("cpu"), cells=False).image
    values = tensors.sample(slide.tiles, np.arange(len(slide.tiles)))[:, 0].numpy()
    corners = list(map(tuple, slide.tiles.origins.tolist()))
    return dict(zip(corners, values, strict=True)), dict(
        zip(corners, data.tissue_share(slide, slide.tiles), strict=True)
    )


@pytest.fixture(scope="module")
def plain(tissue, encoder):
    return features_of(tissue, encoder)


def beside(value):
    def pad(tissue, amount):
        return np.pad(tissue, ((0, 0), (0, 0), (0, amount)), constant_values=value)

    return pad


def noise(tissue, amount):
    out = beside(0)(tissue, amount)
    out[:, :, SIDE:] = np.random.default_rng(0).integers(0, 4, out[:, :, SIDE:].shape)
    return out


def transparent(tissue, amount):
    alpha = beside(0)(np.full_like(tissue[:1], 255), amount)
    return np.concatenate([beside(40)(tissue, amount), alpha])


def below(tissue, amount):
    return np.pad(tissue, ((0, 0), (0, amount), (0, 0)))


WHITE = [beside(245), beside(255)]

PADDINGS = [
    pytest.param(beside(0), id="black"),
    pytest.param(WHITE[0], id="grey-white"),
    pytest.param(WHITE[1], id="white"),
    pytest.param(noise, id="noise of 0 to 3"),
    pytest.param(transparent, id="transparent"),
    pytest.param(below, id="black below"),
]


@pytest.mark.parametrize("pad", PADDINGS)
@pytest.mark.parametrize("amount", [2 * SIDE])
def test_features_of_the_tissue_stay(tissue, plain, encoder, pad, amount):
    features, share = features_of(pad(tissue, amount), encoder)
    before, share_before = plain
    same = before.keys() & features.keys()
    assert len(same) == 36
    cosines = []
    for corner in same:
        a, b = before[corner], features[corner]
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        # White cannot be told from glass, whose density is then better known than on a picture full of tissue.
        assert share[corner] >= share_before[corner] - 0.1
        assert share[corner] <= share_before[corner] + (1 if pad in WHITE else 0.1)
    assert min(cosines) > 0.95
    empty = [value for corner, value in share.items() if corner not in same]
    assert len(empty) > 0
    assert max(empty) < MIN_TISSUE


def test_a_black_field_in_the_tissue_leaves_the_tiles_around_it(tissue, plain, encoder):
    pixels = tissue.copy()
    pixels[:, 256:512, 256:512] = 0
    features, share = features_of(pixels, encoder)
    for corner, before in plain[0].items():
        if corner in {(256, 256), (384, 256), (256, 384), (384, 384)}:
            assert share[corner] == 0
        else:
            after = features[corner]
            assert before @ after / np.linalg.norm(before) / np.linalg.norm(after) > 0.95


def test_a_tile_that_is_black_in_part_has_the_features_of_one_on_glass(tissue, encoder):
    """Black is shown to the encoder as glass, to the last bit."""
    black, white = tissue.copy(), tissue.copy()
    black[:, :, 300:] = 0
    white[:, :, 300:] = 255
    first, second = features_of(black, encoder)[0], features_of(white, encoder)[0]
    for corner in [(256, 0), (256, 128), (128, 0)]:
        np.testing.assert_array_equal(first[corner], second[corner])
