"""From cells at a wrong pose to a certified one, or to a refusal."""

from dataclasses import replace

import numpy as np
import pytest
from anndata import AnnData
from scipy.ndimage import uniform_filter
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError
from sigmma_sc.registration.pose import similarity
from sigmma_sc.registration.register import UNKNOWN_SCALE, SquareSizes, find_pose
from sigmma_sc.tissue.frame import apply_affine
from sigmma_sc.tissue.setup import slides_of


@pytest.fixture(scope="module")
def slide():
    sdata = simulate_tissue(n_cells=2000, seed=3)
    SIGMMA.setup_spatialdata(sdata)
    return slides_of(sdata)[0]


@pytest.fixture(scope="module")
def other():
    sdata = simulate_tissue(n_cells=2000, seed=4)
    SIGMMA.setup_spatialdata(sdata)
    return slides_of(sdata)[0]


def moved(slide, angle, scale, mirrored, shift):
    middle = np.array([slide.width, slide.height]) / 2
    matrix = similarity(np.deg2rad(angle), scale, mirrored, middle, middle + shift)
    return replace(slide, xy=apply_affine(matrix, slide.xy))


def error(slide, start, found):
    """Root mean square distance in µm of the cells of ``slide``, put at ``start``, from where they belong."""
    apart = apply_affine(found.matrix, start.xy) - slide.xy
    return np.sqrt((apart**2).sum(axis=1).mean()) * slide.microns_per_pixel


def with_pixels(slide, pixels):
    image = Image2DModel.parse(pixels, ("c", "y", "x"), c_coords=["r", "g", "b"])
    return replace(slide, sdata=SpatialData(images={"x": image}), image_key="x")


@pytest.mark.parametrize(
    "start",
    [(0, 1.0, False, (0, 0)), (188, 1.015, False, (900, -1500)), (98, 0.985, True, (-1800, 400))],
    ids=["registered", "half a turn", "mirrored"],
)
def test_the_pose_does_not_depend_on_where_the_cells_start(slide, start):
    wrong = moved(slide, *start)
    found = find_pose(wrong)
    assert found.certified, found.certificate.reason
    assert found.by == "nuclei"
    assert error(slide, wrong, found) < 0.3
    assert found.certificate.error < 1
    assert not found.affine
    assert found.residuals.median < 1
    assert found.landscape[0].score > 2 * found.landscape[1].score


def test_cells_without_visible_nuclei_are_registered_by_expression(slide):
    level = slide.sdata.images[slide.image_key]["scale0"]["image"].to_numpy()
    blurred = with_pixels(slide, np.stack([uniform_filter(uniform_filter(c, 41), 41) for c in level]))
    wrong = moved(blurred, 188, 1.0, True, (900, -500))
    found = find_pose(wrong)
    assert (found.certified, found.by) == (True, "expression")
    assert "single nuclei do not confirm it" in found.certificate.reason
    assert error(blurred, wrong, found) < found.certificate.error


@pytest.mark.slow
def test_an_unknown_pixel_size_is_found(slide):
    wrong = moved(slide, 95, 1.2, False, (300, 0))
    found = find_pose(wrong, UNKNOWN_SCALE)
    assert found.certified, found.certificate.reason
    assert error(slide, wrong, found) < 0.5


@pytest.mark.slow
def test_bins_are_registered_by_expression(slide):
    """Counts of the cells in each bin of 16 µm; a bin's place is its centre, not that of its cells."""
    step = 16 / slide.microns_per_pixel
    bins, member = np.unique(np.floor(slide.xy / step), axis=0, return_inverse=True)
    pooled = (
        csr_matrix((np.ones(len(member)), (member, slide.rows)), shape=(len(bins), slide.table.n_obs)) @ slide.table.X
    )
    made = replace(slide, xy=(bins + 0.5) * step, rows=np.arange(len(bins)), adata=AnnData(pooled, var=slide.table.var))
    assert SquareSizes.of(made).pitch == pytest.approx(16)
    start = moved(made, 190, 1.01, True, (400, 700))
    found = find_pose(start)
    assert found.certified, found.certificate.reason
    assert found.by == "expression"
    assert error(made, start, found) < 4
    assert error(made, start, found) < found.certificate.error


@pytest.mark.parametrize("what", ["another section", "shuffled", "glass", "one tissue", "mirrored half"])
def test_impossible_pairs_are_refused(slide, other, what):
    level = slide.sdata.images[slide.image_key]["scale0"]["image"].to_numpy()
    rng = np.random.default_rng(0)
    pairs = {
        "another section": lambda: replace(other, xy=slide.xy, rows=slide.rows, adata=slide.adata),
        "shuffled": lambda: replace(slide, xy=rng.permutation(slide.xy)),
        "glass": lambda: with_pixels(slide, rng.integers(240, 246, level.shape).astype(np.uint8)),
        "one tissue": lambda: with_pixels(
            slide, np.tile(level[:, 900:1156, 900:1156], (1, 8, 8))[:, : level.shape[1], : level.shape[2]]
        ),
        "mirrored half": lambda: half(slide, level),
    }
    found = find_pose(pairs[what]())
    assert not found.certified
    assert found.certificate.verdict == "cannot tell"
    assert found.certificate.reason


def half(slide, level):
    middle = level.shape[2] // 2
    left = slide.xy[:, 0] < middle
    image = np.ascontiguousarray(level[:, :, middle:][:, :, ::-1])
    made = with_pixels(slide, image)
    return replace(made, xy=slide.xy[left], rows=slide.rows[left], width=image.shape[2])


def test_few_cells_are_refused(slide):
    found = find_pose(replace(slide, xy=slide.xy[:40], rows=slide.rows[:40]))
    assert not found.certified
    assert found.matrix is None
    assert "too few" in found.certificate.reason


def test_a_table_without_genes_cannot_be_registered(slide):
    with pytest.raises(SetupError, match="no genes"):
        find_pose(replace(slide, adata=slide.table[:, :0].copy()))


def test_squares_follow_the_section(slide):
    sizes = SquareSizes.of(slide)
    assert sizes.fine <= sizes.coarse / 2 + 1e-9
    assert np.isnan(sizes.pitch)
    places = np.stack(np.meshgrid(np.arange(20), np.arange(20)), axis=-1).reshape(-1, 2)
    spots = replace(slide, xy=places * 200 / slide.microns_per_pixel, rows=np.arange(400))
    sizes = SquareSizes.of(spots)
    assert (sizes.pitch, sizes.fine, sizes.coarse) == pytest.approx((200, 100, 250))
