"""Node features are the same whatever holds the counts."""

from types import SimpleNamespace

import anndata as ad
import dask.array as da
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from sklearn.decomposition import PCA
from spatialdata.models import TableModel

from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError
from sigmma_sc.features.counts_pca import N_COMPONENTS, CountsPCA
from sigmma_sc.tissue import counts
from sigmma_sc.tissue.setup import Setup, resolve_slides

N = 1000


@pytest.fixture(scope="module")
def tissue():
    return simulate_tissue(n_cells=N, seed=3)


@pytest.fixture
def adata(tissue):
    return tissue["table"].copy()


def features(table, rows, covariates=True):
    """Features of all cells of a table, fitted on those of some rows."""
    training = np.isin(np.arange(table.n_obs), rows).astype(int)
    slide = SimpleNamespace(
        name="slide",
        table=table,
        rows=np.arange(table.n_obs),
        tile_of_cell=training,
        setup=SimpleNamespace(layer=None),
    )
    fitted = CountsPCA(covariates)
    fitted.fit([(slide, np.array([1]))])
    return fitted.transform(slide, None)


@pytest.fixture
def rows(rng):
    return np.sort(rng.choice(N, 600, replace=False))


def in_file(adata, matrix, folder, lazy=False):
    adata.X = matrix
    adata.write_h5ad(folder / "table.h5ad")
    if not lazy:
        return ad.read_h5ad(folder / "table.h5ad", backed="r")
    found = ad.experimental.read_lazy(folder / "table.h5ad")
    # spatialdata takes no lazy obs.
    return ad.AnnData(found.X, obs=found.obs.to_memory(), var=found.var.to_memory(), uns=dict(adata.uns))


FORMS = {
    "numpy": lambda a, x, _: ad.AnnData(x.toarray(), obs=a.obs, var=a.var, uns=a.uns),
    "csc": lambda a, x, _: ad.AnnData(x.tocsc(), obs=a.obs, var=a.var, uns=a.uns),
    "dask of dense": lambda a, x, _: ad.AnnData(
        da.from_array(x.toarray(), chunks=(300, 50)), obs=a.obs, var=a.var, uns=a.uns
    ),
    "dask of CSR": lambda a, x, _: ad.AnnData(
        da.from_array(x.toarray(), chunks=(300, -1)).map_blocks(sp.csr_matrix), obs=a.obs, var=a.var, uns=a.uns
    ),
    "backed CSR": lambda a, x, folder: in_file(a, x, folder),
    "backed CSC": lambda a, x, folder: in_file(a, x.tocsc(), folder),
    "backed dense": lambda a, x, folder: in_file(a, x.toarray(), folder),
    "lazy CSR": lambda a, x, folder: in_file(a, x, folder, lazy=True),
    "lazy CSC": lambda a, x, folder: in_file(a, x.tocsc(), folder, lazy=True),
    "lazy dense": lambda a, x, folder: in_file(a, x.toarray(), folder, lazy=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_features_do_not_depend_on_what_holds_the_counts(tissue, adata, rows, tmp_path, monkeypatch, form):
    monkeypatch.setattr(counts, "CHUNK", 350)
    expected = features(tissue["table"], rows)
    table = FORMS[form](adata, sp.csr_matrix(adata.X), tmp_path)
    np.testing.assert_array_equal(features(table, rows), expected)
    # Such a table may stand in an object, too.
    sdata = tissue.subset(["he_image", "cell_circles"])
    sdata["table"] = TableModel.parse(table)
    setup = Setup("he_image", "table", "global", None, None, None, None, 128.0, (4, 2, 1))
    assert len(resolve_slides(sdata, setup)[0].xy) == N


def test_features_are_scanpys_and_scikit_learns(adata, rows):
    found = features(adata, rows)
    np.testing.assert_allclose(found[:, 50], np.log1p(np.asarray(adata.X.sum(axis=1)).ravel()), rtol=1e-6)
    np.testing.assert_array_equal(features(adata, rows, covariates=False), found[:, :50])
    train = adata[rows].copy()
    target = float(np.median(np.asarray(train.X.sum(axis=1)).ravel()))
    sc.pp.normalize_total(adata, target_sum=target)
    sc.pp.log1p(adata)
    logs = adata.X.toarray() if sp.issparse(adata.X) else adata.X
    pca = PCA(N_COMPONENTS, svd_solver="full").fit(logs[rows])
    expected = pca.transform(logs)
    # Trailing components of noise are as good as equal, so that the distances are compared, not the axes.
    np.testing.assert_allclose(
        np.linalg.norm(found[:, :10], axis=1), np.linalg.norm(expected[:, :10], axis=1), rtol=1e-3
    )


def test_normalised_values_are_refused_in_a_file_too(adata, rows, tmp_path):
    backed = in_file(adata, sp.csr_matrix(adata.X) / 3, tmp_path)
    with pytest.raises(SetupError, match="X holds .* normalised already"):
        features(backed, rows)
