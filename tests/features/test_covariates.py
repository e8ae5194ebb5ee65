import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial import cKDTree

from sigmma_sc import SIGMMA
from sigmma_sc.features.covariates import log_distance
from sigmma_sc.features.node_features import NodeFeatures


def test_distance_to_the_nearest_cells(rng):
    xy = rng.uniform(0, 100, (30, 2))
    apart = np.linalg.norm(xy[:, None] - xy, axis=2)
    expected = np.log1p(np.sort(apart, axis=1)[:, 1:9].mean(axis=1))
    np.testing.assert_allclose(log_distance(xy), expected, rtol=1e-5)
    np.testing.assert_allclose(log_distance(np.array([[0.0, 0], [3, 4], [3, 4]])), np.log1p([5, 2.5, 2.5]), rtol=1e-6)
    np.testing.assert_array_equal(log_distance(xy[:1]), [0])


def lattice(pitch, hexagonal=False):
    """Bins, or spots, of a ring: with an edge and a hole."""
    column, row = np.meshgrid(np.arange(30.0), np.arange(30.0))
    if hexagonal:
        column, row = column + row % 2 / 2, row * np.sqrt(0.75)
    xy = np.column_stack([column.ravel(), row.ravel()])
    radius = np.linalg.norm(xy - xy.mean(axis=0), axis=1)
    return pitch * xy[(radius > 3) & (radius < 12)]


@pytest.mark.parametrize("hexagonal", [False, True])
def test_on_a_lattice_edges_and_holes_are_as_the_rest(rng, hexagonal):
    xy = lattice(16.0, hexagonal)
    inside = np.log1p(16 * (4 + 4 * np.sqrt(2)) / 8 if not hexagonal else 16 * (6 + 2 * np.sqrt(3)) / 8)
    np.testing.assert_allclose(log_distance(xy), inside, rtol=1e-6)
    as_before = log_distance(xy, even_lattices=False)
    assert (as_before > inside + 0.05).sum() > 50
    np.testing.assert_allclose(np.median(as_before), inside, rtol=1e-6)
    # Printed a little unevenly, turned, and with a bin in fifty left out.
    turned = (xy + rng.normal(scale=0.3, size=xy.shape))[rng.random(len(xy)) > 0.02] @ [[0.8, 0.6], [-0.6, 0.8]]
    assert np.ptp(log_distance(turned)) == 0
    # Cells of tissue keep their distances, however dense they are.
    cells = rng.uniform(0, 300, (900, 2))
    np.testing.assert_array_equal(log_distance(cells), log_distance(cells, even_lattices=False))


def bins(pitch=16.0):
    """A ring of bins on simulated tissue, three cells in each; which of them lack a neighbour."""
    import spatialdata as sd
    from anndata import AnnData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import get_transformation

    from sigmma_sc.datasets import simulate_tissue
    from sigmma_sc.tissue.setup import slides_of

    tissue = simulate_tissue(n_cells=6000, seed=0)
    SIGMMA.setup_spatialdata(tissue)
    (slide,) = slides_of(tissue)
    step = pitch / slide.microns_per_pixel
    low, high = slide.xy.min(axis=0), slide.xy.max(axis=0)
    x, y = np.meshgrid(np.arange(low[0] + step, high[0] - step, step), np.arange(low[1] + step, high[1] - step, step))
    xy = np.column_stack([x.ravel(), y.ravel()])
    radius = np.linalg.norm(xy - np.median(xy, axis=0), axis=1) / np.ptp(xy, axis=0).min()
    xy = xy[(radius > 0.1) & (radius < 0.475)]
    near = slide.rows[cKDTree(slide.xy).query(xy, 3)[1]]
    pooled = sparse.csr_matrix((np.ones(near.size), near.ravel(), np.arange(len(xy) + 1) * 3), (len(xy), 6000))
    obs = pd.DataFrame({"region": pd.Categorical(["bins"] * len(xy)), "bin": np.arange(len(xy))})
    obs.index = obs.index.astype(str)
    cells = AnnData(sparse.csr_matrix(pooled @ slide.table.X), obs=obs, var=slide.table.var[[]])
    squares = ShapesModel.parse(
        xy,
        geometry=0,
        radius=step / 2,
        index=np.arange(len(xy)),
        transformations={"global": get_transformation(tissue["he_image"])},
    )
    sdata = sd.SpatialData(
        images={"he_image": tissue["he_image"]},
        shapes={"bins": squares},
        tables={"table": TableModel.parse(cells, "bins", "region", "bin")},
    )
    SIGMMA.setup_spatialdata(sdata, microns_per_pixel=slide.microns_per_pixel)
    return sdata, cKDTree(xy).query(xy, 9)[0][:, 8] > 1.6 * step


@pytest.mark.slow
def test_the_rim_of_a_section_of_bins_is_no_niche(encoder, monkeypatch):
    from sigmma_sc import tl

    sdata, rim = bins()
    found = {}
    for even in (False, True):
        monkeypatch.setattr(NodeFeatures, "even_lattices", even)
        model = SIGMMA(sdata, encoder(), n_latent=32, radius=17.0)
        model.train(max_epochs=20, split="none", batch_size=32, lr=3e-3, enable_progress_bar=False)
        model.write_embeddings(overwrite=True)
        tl.niches(sdata["table"], ["micro"], resolution=1.0)
        found[even] = pd.crosstab(sdata["table"].obs["sigmma_niche_micro"].to_numpy(), rim)[True]
    n_rim = rim.sum()
    assert 0.05 < rim.mean() < 0.15
    # As it was, one niche held most of the rim; now none holds a third.
    assert found[False].max() > 0.6 * n_rim
    assert found[True].max() < 0.33 * n_rim
