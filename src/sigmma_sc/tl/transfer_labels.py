"""Labels of one slide's cells given to those of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_positive
from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from anndata import AnnData


def transfer_labels(
    adata: AnnData,
    reference: AnnData,
    labels: str,
    scale: str = "meso",
    n_neighbors: int = 15,
    key_added: str | None = None,
) -> None:
    """Give cells the label that most of their nearest reference cells have in the embedding of one scale.

    Both have to be embedded by one model. Neighbours are weighed by the inverse of their distance
    (:class:`sklearn.neighbors.KNeighborsClassifier`). The search is exact and compares every pair: 100,000 cells against 100,000 of
    width 128 take some two minutes on one core, 500,000 against as many the better part of an hour; a part of the reference will do.

    Parameters
    ----------
    adata
        Table with the embeddings of :meth:`sigmma_sc.SIGMMA.write_embeddings`.
    reference
        Such a table with labels; cells without one are passed over.
    labels
        Column of ``reference.obs``, e.g. ``"sigmma_niche_meso"`` or a pathologist's regions.
    scale
        Scale of the embeddings.
    n_neighbors
        Reference cells that vote; all of them if there are fewer.
    key_added
        Writes ``obs[key_added]``, by default ``f"{labels}_transferred"``, and ``obs[f"{key_added}_share"]``, the weighted
        share of neighbours that have the label. Missing for cells without an embedding.

    Raises
    ------
    SetupError
        The tables were embedded by models of another width, or no reference cell has a label.

    Examples
    --------
    >>> reference, others = adata[::2], adata[1::2].copy()
    >>> sg.tl.transfer_labels(others, reference, labels="niche")
    >>> bool((others.obs["niche_transferred"] == others.obs["niche"]).mean() > 0.5)
    True
    """
    from sklearn.neighbors import KNeighborsClassifier

    require_positive(n_neighbors, "n_neighbors")
    require_key(labels, reference.obs, "column")
    key = _keys.obsm_cells(scale)
    for table in (adata, reference):
        require_key(key, table.obsm, "embedding", "Call model.write_embeddings() first.")
    x, known = (np.asarray(table.obsm[key]) for table in (adata, reference))
    if x.shape[1] != known.shape[1]:
        raise SetupError(
            f"obsm[{key!r}] has {x.shape[1]} columns, and {known.shape[1]} in the reference. Embed both with one model."
        )
    given = reference.obs[labels]
    rows = np.flatnonzero(np.isfinite(known).all(axis=1) & given.notna().to_numpy())
    if not len(rows):
        raise SetupError(f"No cell of the reference has both an embedding and a label {labels!r}.")
    voters = KNeighborsClassifier(min(int(n_neighbors), len(rows)), weights="distance")
    voters.fit(known[rows], given.iloc[rows].astype(str).to_numpy())
    covered = np.isfinite(x).all(axis=1)
    found, share = pd.Series(index=adata.obs_names, dtype=object), np.full(len(x), np.nan)
    if covered.any():
        votes = voters.predict_proba(x[covered])
        found[covered], share[covered] = voters.classes_[votes.argmax(axis=1)], votes.max(axis=1)
    name = f"{labels}_transferred" if key_added is None else key_added
    order = [str(c) for c in given.astype("category").cat.categories]
    adata.obs[name] = pd.Categorical(found, categories=order)
    adata.obs[f"{name}_share"] = share
