"""Names of niches from marker genes or cell types."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc._checks import is_number, require_key, require_list, require_stored_name
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.counts import counts_of, row_totals
from sigmma_sc.tissue.table import require_own, require_table

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

UNCLEAR = "unclear"
"""Name of a niche that no set of markers explains."""

PSEUDOCOUNT = 0.02
"""Added to both means of a fold change (our choice): a gene that hardly any cell expresses has a fold change near one."""

logger = logging.getLogger(__name__)


def name_niches(
    adata: AnnData,
    markers: Mapping[str, Sequence[str]],
    scale: str = "meso",
    key: str = "sigmma_niche",
    groupby: str | None = None,
    layer: str | None = None,
    min_log2fc: float = 0.5,
    min_margin: float = 0.25,
    key_added: str | None = None,
) -> pd.DataFrame:
    """Name each niche after the set of markers with the highest log fold change against all other cells.

    The score of a set is the mean of log2((a + 0.02) / (b + 0.02)) over its markers. For a gene, a is the mean of its counts
    in the niche, and b in all other cells with a niche. The counts of each cell are first scaled to their median total. For
    a cell type, a and b are its shares of the cells.

    A niche is ``"unclear"`` if its best score is below ``min_log2fc``, or less than ``min_margin`` above the next.
    Several niches can have one name.

    Parameters
    ----------
    adata
        Table with the labels of :func:`sigmma_sc.tl.niches`. Its values are not changed.
    markers
        Marker genes of each name, or categories of ``groupby``. Genes that the panel lacks are left out and logged.
    scale
        Scale of the niches.
    key
        Prefix of the columns of niches, ``key_added`` of :func:`sigmma_sc.tl.niches`.
    groupby
        Column of ``obs`` with cell types, if ``markers`` hold these in place of genes.
    layer
        Layer of raw counts; ``None`` for ``X``.
    min_log2fc
        Least score of a name (our choice). 0.5 is 1.4 times the other cells.
    min_margin
        Least distance to the second score (our choice).
    key_added
        Column of ``obs`` to write, by default ``f"{key}_{scale}_name"``. ``uns["sigmma"]["named"]`` holds the returned
        table and the thresholds under it.

    Returns
    -------
    One row a niche: its ``name``, ``n_cells``, the ``best`` set with its ``log2fc``, and the ``runner_up`` with its
    ``runner_up_log2fc``, NaN with a single set.

    Raises
    ------
    ExistsError
        The column exists, and was not written by this function.
    MissingKeyError
        There are no niches of this scale, or no such column or layer.
    SetupError
        No marker of a name is in the table, a name is ``"unclear"``, a threshold is invalid, the values are not counts, or
        there are fewer than two niches.

    See Also
    --------
    sigmma_sc.tl.rank_niche_genes : Find genes of each niche without a list.
    sigmma_sc.pl.niches : Map of the niches.

    Examples
    --------
    >>> markers = {"tumour": ["EPCAM", "KRT19"], "lymphoid": ["CD3D", "IL7R"], "acini": ["PRSS1", "AMY2A"]}
    >>> named = sg.tl.name_niches(adata, markers)
    >>> named.columns[:3].tolist()
    ['name', 'n_cells', 'best']
    >>> "tumour" in set(adata.obs["sigmma_niche_meso_name"])
    True
    """
    require_table(adata)
    _require_markers(markers, min_log2fc, min_margin)
    name = f"{key}_{scale}_name" if key_added is None else key_added
    require_stored_name(name, "scale" if key_added is None else "key_added")
    require_own(adata, "named", [name])
    column = f"{key}_{scale}"
    require_key(column, adata.obs, "column", "Call sg.tl.niches(adata) first.")
    if groupby is None:
        known = adata.var_names
        if layer is not None:
            require_key(layer, adata.layers, "layer")
    else:
        require_key(groupby, adata.obs, "groupby")
        known = pd.Index(adata.obs[groupby].dropna().astype(str).unique())
    sets = _present(markers, known, "genes of the table" if groupby is None else f"categories of obs[{groupby!r}]")
    rows = np.flatnonzero(adata.obs[column].notna())
    niches = adata.obs[column].iloc[rows].astype("category").cat.remove_unused_categories()
    if len(niches.cat.categories) < 2:
        raise SetupError(f"obs[{column!r}] names {len(niches.cat.categories)} niches; a fold change needs two or more.")
    features = list(dict.fromkeys(one for group in sets.values() for one in group))
    if groupby is None:
        values = _scaled_counts(adata, rows, features, layer)
    else:
        values = (adata.obs[groupby].iloc[rows].astype(str).to_numpy()[:, None] == np.array(features)).astype(float)
    changes = _log2_fold_changes(values, niches.cat.codes.to_numpy())
    scores = pd.DataFrame(index=pd.Index(niches.cat.categories.astype(str), name="niche"))
    for group, own in sets.items():
        scores[group] = changes[:, [features.index(one) for one in own]].mean(axis=1)
    table = _named(scores, np.bincount(niches.cat.codes), min_log2fc, min_margin)
    of_niche = dict(zip(niches.cat.categories, table["name"], strict=True))
    adata.obs[name] = pd.Categorical(adata.obs[column].astype(object).map(of_niche), [*sets, UNCLEAR])
    record = dict(adata.uns.get(_keys.UNS, {}))
    told = {"niches": column, "min_log2fc": float(min_log2fc), "min_margin": float(min_margin), "table": table.copy()}
    record["named"] = {**record.get("named", {}), name: told}
    adata.uns[_keys.UNS] = record
    return table


def _require_markers(markers: Mapping[str, Sequence[str]], min_log2fc: float, min_margin: float) -> None:
    if not isinstance(markers, Mapping) or not markers:
        raise SetupError(f"markers={markers!r} must be a dict of lists by name, such as {{'islets': ['INS', 'GCG']}}.")
    for name, group in markers.items():
        if not isinstance(name, str) or not name or name == UNCLEAR:
            raise SetupError(f"markers: {name!r} is no name of a niche. Pass text other than {UNCLEAR!r}.")
        require_list(group, f"markers[{name!r}]")
    for what, value in (("min_log2fc", min_log2fc), ("min_margin", min_margin)):
        if not is_number(value) or not 0 <= value < np.inf:
            raise SetupError(f"{what}={value!r} must be a number of 0 or more.")


def _present(markers: Mapping[str, Sequence[str]], known: pd.Index, what: str) -> dict[str, list[str]]:
    """Markers that the table has, by name."""
    sets = {}
    absent = []
    for name, group in markers.items():
        sets[name] = [one for one in group if one in known]
        absent += [one for one in group if one not in known]
        if not sets[name]:
            raise SetupError(
                f"markers[{name!r}]: none of {', '.join(group)} is among the {len(known):,} {what}. Remove it."
            )
    if absent:
        logger.warning("Markers left out, not among the %d %s: %s", len(known), what, ", ".join(absent))
    return sets


def _scaled_counts(adata: AnnData, rows: NDArray, genes: list[str], layer: str | None) -> NDArray[np.float64]:
    """Counts of genes, ``(n_cells, n_genes)``, each cell scaled to the median total; zero for a cell without counts."""
    places = adata.var_names.get_indexer(genes)
    parts = []
    totals = []
    for _, part in counts_of(adata, rows, layer):
        totals.append(row_totals(part))
        parts.append(part[:, places].toarray().astype(float))
    total = np.concatenate(totals)
    some = total > 0
    scale = np.divide(np.median(total[some]) if some.any() else 1.0, total, out=np.zeros_like(total), where=some)
    return np.vstack(parts) * scale[:, None]


def _log2_fold_changes(values: NDArray[np.float64], codes: NDArray) -> NDArray[np.float64]:
    """Of each niche against all other cells, ``(n_niches, n_features)``."""
    member = codes[:, None] == np.arange(codes.max() + 1)
    sizes = member.sum(axis=0)[:, None]
    sums = member.T.astype(float) @ values
    others = (values.sum(axis=0) - sums) / (len(values) - sizes)
    # A sum that differs from all cells' by rounding alone may be below zero.
    return np.log2((sums / sizes + PSEUDOCOUNT) / (np.maximum(others, 0) + PSEUDOCOUNT))


def _named(scores: pd.DataFrame, sizes: NDArray, min_log2fc: float, min_margin: float) -> pd.DataFrame:
    """Name of each niche from the scores of all names."""
    order = np.argsort(-scores.to_numpy(), axis=1, kind="stable")
    ranked = np.take_along_axis(scores.to_numpy(), order, axis=1)
    names = scores.columns.to_numpy()
    several = len(names) > 1
    second = ranked[:, 1] if several else np.full(len(scores), np.nan)
    clear = (ranked[:, 0] >= min_log2fc) & ~(ranked[:, 0] - second < min_margin)
    best = names[order[:, 0]]
    columns = {
        "name": np.where(clear, best, UNCLEAR),
        "n_cells": sizes,
        "best": best,
        "log2fc": ranked[:, 0],
        "runner_up": names[order[:, 1]] if several else "",
        "runner_up_log2fc": second,
    }
    return pd.DataFrame(columns, index=scores.index)
