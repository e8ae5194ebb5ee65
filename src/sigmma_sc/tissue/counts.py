"""Rows of a table's counts in memory, in a file, or lazy; never a dense matrix of all cells and genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from sigmma_sc._checks import require_key
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.panel import find_genes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dask.array as da
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csc_matrix, csr_matrix

    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles

    CountMatrix: TypeAlias = "NDArray | csr_matrix | da.Array | StoredMatrix"

CHUNK = 50_000
"""Number of cells whose counts are read at once."""

GAP = 1000
"""Up to this many unneeded rows are read rather than skipped, because another read of a file costs more."""

DENSE = 2**24
"""Largest number of values that are dense at once."""

BLOCK = 2**16
"""Number of values that are checked at once, few enough to stay in a processor's cache."""

HINT = "Pass layer=… for the raw counts, or features_key=… for an embedding."


class StoredMatrix(Protocol):
    """A backed sparse matrix of anndata, or an array of HDF5 or zarr, ``(n_cells, n_genes)``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of cells and genes."""

    def __getitem__(self, rows: slice) -> NDArray | csr_matrix: ...


def counts_by_rows(table: AnnData, layer: str | None) -> CountMatrix:
    """The counts of a table in a form whose rows can be read separately, or :class:`SetupError` without any ``X``.

    A matrix stored by columns, or lazy and chunked along genes, is read as a whole and held as CSR, because each row is
    in all of its parts. Others are returned as they are.
    """
    import dask.array as da
    from anndata.abc import CSCDataset
    from scipy.sparse import issparse

    if layer is not None:
        require_key(layer, table.layers, "layer")
    matrix = table.X if layer is None else table.layers[layer]
    if matrix is None:
        raise SetupError("The table has no X. Pass layer=… for the raw counts, or features_key=… for an embedding.")
    if np.dtype(matrix.dtype).kind not in "buif":
        raise SetupError(f"{_where(layer)} holds values of type {matrix.dtype}, which are no counts. {HINT}")
    if isinstance(matrix, CSCDataset):
        matrix = matrix.to_memory()
    if issparse(matrix):
        return _sparse(matrix)
    if isinstance(matrix, da.Array) and len(matrix.chunks[1]) > 1:
        return _computed(matrix)
    return matrix


def take_rows(matrix: CountMatrix, rows: NDArray[np.int64]) -> csr_matrix:
    """Some ascending rows ``(n, n_genes)`` of a matrix from :func:`counts_by_rows`.

    It may be of NumPy, CSR, Dask over dense or sparse chunks, a backed sparse matrix, or a dense array of HDF5 or zarr.
    """
    import dask.array as da
    from scipy.sparse import csr_matrix, sparray, spmatrix, vstack

    if isinstance(matrix, (sparray, spmatrix)):
        return matrix[rows]
    if isinstance(matrix, da.Array):
        return _computed(matrix[rows])
    # Slices alone are read, because files are slow to read row by row.
    parts = [_sparse(matrix[some[0] : some[-1] + 1][some - some[0]]) for some in _slabs(rows, matrix.shape[1])]
    return vstack(parts, format="csr") if parts else csr_matrix((0, matrix.shape[1]), dtype=np.float32)


def pooled_counts(slide: Slide, tiles: Tiles, genes: list[str]) -> csr_matrix:
    """Raw counts summed over the cells of each tile of a slide, ``(n_tiles, n_genes)`` float32."""
    from scipy.sparse import csr_matrix

    ones = np.ones(len(tiles.cells), np.float32)
    member = csr_matrix((ones, tiles.cells, tiles.indptr), shape=(len(tiles), len(slide.rows)))
    where = positions(slide.table, genes)
    total = csr_matrix((len(tiles), len(genes)), dtype=np.float32)
    for some, counts in counts_of(slide.table, slide.rows, slide.setup.layer):
        total = total + member[:, some] @ counts[:, where]
    return total.tocsr()


def positions(table: AnnData, genes: list[str]) -> NDArray[np.int64]:
    """Columns of a table that hold ``genes``, as :func:`find_genes` matches them; :class:`SetupError` if any is missing."""
    where = find_genes(table, genes)
    if (where < 0).any():
        missing = [gene for gene, k in zip(genes, where, strict=True) if k < 0]
        raise SetupError(
            f"{len(missing)} of {len(genes)} genes are missing, e.g. {', '.join(missing[:5])}. Name genes that the table has in "
            "var_names or in a column of var."
        )
    return where


def counts_of(table: AnnData, rows: NDArray[np.int64], layer: str | None) -> Iterator[tuple[slice, csr_matrix]]:
    """Raw counts ``(n, n_genes)`` float32 of ascending rows, :data:`CHUNK` at a time, each with its slice.

    Every value is looked at. One that is no count raises :class:`SetupError`, which names cell, gene and value.
    """
    matrix = counts_by_rows(table, layer)
    for start in range(0, len(rows), CHUNK):
        some = slice(start, min(start + CHUNK, len(rows)))
        counts = take_rows(matrix, rows[some])
        if (bad := _first_non_count(counts.data)) is not None:
            cell = rows[some][int(np.searchsorted(counts.indptr, bad, side="right")) - 1]
            gene = table.var_names[counts.indices[bad]]
            raise SetupError(
                f"{_where(layer)} holds {counts.data[bad]} for cell {table.obs_names[cell]!r} and gene {gene!r}, where raw counts "
                f"are needed: {_reason(counts.data[bad])}"
            )
        yield some, counts.astype(np.float32, copy=False)


def _where(layer: str | None) -> str:
    return "X" if layer is None else f"layers[{layer!r}]"


def _first_non_count(values: NDArray) -> int | None:
    """Position of the first value that is negative, not whole, missing or infinite."""
    if values.dtype.kind in "bu":
        return None
    whole = np.empty(BLOCK, bool)
    rounded = np.empty(BLOCK, values.dtype)
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        n = len(block)
        if values.dtype.kind == "f":
            # A missing value is unlike itself, and an infinite one is its own rounding.
            np.equal(np.rint(block, out=rounded[:n]), block, out=whole[:n])
            sound = whole[:n].all() and block.min() >= 0 and block.max() < np.inf
        else:
            sound = block.min() >= 0
        if not sound:
            bad = ~np.isfinite(block) | (block < 0) | (block != np.rint(block))
            return start + int(np.argmax(bad))
    return None


def _reason(value: np.number) -> str:
    """What is wrong with a value that is no count, and what helps."""
    if np.isnan(value):
        return f"the value is missing. Fill or remove missing counts first. {HINT}"
    if np.isinf(value):
        return f"the value is infinite. Correct it, or remove the cell. {HINT}"
    if value < 0:
        return f"a count is never negative, so the values seem to be scaled, or normalised already. {HINT}"
    return f"the values seem to be normalised already. {HINT}"


def log_normalise(counts: csr_matrix, target_sum: float) -> csr_matrix:
    """log1p of counts scaled to ``target_sum`` a cell; a cell without counts stays zero."""
    totals = np.asarray(counts.sum(axis=1)).ravel()
    scale = target_sum / np.maximum(totals, 1e-12)
    logs = counts.copy()
    logs.data = np.log1p(logs.data * np.repeat(scale, np.diff(logs.indptr)).astype(np.float32))
    return logs


def log_totals(counts: csr_matrix, share: float = 1.0) -> NDArray[np.float32]:
    """log1p of the total of each row, ``(n,)``, of counts of genes that make up ``share`` of the panel."""
    return np.log1p(np.asarray(counts.sum(axis=1)).ravel() / share).astype(np.float32)


def row_totals(counts: csr_matrix) -> NDArray[np.float64]:
    """Total of each row, ``(n,)``."""
    return np.asarray(counts.sum(axis=1), dtype=float).ravel()


def embedding_rows(table: AnnData, key: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Rows of ``obsm[key]``, an array, a sparse matrix or a data frame, dense as float32.

    Values that are no real numbers raise :class:`SetupError`.
    """
    from scipy.sparse import issparse

    matrix = table.obsm[key]
    some = matrix.iloc[rows].to_numpy() if hasattr(matrix, "iloc") else matrix[rows]
    values = np.asarray(some.toarray() if issparse(some) else some)
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise SetupError(
            f"obsm[{key!r}] has {values.ndim} dimensions and type {values.dtype}. Features of cells are real numbers, (n_cells, d)."
        )
    return values.astype(np.float32)


def _sparse(matrix: NDArray | csr_matrix | csc_matrix) -> csr_matrix:
    """A matrix as CSR of numbers that SciPy computes with: in this machine's byte order, and not of half precision."""
    from scipy.sparse import csr_matrix, issparse

    if not issparse(matrix):
        return csr_matrix(_native(np.asarray(matrix)))
    rows = csr_matrix(matrix)
    arrays = rows.data, rows.indices, rows.indptr
    native = tuple(_native(array) for array in arrays)
    if all(new is old for new, old in zip(native, arrays, strict=True)):
        return rows
    return csr_matrix(native, shape=rows.shape)


def _native(array: NDArray) -> NDArray:
    kind = np.dtype(np.float32) if array.dtype.kind == "f" and array.dtype.itemsize == 2 else array.dtype
    return array.astype(kind.newbyteorder("="), copy=False)


def _computed(lazy: da.Array) -> csr_matrix:
    """A Dask array as CSR; each chunk is made sparse as soon as it is computed."""
    import dask.array as da
    from scipy.sparse import csr_matrix

    return csr_matrix(da.map_blocks(_sparse, lazy, dtype=_native(np.empty(0, lazy.dtype)).dtype).compute())


def _slabs(rows: NDArray[np.int64], n_genes: int) -> Iterator[NDArray[np.int64]]:
    """Ascending rows cut where many are skipped, and where a slab would be too large if it were dense."""
    most = max(1, DENSE // max(1, n_genes))
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > GAP) + 1):
        start = 0
        while start < len(run):
            stop = int(np.searchsorted(run, run[start] + most))
            yield run[start:stop]
            start = stop
