import math

import pytest
import torch
from torch.nn import functional as F

from sigmma_sc.encoders.registry import REGISTRY
from sigmma_sc.encoders.stain import (
    StainStatistics,
    _ascending,
    _blur,
    _halved,
    _parts,
    optical_density,
    unmixing_matrix,
)
from sigmma_sc.errors import EncoderError

SIDE = 112
HAEMATOXYLIN = F.normalize(torch.tensor([0.65, 0.70, 0.29]), dim=0)
EOSIN = F.normalize(torch.tensor([0.07, 0.99, 0.11]), dim=0)


@pytest.fixture(scope="module")
def stain():
    return StainStatistics().eval()


def paint(haematoxylin, eosin):
    """Beer-Lambert: amounts ``(B, S, S)`` to RGB ``(B, 3, S, S)``."""
    density = haematoxylin[:, None] * HAEMATOXYLIN[:, None, None] + eosin[:, None] * EOSIN[:, None, None]
    return 10**-density


def discs(per_side, radius, side=SIDE):
    """``per_side``² discs on a lattice, ``(S, S)`` in [0, 1] with edges one pixel wide."""
    middle = (torch.arange(per_side) + 0.5) * side / per_side
    line = torch.arange(side) + 0.5
    nearest = (line[:, None] - middle).abs().amin(1)
    distance = (nearest[:, None].square() + nearest.square()).sqrt()
    return (radius - distance + 0.5).clamp(0, 1)


def nuclei(*patterns, amount=0.8, eosin=0.2):
    mask = torch.stack(patterns)
    return paint(amount * mask + 0.02, torch.full_like(mask, eosin))


def noise(seed=0, n=3):
    """Textures with structure at every scale, unlike white noise."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(torch.rand(n, 3, s, s, generator=generator), size=SIDE, mode="bicubic") for s in (4, 14, 56)
    ]
    return (sum(layers) / 3).clamp(0, 1)


def white_noise(side, n=2):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_optical_density_of_a_flat_colour():
    rgb = torch.tensor([1.0, 0.1, 0.01])[None, :, None, None].expand(1, 3, 2, 2)
    assert torch.allclose(optical_density(rgb)[0, :, 0, 0], torch.tensor([0.0, 1.0, 2.0]))
    assert optical_density(torch.zeros(1, 3, 1, 1)).amax().item() == pytest.approx(math.log10(255))


def test_unmixing_gives_the_amounts_back():
    matrix = unmixing_matrix()
    assert torch.allclose(matrix @ (0.7 * HAEMATOXYLIN + 0.3 * EOSIN), torch.tensor([0.7, 0.3, 0.0]), atol=1e-6)


def test_flat_colour_by_hand(stain):
    found = stain.describe(paint(torch.full((1, SIDE, SIDE), 0.6), torch.full((1, SIDE, SIDE), 0.3)))
    assert found["haematoxylin_mean"].item() == pytest.approx(0.6, abs=1e-5)
    assert found["eosin_mean"].item() == pytest.approx(0.3, abs=1e-5)
    assert found["residual_mean"].item() == pytest.approx(0, abs=1e-5)
    assert found["haematoxylin_q50"].item() == pytest.approx(0.6, abs=1e-5)
    assert found["haematoxylin_sd"].item() == pytest.approx(0, abs=1e-3)
    assert found["haematoxylin_above0.5"].item() == pytest.approx(1 / (1 + math.exp(-0.1 / 0.075)), abs=1e-4)
    assert found["white_fraction"].item() < 1e-6
    for name in (
        "nuclei_boundary",
        "haematoxylin_skew",
        "haematoxylin_lag2",
        "eosin_coherence_fine",
        "corr_haematoxylin_eosin",
    ):
        assert found[name].item() == pytest.approx(0, abs=1e-2), name


def test_shape_names_and_registry(stain):
    out = stain(noise())
    assert out.shape == (3, REGISTRY["stain-stats"].dim)
    assert out.dtype == torch.float32
    assert len(set(stain.feature_names)) == out.shape[1]
    assert REGISTRY["stain-stats"].input_size % 16 == 0


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x.rot90(1, (2, 3)),
        lambda x: x.rot90(2, (2, 3)),
        lambda x: x.flip(2),
        lambda x: x.flip(3),
        lambda x: x.mT,
    ],
    ids=["90", "180", "upside down", "mirrored", "transposed"],
)
@pytest.mark.parametrize("images", [noise(), nuclei(discs(3, 9), discs(8, 4), discs(1, 20)), white_noise(48)])
def test_turning_changes_nothing(stain, turn, images):
    torch.testing.assert_close(stain(turn(images)), stain(images), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_finite_on_flat_crops(stain, value):
    out = stain(torch.full((2, 3, SIDE, SIDE), value))
    assert torch.isfinite(out).all()
    assert out.abs().max() < 10


def test_deterministic_whatever_the_batch(stain):
    images = noise(n=11)
    together = stain(images)
    assert torch.equal(together, stain(images))
    torch.testing.assert_close(torch.cat([stain(one[None]) for one in images]), together, atol=1e-5, rtol=1e-5)


def test_nuclear_fraction_is_the_area(stain):
    radii = (3, 5, 7, 9)
    found = stain.describe(nuclei(*[discs(5, r) for r in radii]))
    expected = torch.tensor([25 * math.pi * r**2 / SIDE**2 for r in radii])
    torch.testing.assert_close(found["nuclei_fraction"], expected, atol=0.02, rtol=0.05)
    torch.testing.assert_close(found["haematoxylin_above0.5"], expected, atol=0.02, rtol=0.05)


@pytest.mark.parametrize("amount", [0.25, 0.8, 1.5])
def test_nuclear_mask_adapts_to_the_stain(stain, amount):
    found = stain.describe(nuclei(discs(5, 7), amount=amount))
    assert found["nuclei_fraction"].item() == pytest.approx(25 * math.pi * 49 / SIDE**2, abs=0.03)
    # Pixels on an edge belong to neither class and pull both means together.
    assert found["nuclei_contrast"].item() == pytest.approx(amount, rel=0.15)
    assert found["chromatin_mean"].item() == pytest.approx(amount, rel=0.15)


def test_nuclei_are_told_from_the_matrix_beside_white_space(stain):
    """The lumen is the largest contrast of the crop, and yet not what splits nuclei from the rest."""
    image = nuclei(discs(5, 6), eosin=0.4)
    image[:, :, : SIDE // 2] = 1
    found = stain.describe(image)
    assert found["white_fraction"].item() == pytest.approx(0.5, abs=0.01)
    assert found["nuclei_contrast"].item() == pytest.approx(0.8, rel=0.15)
    assert found["matrix_eosin_mean"].item() == pytest.approx(0.4, rel=0.1)


def test_number_of_nuclei(stain):
    found = stain.describe(nuclei(discs(2, 10), discs(4, 6), discs(8, 4)))
    torch.testing.assert_close(found["nuclei_number"].expm1(), torch.tensor([4.0, 16.0, 64.0]), atol=0, rtol=0.15)


def test_octaves_respond_to_nuclear_size(stain):
    """Equal nuclear area, nuclei of radius 2, 4, 8: the strongest octave climbs with the radius."""
    found = stain.describe(nuclei(discs(16, 2), discs(8, 4), discs(4, 8)))
    spectrum = torch.stack([found[f"haematoxylin_dog{k}"] for k in range(5)], dim=1)
    best = spectrum.argmax(1)
    assert best.tolist() == sorted(set(best.tolist()))
    assert (found["haematoxylin_blob0"] > 0).all()


def test_coherence_tells_fibres_from_dots(stain):
    line = (torch.arange(SIDE) * 2 * math.pi / 16).sin() * 0.2 + 0.3
    fibres = line[None].expand(SIDE, SIDE)
    diagonal = torch.stack([line.roll(k) for k in range(SIDE)])
    dots = discs(7, 4) * 0.4 + 0.1
    found = stain.describe(paint(torch.full((3, SIDE, SIDE), 0.05), torch.stack([fibres, diagonal, dots])))
    assert (found["eosin_coherence_fine"][:2] > 0.9).all()
    assert found["eosin_coherence_fine"][2] < 0.1
    # Half a wavelength is 4 pixels of the half-size crop: along the lines alike, across them opposite.
    assert found["eosin_axis"][0] == pytest.approx(2, abs=0.2)


def test_layout_tells_a_cluster_from_a_spread(stain):
    spread = discs(8, 3)
    cluster = torch.zeros_like(spread)
    cluster[28:84, 28:84] = discs(8, 6)[28:84, 28:84]
    found = stain.describe(nuclei(spread, cluster))
    assert found["nuclei_unevenness"][1] > 5 * found["nuclei_unevenness"][0]
    assert found["nuclei_middle"][1] > 0.2
    assert found["nuclei_middle"][0].abs() < 0.01


@pytest.mark.parametrize("shape", [(2, 3, 100, 100), (2, 3, 112, 96), (2, 1, 112, 112), (3, 112, 112)])
def test_wrong_shapes(stain, shape):
    with pytest.raises(EncoderError, match="multiple of 16"):
        stain(torch.rand(shape))


def test_autocast_changes_nothing(stain):
    images = noise()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(stain(images), stain(images))
        inside = stain(images)
    torch.testing.assert_close(inside, stain(images))


def test_nothing_is_saved_and_nothing_is_trained(stain):
    assert not stain.state_dict()
    assert not list(stain.parameters())


def test_the_short_ways_equal_those_of_torch():
    """Values of either sign, ties and zeros among them, in maps that are parts of larger ones."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 5, 48, 48, generator=generator).mul(4).round().div(4)[:, 1:4]
    weight = torch.rand(2, 3, 48 * 48, generator=generator)
    values = maps.flatten(2)
    ordered, weights = _ascending(values, weight)
    assert torch.equal(ordered, values.sort(dim=2).values)
    for value in values.unique():
        here = values == value
        assert torch.allclose(weights[ordered == value].sum(), weight[here].sum())
    with_gradient, _ = _ascending(values.clone().requires_grad_(), weight)
    assert torch.equal(with_gradient, ordered)
    assert torch.allclose(_halved(maps), F.avg_pool2d(maps, 2), atol=1e-6)
    assert torch.allclose(_parts(maps), F.adaptive_avg_pool2d(maps, 4), atol=1e-6)
    row = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    padded = F.pad(maps, (2, 2, 2, 2), mode="replicate").flatten(0, 1)[:, None]
    filtered = F.conv2d(padded, (row[:, None] * row)[None, None])
    assert torch.allclose(_blur(maps), filtered.view_as(maps), atol=1e-5)
