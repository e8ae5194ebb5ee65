"""Known niches for other cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_list, require_stored_name
from sigmma_sc.errors import ExistsError, SetupError
from sigmma_sc.niches.prototypes import NichePrototypes
from sigmma_sc.tissue.table import require_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def assign_niches(
    adata: AnnData,
    prototypes: NichePrototypes,
    scales: Sequence[str] | None = None,
    key_added: str = "sigmma_niche",
    sample_key: str | None = None,
    overwrite: bool = False,
) -> None:
    """Give cells the niches of other cells that were embedded by the same model, without clustering anew.

    A cell gets the niche with the nearest centre. It is ``"unlike any"`` if it is farther from it than nearly all cells that
    the niche was found on; :class:`sigmma_sc.NichePrototypes` sets the limit.

    Parameters
    ----------
    adata
        Table with the embeddings of :meth:`sigmma_sc.SIGMMA.write_embeddings`, or under the keys that
        :func:`sigmma_sc.tl.niches` took by ``use_rep``.
    prototypes
        Result of :func:`sigmma_sc.tl.niches`, or ``model.niches``.
    scales
        Names of the scales; ``None`` for all of the prototypes.
    key_added
        Prefix of the columns written, ``obs[f"{key_added}_{scale}"]``. The categories are the niches in their order, then
        ``"unlike any"``. ``obs[f"{key_added}_{scale}_score"]`` is 0 halfway between two niches and 1 on a centre; missing for
        ``"unlike any"``. Both are missing for cells without an embedding.
    sample_key
        Column of ``obs`` with the slide of each cell, where the niches were found with ``sample_key``.
    overwrite
        Replace columns of these names, and remove the confidence of niches that were replaced.

    Raises
    ------
    MissingKeyError
        The table has no embeddings or no such column, or the prototypes lack a scale.
    SetupError
        The embeddings have another width than the prototypes, or ``sample_key`` is given or missing against how the niches
        were found.
    ExistsError
        A column exists already; nothing is written then.

    See Also
    --------
    sigmma_sc.tl.niches : Find niches.
    sigmma_sc.tl.transfer_labels : Any labels, by nearest cells.

    Examples
    --------
    >>> x = {"meso": adata.obsm["X_sigmma_meso"][::2]}
    >>> known = sg.NichePrototypes.fit(x, {"meso": adata.obs["niche"].iloc[::2]})
    >>> others = adata[1::2].copy()
    >>> sg.tl.assign_niches(others, known, key_added="known")
    >>> others.obs["known_meso"].cat.categories[-2:].tolist()
    ['exocrine_inflamed', 'unlike any']
    >>> bool((others.obs["known_meso"].astype(str) == others.obs["niche"].astype(str)).mean() > 0.5)
    True
    """
    if not isinstance(prototypes, NichePrototypes):
        raise SetupError(
            f"prototypes is a {type(prototypes).__name__}. Pass the result of sg.tl.niches, or model.niches where it is set."
        )
    require_table(adata)
    require_stored_name(key_added, "key_added")
    if scales is not None:
        require_list(scales, "scales")
    chosen = tuple(prototypes.scales) if scales is None else tuple(scales)
    prototypes.require_samples(sample_key is not None)
    if sample_key is not None:
        require_key(sample_key, adata.obs, "sample_key")
    columns = []
    keys = {}
    for scale in chosen:
        require_key(scale, prototypes.scales, "scale")
        keys[scale] = prototypes.scales[scale].key or _keys.obsm_cells(scale)
        require_key(keys[scale], adata.obsm, "embedding", "Embed the cells as those that the niches were found on.")
        columns += [f"{key_added}_{scale}", f"{key_added}_{scale}_score", f"{key_added}_{scale}_confidence"]
    existing = [name for name in columns if name in adata.obs]
    if existing and not overwrite:
        raise ExistsError(
            f"obs has {', '.join(map(repr, existing))} already. Pass another key_added=…, or overwrite=True to replace them."
        )
    samples = None if sample_key is None else adata.obs[sample_key]
    found = {s: prototypes.assign(s, np.asarray(adata.obsm[keys[s]]), samples) for s in chosen}
    for scale, (niche, score) in found.items():
        adata.obs[f"{key_added}_{scale}"] = niche
        adata.obs[f"{key_added}_{scale}_score"] = score
        if f"{key_added}_{scale}_confidence" in adata.obs:  # of niches that were replaced
            del adata.obs[f"{key_added}_{scale}_confidence"]
