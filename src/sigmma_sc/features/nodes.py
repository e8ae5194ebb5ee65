"""What is made of the counts: PCA of a cell's, a tile's gene vector, or an embedding the user brings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.counts import counts_by_rows, embedding_rows, take_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.tissue.setup import Setup
    from sigmma_sc.tissue.tiling import Tiles

N_COMPONENTS = 50
MAX_FIT_CELLS = 100_000
"""Cells drawn to fit the PCA: more add time and memory, not directions."""

CHUNK = 50_000

DENSITY_NEIGHBOURS = 8
"""Nearest cells whose mean distance tells how dense a cell's surroundings are."""


class CountsPCA:
    """PCA of log-normalised counts, fitted on training cells and applied to any.

    Attributes
    ----------
    genes
        Genes in order.
    target_sum
        Counts per cell after normalisation: the median of the training cells.
    mean, components
        ``(n_genes,)`` and ``(n_components, n_genes)``.
    totals
        Whether log1p of a cell's total counts stands beside its components.
    """

    def __init__(self, genes: list[str], target_sum: float, mean: NDArray, components: NDArray, totals: bool):
        self.genes, self.target_sum, self.totals = genes, target_sum, totals
        # One memory order, so that a loaded model multiplies in the same order and gives the same bits.
        self.mean, self.components = np.ascontiguousarray(mean), np.ascontiguousarray(components)

    @classmethod
    def fit(
        cls, parts: Sequence[tuple[AnnData, NDArray[np.int64]]], layer: str | None, seed: int, totals: bool
    ) -> CountsPCA:
        """Fit on some rows of tables of raw counts (as scanpy's normalize_total and log1p, scikit-learn's PCA)."""
        from scipy.sparse import vstack
        from sklearn.decomposition import PCA

        genes = list(map(str, parts[0][0].var_names))
        share = min(1.0, MAX_FIT_CELLS / max(1, sum(len(rows) for _, rows in parts)))
        rng = np.random.default_rng(seed)
        counts = []
        for table, rows in parts:
            some = np.sort(rng.choice(rows, int(np.ceil(share * len(rows))), replace=False))
            where = positions(table, genes)
            counts += [part[:, where] for _, part in counts_of(table, some, layer)]
        counts = vstack(counts, format="csr")
        sums = np.asarray(counts.sum(axis=1)).ravel()
        if not (sums > 0).any():
            raise SetupError("No training cell has any count. Check the layer of raw counts.")
        target_sum = float(np.median(sums[sums > 0]))
        logs = log_normalise(counts, target_sum)
        n_components = min(N_COMPONENTS, min(logs.shape) - 1)
        # The covariance of a targeted panel is small; of a whole transcriptome it is not.
        solver = "covariance_eigh" if logs.shape[1] <= 4000 else "arpack"
        pca = PCA(n_components, svd_solver=solver, random_state=seed).fit(logs)
        return cls(genes, target_sum, pca.mean_.ravel(), pca.components_, totals)

    def transform(self, table: AnnData, rows: NDArray[np.int64], layer: str | None) -> NDArray[np.float32]:
        """Components, and the total if asked for, ``(n, n_components + 1)`` of some rows; genes are matched by name."""
        where = positions(table, self.genes)
        n = len(self.components)
        out = np.empty((len(rows), n + self.totals), np.float32)
        offset = self.mean @ self.components.T
        for some, counts in counts_of(table, rows, layer):
            counts = counts[:, where]
            out[some, :n] = log_normalise(counts, self.target_sum) @ self.components.T - offset
            if self.totals:
                out[some, n] = log_totals(counts)
        return out


class GeneVectors:
    """Pooled counts of a tile, log-normalised: the tile without its cell graph (paper, section 6.4).

    Attributes
    ----------
    genes
        Genes in order.
    target_sum
        Counts per tile after normalisation: the median of the training tiles.
    totals
        Whether log1p of the tile's total counts and of its number of cells stand beside its genes.
    """

    def __init__(self, genes: list[str], target_sum: float, totals: bool):
        self.genes, self.target_sum, self.totals = genes, target_sum, totals

    @classmethod
    def fit(
        cls, parts: Sequence[tuple[AnnData, NDArray[np.int64], Tiles]], layer: str | None, totals: bool
    ) -> GeneVectors:
        """Fit on tiles of tables of raw counts, each with its slide's rows."""
        genes = list(map(str, parts[0][0].var_names))
        pooled = [pooled_counts(table, rows, tiles, genes, layer) for table, rows, tiles in parts]
        sums = np.concatenate([np.asarray(counts.sum(axis=1)).ravel() for counts in pooled])
        if not (sums > 0).any():
            raise SetupError("No training tile has any count. Check the layer of raw counts.")
        return cls(genes, float(np.median(sums[sums > 0])), totals)

    def transform(self, table: AnnData, rows: NDArray[np.int64], tiles: Tiles, layer: str | None) -> csr_matrix:
        """Vectors ``(n_tiles, n_genes)``, or two more, float32, of tiles of the slide that has these rows."""
        from scipy.sparse import csr_matrix, hstack

        counts = pooled_counts(table, rows, tiles, self.genes, layer)
        logs = log_normalise(counts, self.target_sum)
        if not self.totals:
            return logs
        beside = np.column_stack([log_totals(counts), np.log1p(tiles.n_cells)]).astype(np.float32)
        return hstack([logs, csr_matrix(beside)], format="csr")


def pooled_counts(
    table: AnnData, rows: NDArray[np.int64], tiles: Tiles, genes: list[str], layer: str | None
) -> csr_matrix:
    """Raw counts summed over each tile's cells, ``(n_tiles, n_genes)`` float32."""
    from scipy.sparse import csr_matrix

    ones = np.ones(len(tiles.cells), np.float32)
    member = csr_matrix((ones, tiles.cells, tiles.indptr), shape=(len(tiles), len(rows)))
    where = positions(table, genes)
    empty = csr_matrix((len(tiles), len(genes)), dtype=np.float32)
    return sum((member[:, some] @ counts[:, where] for some, counts in counts_of(table, rows, layer)), empty).tocsr()


def positions(table: AnnData, genes: list[str]) -> NDArray[np.int64]:
    """Columns of a table that hold ``genes``, matched by name."""
    where = table.var_names.get_indexer(genes)
    if (where < 0).any():
        missing = [gene for gene, k in zip(genes, where, strict=True) if k < 0]
        raise SetupError(
            f"{len(missing)} of {len(genes)} genes the model is trained on are missing, e.g. {', '.join(missing[:5])}. "
            "Bring the same panel, or train with features_key=… on an embedding that all slides share."
        )
    return where


def counts_of(table: AnnData, rows: NDArray[np.int64], layer: str | None) -> Iterator[tuple[slice, csr_matrix]]:
    """Raw counts of some ascending rows, some at a time, whether the table holds them in memory, in a file or lazily.

    Yields
    ------
    some
        Which of ``rows``.
    counts
        Theirs, ``(n, n_genes)`` float32.

    Raises
    ------
    SetupError
        The values are no counts: negative, or not whole.
    """
    matrix = counts_by_rows(table, layer)
    for start in range(0, len(rows), CHUNK):
        some = slice(start, min(start + CHUNK, len(rows)))
        counts = take_rows(matrix, rows[some]).astype(np.float32)
        few = counts.data[:100_000]
        if len(few) and (few.min() < 0 or not np.array_equal(few, np.round(few))):
            where = "X" if layer is None else f"layers[{layer!r}]"
            raise SetupError(
                f"{where} holds {few[few != np.round(few)][:1] or few.min()} where raw counts are needed: it seems normalised "
                "already. Pass layer=… for the raw counts, or features_key=… for an embedding."
            )
        yield some, counts


def log_normalise(counts, target_sum: float):
    """log1p of counts scaled to ``target_sum`` a cell; a cell without counts stays zero."""
    totals = np.asarray(counts.sum(axis=1)).ravel()
    scale = target_sum / np.maximum(totals, 1e-12)
    logs = counts.copy()
    logs.data = np.log1p(logs.data * np.repeat(scale, np.diff(logs.indptr)).astype(np.float32))
    return logs


def log_totals(counts: csr_matrix) -> NDArray[np.float32]:
    """log1p of each row's total, ``(n,)``."""
    return np.log1p(np.asarray(counts.sum(axis=1)).ravel()).astype(np.float32)


def log_distance(xy: NDArray[np.float64]) -> NDArray[np.float32]:
    """log1p of each cell's mean distance to its nearest cells, ``(n,)``, from positions ``(n, 2)`` in µm."""
    from scipy.spatial import cKDTree

    n = min(DENSITY_NEIGHBOURS, len(xy) - 1)
    if n < 1:
        return np.zeros(len(xy), np.float32)
    distance, _ = cKDTree(xy).query(xy, n + 1)
    return np.log1p(distance[:, 1:].mean(axis=1)).astype(np.float32)


def embedding_of(table: AnnData, rows: NDArray[np.int64], setup: Setup) -> NDArray[np.float32]:
    """Rows of ``obsm[features_key]`` as float32.

    Raises
    ------
    SetupError
        A row is not finite.
    """
    values = embedding_rows(table, setup.features_key, rows)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise SetupError(
            f"obsm[{setup.features_key!r}] has {int(bad.sum()):,} rows that are not finite, e.g. cell "
            f"{table.obs_names[rows[bad][0]]!r}. Fill or remove these cells first."
        )
    return values
