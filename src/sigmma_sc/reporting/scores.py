"""What a report says of tiles and of scores on them, from the tables that ``write_embeddings`` made."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from sigmma_sc.infer.scales import at_scale, unit
from sigmma_sc.metrics.retrieval import retrieval_table, tile_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from sigmma_sc.infer.scales import Scales

DIRECTION = ("image→transcriptome", "all")
"""What the gallery shows."""

N_QUERIES = 3
N_HITS = 5


class Scored(NamedTuple):
    """Tiles among which retrieval is scored."""

    split: str  # "test", or "all" if none was held out
    rows: NDArray[np.int64]  # rows of the table of tiles
    image: Scales
    transcriptome: Scales


class Query(NamedTuple):
    """A tile as query, and what it retrieves; rows of the table of tiles."""

    row: int
    rank: int  # of its partner
    pool: int
    hits: list[int]  # the most similar tiles, the first best
    similarity: list[float]  # cosine of the query and each hit


def roles_of_tiles(obs: pd.DataFrame, usable: NDArray[np.bool_], tissue: NDArray[np.bool_]) -> pd.DataFrame:
    """Number of tiles of each slide by role, and of those left out by reason."""
    role = obs["split"].astype(str).to_numpy(object).copy()
    role[~usable] = "too few cells"
    role[~tissue] = "too little tissue"
    return pd.crosstab(obs["slide"].astype(str).rename("slide"), pd.Series(role, obs.index, name="tiles"))


def scored_tiles(tiles: AnnData, usable: NDArray[np.bool_], scales: Sequence[str]) -> Scored:
    """Test tiles of a table, or all that can be scored if none was held out."""
    test = usable & (tiles.obs["split"].astype(str) == "test").to_numpy()
    rows = np.flatnonzero(test if test.any() else usable)
    image = {scale: np.asarray(tiles.obsm[f"image_{scale}"])[rows] for scale in scales}
    transcriptome = {scale: np.asarray(tiles.obsm[f"transcriptome_{scale}"])[rows] for scale in scales}
    return Scored("test" if test.any() else "all", rows, image, transcriptome)


def retrieval(tiles: AnnData, scored: Scored) -> pd.DataFrame:
    """Recall in both directions at every scale, see :func:`sigmma_sc.metrics.retrieval_table`."""
    return retrieval_table(scored.image, scored.transcriptome, tiles.obs["slide"].astype(str).to_numpy()[scored.rows])


def gallery(tiles: AnnData, scored: Scored) -> list[Query]:
    """Queries of the first slide with two scored tiles, evenly from the best to the worst rank of the partner."""
    slide = tiles.obs["slide"].astype(str).to_numpy()[scored.rows]
    names, counts = np.unique(slide, return_counts=True)
    if not (counts > 1).any():
        return []
    here = np.flatnonzero(slide == names[counts > 1][0])
    image = {scale: z[here] for scale, z in scored.image.items()}
    transcriptome = {scale: z[here] for scale, z in scored.transcriptome.items()}
    direction, scale = DIRECTION[0], DIRECTION[1] if len(image) > 1 else next(iter(image))
    ranks = tile_ranks(image, transcriptome, np.zeros(len(here)))[0][direction, scale]
    similarity = unit(at_scale(image, scale)) @ unit(at_scale(transcriptome, scale)).T
    order = np.argsort(ranks, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(N_QUERIES, len(order))).astype(int)]
    rows = scored.rows[here]
    found = []
    for query in chosen.tolist():
        hits = np.argsort(-similarity[query], kind="stable")[:N_HITS]
        cosines = similarity[query, hits].astype(float).tolist()
        found.append(Query(int(rows[query]), int(ranks[query]), len(here), rows[hits].tolist(), cosines))
    return found
