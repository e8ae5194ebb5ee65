"""Niches: stable Leiden clusters of the cell embeddings of each scale (paper, section 6.5)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_list, require_positive, require_stored_name, require_whole
from sigmma_sc._progress import Display
from sigmma_sc.config import LARGEST_SEED
from sigmma_sc.errors import ExistsError, SetupError
from sigmma_sc.tissue.table import require_own, require_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy import sparse

    from sigmma_sc.niches.neighbours import NeighbourGraph
    from sigmma_sc.niches.prototypes import NichePrototypes

logger = logging.getLogger("sigmma_sc")

N_DRAWN = 10_000
"""Cells of which a median is taken, to see whether all are in one place."""

UNSTABLE = 0.5
"""Stability below which niches are doubted. Our choice: on noise it was 0.15 to 0.3, on tissue 0.8 or more."""


class _Found(NamedTuple):
    """Niches of one scale."""

    labels: NDArray[np.int64]  # (n,) of all cells, -1 without an embedding
    confidence: NDArray[np.float32]  # (n,), NaN without an embedding
    resolution: float
    table: pd.DataFrame  # of the resolutions compared


def niches(
    adata: AnnData,
    scales: Sequence[str] = _keys.SCALES,
    resolution: float | str = "auto",
    n_neighbors: int = 15,
    key_added: str = "sigmma_niche",
    seed: int = 0,
    *,
    n_runs: int = 5,
    min_size: int = 1,
    nested: bool = False,
    use_rep: Mapping[str, str | Sequence[str]] | None = None,
    sample_key: str | None = None,
    keep_graph: bool = False,
) -> NichePrototypes:
    """Cluster the cells at each scale by a consensus of many runs of Leiden on one graph of nearest neighbours.

    The graph has UMAP's weights, as in scanpy. Up to 40,000 cells neighbours are exact, beyond that at least 97 % of them
    are the nearest ones. Each run of Leiden [Traag et al. 2019] has another seed and leaves out another fifth of the edges.
    Cells that are together in all runs stay together: Leiden on the graph of these core groups finds the niches of the
    highest modularity [Ovelgönne and Geyer-Schulz 2012]. The same seed gives the same niches, to the bit. Beyond 40,000
    cells the runs cluster groups of about ten cells that Leiden finds first. A last iteration of Leiden then moves single
    cells where modularity rises.

    Parameters
    ----------
    adata
        Table with the embeddings of :meth:`sigmma_sc.SIGMMA.write_embeddings`.
    scales
        Names of the scales to cluster, fine to coarse if they are ``nested``.
    resolution
        Resolution of Leiden; higher values give more niches. ``"auto"`` compares 0.1, 0.2, 0.3, 0.5, 0.7, 1 and 1.5, and
        logs its choice: the highest of those whose runs agree nearly best, within an adjusted Rand index of 0.05, after
        chooseR [Patterson-Cross et al. 2021]. A single niche does not count. For each resolution, these runs cluster small
        groups of cells, which saves time.
    n_neighbors
        Number of neighbours of each cell in the graph that Leiden clusters, itself included.
    key_added
        Prefix of the columns written.
    seed
        Seed of the neighbour search and of Leiden.
    n_runs
        Number of runs of Leiden at each scale, 2 or more. Time grows with it.
    min_size
        Cells of a niche at least. A smaller one joins the niche with which it shares most weight of the graph. One without a
        link to any other stays, which is logged.
    nested
        Whether niches of each scale are whole niches of the scale before it: a macro niche holds whole meso niches, a meso
        niche whole micro niches. Leiden then clusters the graph of the finer niches with the edges of the coarser scale.
        The finest scale is as without.
    use_rep
        Keys of ``obsm`` for each scale, instead of ``X_sigmma_<scale>``. Several keys are embeddings by several models,
        whose graphs are averaged; a cell without one of them gets no niche.
    sample_key
        Column of ``obs``: embeddings are standardised within each sample before they are clustered. For slides whose
        staining or chemistry differs; page *Cohorts* says what it costs.
    keep_graph
        Keep the graph of each scale for scanpy, as ``sc.tl.umap(adata, neighbors_key="sigmma_niche_meso_neighbors")`` and
        ``sc.tl.leiden`` take it. Each takes about 300 bytes a cell, in memory and in a store, half as much again as an
        embedding of 128 numbers. Of several embeddings of a scale the graph of the first is kept. UMAP takes no cells without
        an embedding: pass it ``adata[adata.obs["sigmma_covered"]]``.

    Returns
    -------
    The niches as prototypes, for :func:`sigmma_sc.tl.assign_niches` and ``model.niches``, in the first embedding of each
    scale. They are also in ``uns["sigmma"][f"{key_added}_prototypes"]``. ``obs[f"{key_added}_{scale}"]`` are the niches, ``"0"`` the largest, missing for cells without an embedding.
    ``obs[f"{key_added}_{scale}_confidence"]``, float32, is the share of runs in which a cell keeps its niche
    [Dudoit and Fridlyand 2003]; NaN without an embedding. ``uns["sigmma"]["niches"][f"{key_added}_{scale}"]`` has the
    ``resolution``, ``n_runs`` and the table of the resolutions compared: ``n_niches``, ``stability`` (the mean adjusted Rand
    index of two runs) and which was ``chosen``. With ``keep_graph``, ``uns[f"{key_added}_{scale}_neighbors"]`` names the
    matrices in ``obsp``, as scanpy's ``neighbors(key_added=…)`` does; cells without an embedding have no neighbours in them.

    Raises
    ------
    ExistsError
        A column of these names was not written by this function.
    MissingKeyError
        The table has no embeddings of a scale, ``use_rep`` names none for it, or there is no column ``sample_key``.
    SetupError
        An argument is out of range; fewer than two cells, or than ``min_size``, have an embedding; or a sample has fewer
        than 50 of them.

    See Also
    --------
    sigmma_sc.tl.assign_niches : The same niches for other cells.
    sigmma_sc.tl.rank_niche_genes : Genes of each niche.
    sigmma_sc.pl.niches : Map of the niches.
    sigmma_sc.metrics.niche_agreement : Agreement with known niches.

    Examples
    --------
    >>> prototypes = sg.tl.niches(adata, scales=["meso"], resolution=0.5)
    >>> adata.obs["sigmma_niche_meso"].cat.categories[:2].tolist()
    ['0', '1']
    >>> adata.uns["sigmma"]["niches"]["sigmma_niche_meso"]["resolution"]
    0.5
    >>> use_rep = {"meso": ["X_sigmma_meso", "X_sigmma_micro"]}
    >>> joint = sg.tl.niches(adata, scales=["meso"], use_rep=use_rep, key_added="joint")
    """
    from sigmma_sc.niches.neighbours import neighbour_graph
    from sigmma_sc.niches.prototypes import fit_prototypes
    from sigmma_sc.niches.resolution import GRID

    if resolution != "auto":
        if isinstance(resolution, str):
            raise SetupError(f"resolution={resolution!r} must be a positive number or 'auto'.")
        require_positive(resolution, "resolution")
    require_table(adata)
    require_list(scales, "scales")
    require_stored_name(key_added, "key_added")
    require_whole(n_neighbors, "n_neighbors", 2)
    require_whole(seed, "seed", 0, most=LARGEST_SEED)
    require_whole(n_runs, "n_runs", 2)
    require_whole(min_size, "min_size")
    known = [scale for scale in scales if scale in _keys.SCALES]
    if nested and known != sorted(known, key=_keys.SCALES.index):
        raise SetupError(
            f"scales={scales!r} must go from fine to coarse, such as {sorted(known, key=_keys.SCALES.index)}, to nest."
        )
    keys = _keys_of(adata, scales, use_rep)
    require_own(adata, "niches", [f"{key_added}_{scale}" for scale in scales], ("", "_confidence"))
    if keep_graph:
        _require_own_graphs(adata, [f"{key_added}_{scale}" for scale in scales])
    for scale in scales:
        _require_cells(adata, keys[scale], min_size)
    if sample_key is not None:
        require_key(sample_key, adata.obs, "column of obs")
    embeddings = {}
    for scale in scales:
        embeddings[scale] = [_embedding(adata, key, sample_key) for key in keys[scale]]
        for key, embedding in zip(keys[scale], embeddings[scale], strict=True):
            _require_places(embedding[_finite(embeddings[scale])], key, n_neighbors)
    resolutions = GRID if resolution == "auto" else (float(resolution),)
    found: dict[str, _Found] = {}
    kept: dict[str, NeighbourGraph] = {}
    finer = None
    with Display("Niches", len(scales), "scales") as display:
        for scale in scales:
            covered = _finite(embeddings[scale])
            graphs = [neighbour_graph(embedding[covered], n_neighbors, seed) for embedding in embeddings[scale]]
            if keep_graph:
                kept[scale] = graphs[0].among(covered)
            found[scale] = _cluster(_mean(graphs), covered, finer, resolutions, n_runs, min_size, seed)
            finer = found[scale].labels if nested else None
            display.advance()
    if resolution == "auto":
        for scale, one in found.items():
            _log_choice(scale, one)
    _write(adata, found, n_runs, key_added)
    for scale, graph in kept.items():
        graph.write(adata, _graph_key(key_added, scale), keys[scale][0] if sample_key is None else None)
    first = {scale: own[0] for scale, own in embeddings.items()}
    named = {scale: keys[scale][0] for scale in scales}
    return fit_prototypes(adata, first, key_added, named, by_sample=sample_key is not None, seed=seed)


def _keys_of(
    adata: AnnData, scales: Sequence[str], use_rep: Mapping[str, str | Sequence[str]] | None
) -> dict[str, list[str]]:
    """Keys of ``obsm`` of each scale."""
    if use_rep is not None and not isinstance(use_rep, Mapping):
        raise SetupError(
            f"use_rep={use_rep!r} must be a dict of keys of obsm by scale, such as {{'meso': 'X_sigmma_meso'}}."
        )
    keys = {}
    for scale in scales:
        if use_rep is None:
            keys[scale] = [_keys.obsm_cells(scale)]
        else:
            require_key(scale, use_rep, "scale", "Give its keys of obsm in use_rep, or change scales.")
            named = use_rep[scale]
            if not isinstance(named, (str, list, tuple)) or not named:
                raise SetupError(
                    f"use_rep[{scale!r}]={named!r} names no embedding. Give a key of obsm, or a list of them."
                )
            keys[scale] = [named] if isinstance(named, str) else list(named)
        for key in keys[scale]:
            require_key(key, adata.obsm, "embedding", "Call model.write_embeddings() first.")
            _require_matrix(adata, key)
    return keys


def _require_matrix(adata: AnnData, key: str) -> None:
    """Raise :class:`SetupError` unless ``obsm[key]`` is a matrix of real numbers."""
    matrix = np.asarray(adata.obsm[key])
    if matrix.ndim != 2 or matrix.dtype.kind not in "biuf":
        raise SetupError(
            f"obsm[{key!r}] has shape {matrix.shape} and type {matrix.dtype}. Niches need a matrix of numbers, one row a cell."
        )


def _require_cells(adata: AnnData, keys: Sequence[str], min_size: int) -> None:
    n = int(_finite([np.asarray(adata.obsm[key]) for key in keys]).sum())
    shown = ", ".join(f"obsm[{key!r}]" for key in keys)
    if n < 2:
        raise SetupError(
            f"Niches need 2 cells with an embedding; {shown} has {n}. Check whether "
            "the cells are under the image: sg.pp.check_registration(sdata)."
        )
    if n < min_size:
        raise SetupError(f"min_size={min_size} is more than the {n} cells with an embedding in {shown}. Choose less.")


def _embedding(adata: AnnData, key: str, sample_key: str | None) -> NDArray:
    """Embedding of all cells, standardised within samples if asked for; NaN where a cell has none."""
    from sigmma_sc.niches.standardise import standardise

    embedding = np.asarray(adata.obsm[key])
    return embedding if sample_key is None else standardise(embedding, adata.obs[sample_key])


def _require_places(cells: NDArray, key: str, n_neighbors: int) -> None:
    """Raise :class:`SetupError` where all cells but a few have one embedding, as where each sample is constant.

    Neighbours of equal cells say nothing, and Leiden would cut one place into hundreds of niches.
    """
    # Where most cells are in one place, the median of a part of them is.
    drawn = cells[np.random.default_rng(0).permutation(len(cells))[:N_DRAWN]]
    n_apart = int((cells != np.median(drawn, axis=0)).any(axis=1).sum())
    if n_apart < n_neighbors < len(cells):
        raise SetupError(
            f"obsm[{key!r}] is the same for all but {n_apart} of {len(cells)} cells, so there is nothing to cluster. Embed the "
            "cells again."
        )


def _finite(embeddings: Sequence[NDArray]) -> NDArray[np.bool_]:
    """Which cells have all the embeddings."""
    return np.logical_and.reduce([np.isfinite(embedding).all(axis=1) for embedding in embeddings])


def _require_own_graphs(adata: AnnData, columns: Sequence[str]) -> None:
    """Raise :class:`ExistsError` for keys of graphs in ``uns`` that belong to no niches of ours."""
    record = adata.uns.get(_keys.UNS, {}).get("niches", {})
    for column in columns:
        own = adata.uns.get(f"{column}_neighbors")
        for where, name in (("uns", ""), ("obsp", "_distances"), ("obsp", "_connectivities")):
            key = f"{column}_neighbors{name}"
            # A graph of ours is named by its entry in uns.
            if key in getattr(adata, where) and (own is None or column not in record):
                raise ExistsError(
                    f"{where}[{key!r}] exists, and was not written by this function. Pass another key_added=…, or remove it."
                )


def _graph_key(key_added: str, scale: str) -> str:
    """Key of ``uns`` of the graph of a scale."""
    return f"{key_added}_{scale}_neighbors"


def _mean(graphs: Sequence[NeighbourGraph]) -> sparse.csr_matrix:
    """Mean of the weights of the neighbour graphs of embeddings of the same cells."""
    first, *others = graphs
    total = first.connectivities
    for other in others:
        total = total + other.connectivities
    return total / len(graphs)


def _cluster(
    connectivities: sparse.csr_matrix,
    covered: NDArray,
    finer: NDArray | None,
    resolutions: tuple[float, ...],
    n_runs: int,
    min_size: int,
    seed: int,
) -> _Found:
    """Niches of one scale, which hold whole ``finer`` niches if these are given."""
    from sigmma_sc.niches.consensus import by_size, confidence, merge_small
    from sigmma_sc.niches.leiden import WeightedGraph
    from sigmma_sc.niches.resolution import compare_in_groups

    graph = WeightedGraph.from_connectivities(connectivities)
    node = np.arange(covered.sum())
    if finer is not None:
        node = _nodes(finer[covered])
        graph = graph.contract(node)
    sizes = np.bincount(node)
    best, table = compare_in_groups(graph, sizes, resolutions, n_runs, seed)
    merged = merge_small(best.labels, sizes, graph, min_size)
    numbered = by_size(merged, sizes)
    table.loc[table["chosen"], "n_niches"] = numbered.max() + 1
    if (n_small := int((np.bincount(numbered, sizes) < min_size).sum())) > 0:
        logger.warning("%d niches of fewer than %d cells have no link to another niche and stay.", n_small, min_size)
    labels = np.full(len(covered), -1)
    labels[covered] = numbered[node]
    kept = np.full(len(covered), np.nan, np.float32)
    kept[covered] = confidence(numbered, best.runs, sizes)[node]
    chosen = float(table.loc[table["chosen"], "resolution"].iloc[0])
    return _Found(labels, kept, chosen, table)


def _nodes(finer: NDArray) -> NDArray:
    """Finer niche of each cell from 0; a cell without one stands alone."""
    alone = finer < 0
    out = finer.copy()
    out[alone] = finer.max() + 1 + np.arange(alone.sum())
    return np.unique(out, return_inverse=True)[1]


def _log_choice(scale: str, found: _Found) -> None:
    row = found.table[found.table["chosen"]].iloc[0]
    told = scale, found.resolution, row["stability"], row["n_niches"]
    logger.info("%s: resolution %s chosen by stability %.2f, %d niches", *told)
    if row["n_niches"] > 1 and row["stability"] < UNSTABLE:
        logger.warning(
            "%s: at no resolution do two runs agree, at best by an adjusted Rand index of %.2f. These may be no niches.",
            scale, found.table.loc[found.table["n_niches"] > 1, "stability"].max(),
        )  # fmt: skip


def _write(adata: AnnData, found: Mapping[str, _Found], n_runs: int, key_added: str) -> None:
    records = dict(adata.uns.get(_keys.UNS, {}))
    records["niches"] = dict(records.get("niches", {}))
    for scale, one in found.items():
        column = f"{key_added}_{scale}"
        names = [str(k) for k in range(one.labels.max() + 1)]
        adata.obs[column] = pd.Categorical.from_codes(one.labels, names)
        adata.obs[f"{column}_confidence"] = one.confidence
        records["niches"][column] = {"resolution": one.resolution, "n_runs": int(n_runs), "table": one.table}
    adata.uns[_keys.UNS] = records
