"""How evenly donors mix within niches, beside how well niches are separated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc._checks import require_whole
from sigmma_sc.errors import SetupError
from sigmma_sc.metrics.niches import require_same_index

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

N_CELLS = 5000


def niche_mixing(
    labels: ArrayLike, donors: ArrayLike, embedding: ArrayLike, n_cells: int = N_CELLS, seed: int = 0
) -> pd.DataFrame:
    """How evenly the donors share each niche, and how far the niche is from the others.

    Donors that mix evenly are no success by themselves: random labels mix perfectly, and are not separated at all. A niche
    of one donor may be a batch effect, or a niche that only this donor has.

    Parameters
    ----------
    labels
        Niche of each cell, ``(n,)``. Cells without one, or without a donor or an embedding, are left out.
    donors
        Donor of each cell, ``(n,)``.
    embedding
        Embedding that was clustered, ``(n, d)``.
    n_cells
        Most cells, drawn at random, on which the silhouette is computed.
    seed
        Seed of that draw.

    Returns
    -------
    One row a niche in the order of the categories, then ``"all"``, their mean weighted by cells. ``mixing`` is the entropy of
    the donors in the niche over that of an even mixture: 0 for one donor, 1 for all alike. Each donor has the same weight,
    whatever the number of its cells. ``silhouette`` is the mean silhouette width of the cells [Rousseeuw 1987], from -1 to
    1; NaN for a niche without drawn cells. ``n_cells`` and ``n_donors`` count the cells and the donors.

    Raises
    ------
    SetupError
        The inputs have different lengths, or there are fewer than two niches or two donors.

    See Also
    --------
    sigmma_sc.metrics.niche_agreement : Agreement with known niches.

    Examples
    --------
    >>> found = sg.metrics.niche_mixing(["a", "a", "b", "b"], ["d1", "d2", "d1", "d1"], [[0.0], [0.0], [9.0], [9.0]])
    >>> found[["mixing", "silhouette"]].round(2)
           mixing  silhouette
    niche
    a        0.81         1.0
    b        0.00         1.0
    all      0.41         1.0
    """
    from sklearn.metrics import silhouette_samples

    require_whole(n_cells, "n_cells", 2)
    x = np.asarray(embedding, np.float64)
    require_same_index(labels, donors, "donors")
    niche = pd.Categorical(labels)
    donor = pd.Categorical(donors)
    if x.ndim != 2 or not len(x) == len(niche) == len(donor):
        raise SetupError(
            f"labels ({len(niche)}), donors ({len(donor)}) and embedding {x.shape} must name the same cells."
        )
    known = np.isfinite(x).all(axis=1) & (niche.codes >= 0) & (donor.codes >= 0)
    niche = niche[known].remove_unused_categories()
    donor = donor[known].remove_unused_categories()
    if min(len(niche.categories), len(donor.categories)) < 2:
        raise SetupError(
            f"{len(niche.categories)} niches and {len(donor.categories)} donors among the cells with an embedding: two of each "
            "are needed."
        )
    counts = np.zeros((len(niche.categories), len(donor.categories)))
    np.add.at(counts, (niche.codes, donor.codes), 1)
    part = counts / counts.sum(axis=0)
    part /= part.sum(axis=1, keepdims=True)
    entropy = 0.0 - np.sum(part * np.log(np.where(part > 0, part, 1)), axis=1) / np.log(len(donor.categories))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(niche))[:n_cells])
    code = niche.codes[drawn]
    silhouette = pd.Series(np.nan, range(len(niche.categories)))
    if 1 < len(np.unique(code)) < len(code):
        silhouette.update(pd.Series(silhouette_samples(x[known][drawn], code)).groupby(code).mean())
    table = pd.DataFrame(
        {
            "mixing": entropy,
            "silhouette": silhouette.to_numpy(),
            "n_cells": counts.sum(axis=1).astype(np.int64),
            "n_donors": (counts > 0).sum(axis=1),
        },
        index=pd.Index([str(name) for name in niche.categories], name="niche"),
    )
    weight = table.n_cells / table.n_cells.sum()
    measured = table.silhouette.notna()
    total = {
        "mixing": (table.mixing * weight).sum(),
        "silhouette": (table.silhouette * weight)[measured].sum() / weight[measured].sum()
        if measured.any()
        else np.nan,
        "n_cells": table.n_cells.sum(),
        "n_donors": len(donor.categories),
    }
    return pd.concat([table, pd.DataFrame([total], index=pd.Index(["all"], name="niche"))])
