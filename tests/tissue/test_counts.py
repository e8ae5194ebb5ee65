"""Rows of counts, the same whatever holds the matrix."""

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue import counts
from sigmma_sc.tissue.counts import counts_by_rows, counts_of, pooled_counts, take_rows
from sigmma_sc.tissue.setup import Setup, resolve_slides

N, GENES = 3000, 30


@pytest.fixture(scope="module")
def dense():
    return np.random.default_rng(0).poisson(0.4, (N, GENES)).astype(np.float32)


def stored(matrix, folder, form):
    adata = ad.AnnData(matrix, obs=pd.DataFrame(index=[f"c{k}" for k in range(len(matrix.toarray()))]))
    getattr(adata, f"write_{form}")(folder / f"table.{form}")
    return folder / f"table.{form}"


def dense_in_file(path, x):
    adata = ad.AnnData(x)
    adata.write_h5ad(path / "dense.h5ad")
    return ad.read_h5ad(path / "dense.h5ad", backed="r").X


FORMS = {
    "numpy": lambda x, _: x,
    "csr": lambda x, _: sp.csr_matrix(x),
    "csc": lambda x, _: sp.csc_matrix(x),
    "csr_array": lambda x, _: sp.csr_array(x),
    "csc_array": lambda x, _: sp.csc_array(x),
    "dask of dense": lambda x, _: da.from_array(x, chunks=(700, -1)),
    "dask of dense, genes cut": lambda x, _: da.from_array(x, chunks=(700, 8)),
    "dask of CSR": lambda x, _: da.from_array(x, chunks=(700, -1)).map_blocks(sp.csr_matrix),
    "dask of CSC, genes cut": lambda x, _: da.from_array(x, chunks=(-1, 8)).map_blocks(sp.csc_matrix),
    "h5py": lambda x, path: dense_in_file(path, x),
    "zarr": lambda x, _: zarr.array(x, chunks=(512, 16)),
    "CSR in h5ad": lambda x, path: ad.read_h5ad(stored(sp.csr_matrix(x), path, "h5ad"), backed="r").X,
    "CSC in h5ad": lambda x, path: ad.read_h5ad(stored(sp.csc_matrix(x), path, "h5ad"), backed="r").X,
    "CSR in zarr": lambda x, path: ad.io.sparse_dataset(zarr.open(stored(sp.csr_matrix(x), path, "zarr"))["X"]),
    "CSC in zarr": lambda x, path: ad.io.sparse_dataset(zarr.open(stored(sp.csc_matrix(x), path, "zarr"))["X"]),
    "lazy CSR": lambda x, path: ad.experimental.read_lazy(stored(sp.csr_matrix(x), path, "zarr")).X,
    "lazy CSC": lambda x, path: ad.experimental.read_lazy(stored(sp.csc_matrix(x), path, "zarr")).X,
}


def swapped(matrix):
    """CSR whose three arrays have the other byte order, as read from a file of another machine."""
    rows = sp.csr_matrix(matrix)
    for name in ("data", "indices", "indptr"):
        array = getattr(rows, name)
        setattr(rows, name, array.astype(array.dtype.newbyteorder(">")))
    return rows


def halved(matrix):
    rows = sp.csr_matrix(matrix)
    rows.data = rows.data.astype(np.float16)
    return rows


def read_only(matrix):
    matrix = matrix.copy()
    for array in (matrix.data, matrix.indices, matrix.indptr) if sp.issparse(matrix) else (matrix,):
        array.flags.writeable = False
    return matrix


FORMS |= {
    "big-endian": lambda x, _: x.astype(">f4"),
    "big-endian integers": lambda x, _: x.astype(">i8"),
    "big-endian CSR": lambda x, _: swapped(x),
    "big-endian CSC": lambda x, _: swapped(x).tocsc(),
    "big-endian Dask": lambda x, _: da.from_array(x.astype(">f4"), chunks=(700, 8)),
    "half precision": lambda x, _: x.astype(np.float16),
    "half precision CSR": lambda x, _: halved(x),
    "half precision Dask": lambda x, _: da.from_array(x.astype(np.float16), chunks=(700, -1)),
    "read-only": lambda x, _: read_only(x),
    "read-only CSR": lambda x, _: read_only(sp.csr_matrix(x)),
    "integers": lambda x, _: x.astype(np.int64),
    "bytes": lambda x, _: x.astype(np.uint8),
}


def table_of(matrix):
    return ad.AnnData(matrix, obs=pd.DataFrame(index=[f"c{k}" for k in range(N)]))


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_every_kind_of_matrix(dense, form, tmp_path, monkeypatch, rng):
    monkeypatch.setattr(counts, "DENSE", 400 * GENES)
    matrix = counts_by_rows(table_of(FORMS[form](dense, tmp_path)), None)
    for rows in (
        np.arange(N),
        np.sort(rng.choice(N, 500, replace=False)),
        np.array([0, 1, 2, 1500, 2999]),
        np.array([7]),
        np.empty(0, np.int64),
    ):
        found = take_rows(matrix, rows)
        assert sp.issparse(found)
        assert found.format == "csr"
        np.testing.assert_array_equal(found.toarray(), dense[rows])


@pytest.mark.parametrize("form", ["numpy", "csr", "big-endian CSR", "dask of dense", "CSR in h5ad"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "is missing"),
        (np.inf, "is infinite"),
        (-np.inf, "is infinite"),
        (-2.0, "never negative"),
        (0.5, "normalised already"),
        (2**24 + 0.5, "normalised already"),
    ],
)
def test_a_value_that_is_no_count_is_named_wherever_it_is(dense, form, value, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "CHUNK", 700)
    monkeypatch.setattr(counts, "BLOCK", 64)
    for cell, gene in ((0, 0), (1399, GENES - 1), (N - 1, 7)):
        matrix = dense.astype(np.float64)
        matrix[cell, gene] = value
        folder = tmp_path / str(cell)
        folder.mkdir()
        table = table_of(FORMS[form](matrix, folder))
        shown = {np.inf: "inf", -np.inf: "-inf", -2.0: "-2.0", 0.5: "0.5"}.get(value, "")
        with pytest.raises(SetupError, match=f"X holds {shown}.* for cell 'c{cell}' and gene '{gene}'.*{reason}"):
            list(counts_of(table, np.arange(N), None))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int8, np.int64])
def test_a_negative_count_of_any_type_is_named(dense, kind):
    matrix = (dense.clip(0, 9)).astype(kind)
    matrix[5, 3] = -1
    with pytest.raises(SetupError, match="X holds -1.* for cell 'c5' and gene '3'"):
        list(counts_of(table_of(matrix), np.arange(N), None))


@pytest.mark.parametrize("matrix", [np.ones((N, 2), complex), np.full((N, 2), "1"), np.ones((N, 2), object)])
def test_values_that_are_no_numbers_are_refused_by_their_type(matrix):
    table = table_of(np.ones((N, 2), np.float32))
    table.layers["odd"] = matrix
    with pytest.raises(SetupError, match=r"layers\['odd'\] holds values of type .* no counts"):
        list(counts_of(table, np.arange(N), "odd"))


def test_layers(dense):
    table = table_of(np.zeros_like(dense))
    table.layers["counts"] = sp.csc_matrix(dense)
    np.testing.assert_array_equal(take_rows(counts_by_rows(table, "counts"), np.array([3, 9])).toarray(), dense[[3, 9]])


def test_a_table_without_x_is_refused():
    with pytest.raises(SetupError, match="no X.*layer"):
        counts_by_rows(ad.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["g"])), None)


class Recording:
    """A dense array on disk that remembers what was asked of it."""

    def __init__(self, values):
        self.values, self.shape, self.asked = values, values.shape, []

    def __getitem__(self, rows):
        self.asked.append((rows.start, rows.stop))
        return self.values[rows]


def test_slabs_are_bounded_and_gaps_are_skipped(dense, monkeypatch):
    monkeypatch.setattr(counts, "DENSE", 500 * GENES)
    matrix = Recording(dense)
    rows = np.array([*range(0, 1100, 3), 2500, 2600])
    np.testing.assert_array_equal(take_rows(matrix, rows).toarray(), dense[rows])
    assert matrix.asked == [(0, 499), (501, 1000), (1002, 1099), (2500, 2601)]


def test_dense_chunks_of_dask_turn_sparse_one_by_one(dense):
    """What is put together is never dense."""
    seen = []

    def remember(chunk):
        seen.append(chunk.shape)
        return chunk

    lazy = da.from_array(dense, chunks=(500, -1)).map_blocks(remember, dtype=dense.dtype, meta=np.empty((0, 0), "f4"))
    take_rows(counts_by_rows(table_of(lazy), None), np.arange(N))
    assert seen == [(500, GENES)] * 6


def test_counts_pooled_over_tiles_equal_brute_force(monkeypatch):
    monkeypatch.setattr(counts, "CHUNK", 300)
    tissue = simulate_tissue(n_cells=1000, seed=3)
    setup = Setup("he_image", "table", "global", None, None, None, None, 128.0, (4, 2, 1))
    slide = resolve_slides(tissue, setup)[0]
    which = np.flatnonzero(slide.tiles.n_cells)[::2]
    tiles = slide.tiles.take(which)
    genes = list(tissue["table"].var_names[::-3])
    pooled = pooled_counts(slide, tiles, genes)
    values = tissue["table"][:, genes].to_df().to_numpy()[slide.rows]
    brute = [values[tiles.cells[tiles.indptr[t] : tiles.indptr[t + 1]]].sum(axis=0) for t in range(len(which))]
    np.testing.assert_array_equal(pooled.toarray(), brute)
