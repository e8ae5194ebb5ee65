"""Transfer of labels from the cells of one slide to those of another."""

import numpy as np
import pandas as pd
from anndata import AnnData

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_name, require_stored_name, require_whole
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.table import require_own, require_table


def transfer_labels(
    adata: AnnData,
    reference: AnnData,
    labels: str,
    scale: str = "meso",
    n_neighbors: int = 15,
    key_added: str | None = None,
    use_rep: str | None = None,
) -> None:
    """Transfer labels to cells from their nearest reference cells in the embedding of one scale.

    Both tables must be embedded by the same model. Neighbours vote with the inverse of their distance as weight
    (:class:`sklearn.neighbors.KNeighborsClassifier`). The search is exact and compares every pair. For 100,000 cells against
    100,000 of width 128 it takes two minutes on one core; use a part of a larger reference.

    Parameters
    ----------
    adata
        Table with the embeddings of :meth:`sigmma_sc.SIGMMA.write_embeddings`.
    reference
        Table with such embeddings and with labels; cells without a label are ignored.
    labels
        Column of ``reference.obs``, e.g. ``"sigmma_niche_meso"`` or a pathologist's regions.
    scale
        Scale of the embeddings.
    n_neighbors
        Number of reference cells that vote; all of them if there are fewer.
    key_added
        Column of ``obs`` for the labels, by default ``f"{labels}_transferred"``. ``obs[f"{key_added}_share"]`` is the
        weighted share of neighbours with that label. Both are missing for cells without an embedding.
        ``uns["sigmma"]["transferred"]`` records where the labels come from.
    use_rep
        Key of ``obsm`` of both tables to compare instead of the embedding of ``scale``. With the image embeddings of
        :meth:`sigmma_sc.SIGMMA.get_cell_image_representation` the cells of ``adata`` need no counts.

    Raises
    ------
    ExistsError
        The column exists, and was not written by this function.
    MissingKeyError
        A table has no embeddings, or the reference has no such column.
    SetupError
        The embeddings have different widths, or no reference cell has a label.

    See Also
    --------
    sigmma_sc.tl.map_to_image : Labels for tiles of H&E alone.

    Examples
    --------
    >>> reference, others = adata[::2], adata[1::2].copy()
    >>> sg.tl.transfer_labels(others, reference, labels="niche")
    >>> bool((others.obs["niche_transferred"] == others.obs["niche"]).mean() > 0.5)
    True
    """
    from sklearn.neighbors import KNeighborsClassifier

    require_table(adata)
    require_table(reference, "reference")
    require_whole(n_neighbors, "n_neighbors")
    require_name(labels, "labels")
    name = f"{labels}_transferred" if key_added is None else key_added
    require_stored_name(name, "labels" if key_added is None else "key_added", "Pass another key_added=…")
    require_own(adata, "transferred", [name], ("", "_share"))
    require_key(labels, reference.obs, "column")
    if use_rep is not None:
        require_name(use_rep, "use_rep")
    key = _keys.obsm_cells(scale) if use_rep is None else use_rep
    for table in (adata, reference):
        require_key(key, table.obsm, "embedding", _advice(use_rep))
    x = np.asarray(adata.obsm[key])
    known = np.asarray(reference.obsm[key])
    if x.shape[1] != known.shape[1]:
        raise SetupError(
            f"obsm[{key!r}] has {x.shape[1]} columns, the reference {known.shape[1]}. Embed both with one model."
        )
    given = reference.obs[labels]
    rows = np.flatnonzero(np.isfinite(known).all(axis=1) & given.notna().to_numpy())
    if not len(rows):
        raise SetupError(f"No cell of the reference has both an embedding and a label {labels!r}.")
    voters = KNeighborsClassifier(min(int(n_neighbors), len(rows)), weights="distance")
    voters.fit(known[rows], given.iloc[rows].astype(str).to_numpy())
    covered = np.isfinite(x).all(axis=1)
    found = pd.Series(index=adata.obs_names, dtype=object)
    share = np.full(len(x), np.nan)
    if covered.any():
        votes = voters.predict_proba(x[covered])
        found[covered] = voters.classes_[votes.argmax(axis=1)]
        share[covered] = votes.max(axis=1)
    order = [str(c) for c in given.astype("category").cat.categories]
    adata.obs[name] = pd.Categorical(found, categories=order)
    adata.obs[f"{name}_share"] = share
    record = dict(adata.uns.get(_keys.UNS, {}))
    source = {"labels": labels, "scale": scale} if use_rep is None else {"labels": labels, "use_rep": use_rep}
    record["transferred"] = {**record.get("transferred", {}), name: source}
    adata.uns[_keys.UNS] = record


def _advice(use_rep: str | None) -> str:
    if use_rep is None:
        return "Call model.write_embeddings() first."
    return f"Write such embeddings to obsm[{use_rep!r}] of both tables first."
