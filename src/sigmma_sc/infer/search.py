"""Search for tiles that are alike to a query, with probabilities by which "nothing alike here" is an answer."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import false_discovery_control

from sigmma_sc.errors import SetupError
from sigmma_sc.infer.predict import retrieve
from sigmma_sc.infer.scales import at_scale, unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.infer.index import TileIndex
    from sigmma_sc.infer.reference import Reference

RARE = 0.1
"""Share of the tiles of a slide; where more have to be alike for any to be called so, nothing found tells nothing."""

N_NEIGHBORS = 50
"""Training tiles from whose expression that of a query is averaged, as in predictions."""


@dataclass(frozen=True)
class Query:
    """What is searched for: a point in the shared space."""

    vector: NDArray[np.float32]  # the scales' unit vectors side by side, (d,)
    own: NDArray[np.int64]  # positions in the index of the tiles that the query is made of


def mean_of(embeddings: NDArray[np.float32], n_scales: int) -> NDArray[np.float32]:
    """Mean direction of tiles ``(n, d)`` at each scale, scales side by side, ``(d,)``."""
    by_scale = embeddings.reshape(len(embeddings), n_scales, -1)
    means = [unit(unit(by_scale[:, k]).mean(axis=0, keepdims=True)) for k in range(n_scales)]
    return np.concatenate(means, axis=1)[0]


def similarity(vector: NDArray[np.float32], tiles: NDArray[np.float32], n_scales: int) -> NDArray[np.float32]:
    """Cosine similarity of a query ``(d,)`` and tiles ``(n, d)``, mean over scales, ``(n,)``."""
    by_scale = tiles.reshape(len(tiles), n_scales, -1)
    queries = vector.reshape(n_scales, -1)
    return np.mean([unit(by_scale[:, k]) @ queries[k] for k in range(n_scales)], axis=0)


def of_genes(reference: Reference, genes: list[str], scale: str, n_tiles: int) -> NDArray[np.float32]:
    """Transcriptome embeddings ``(n, d)`` of the training tiles that express some genes most.

    Each gene's log expression is standardised over the training tiles, and the mean over genes is ranked. A gene that no
    training tile varies in counts for nothing; :class:`SetupError` where none does.
    """
    columns = [reference.genes.index(gene) for gene in genes]
    train = reference.train
    expression = reference.expression[train][:, columns].astype(np.float64)
    spread = expression.std(axis=0)
    if not (spread > 0).any():
        raise SetupError(f"Genes {genes!r} have the same expression in all training tiles. Name others.")
    known = spread > 0
    score = ((expression - expression.mean(axis=0))[:, known] / spread[known]).mean(axis=1)
    best = np.argsort(-score, kind="stable")[:n_tiles]
    return at_scale(reference.transcriptome, scale)[train][best]


def unrelated(vector: NDArray[np.float32], reference: Reference, scale: str, temperature: float) -> NDArray[np.bool_]:
    """Which training and validation tiles of a model are unrelated to a query by their measured expression, ``(n,)``.

    The expression of the query is retrieved from the training tiles. A tile is unrelated if its expression and that of the
    query, both as differences from the mean of the training tiles, do not correlate over genes, or correlate negatively.
    """
    train = reference.train
    expression = reference.expression.astype(np.float32)
    keys = at_scale(reference.transcriptome, scale)[train]
    profile = retrieve(vector[None], keys, expression[train], N_NEIGHBORS, temperature)[0]
    mean = expression[train].mean(axis=0)
    of_query = profile - mean
    of_tiles = expression - mean
    return (of_tiles - of_tiles.mean(axis=1, keepdims=True)) @ (of_query - of_query.mean()) <= 0


def p_values(similarity: NDArray[np.floating], null: NDArray[np.floating]) -> NDArray[np.float64]:
    """Conformal p-value of each similarity, ``(n,)``: rank among those of unrelated tiles ``(m,)``; ties count against it."""
    n_larger = len(null) - np.searchsorted(np.sort(null), similarity, side="left")
    return np.where(np.isfinite(similarity), (1 + n_larger) / (1 + len(null)), np.nan)


def alike_by_slide(p: NDArray[np.float64], slide: NDArray[np.int64], fdr: float) -> NDArray[np.bool_]:
    """Which tiles are alike, ``(n,)``: Benjamini and Hochberg's rule within each slide; tiles with NaN are not tested."""
    out = np.zeros(len(p), bool)
    for s in np.unique(slide):
        tested = np.flatnonzero((slide == s) & np.isfinite(p))
        if len(tested):
            out[tested] = false_discovery_control(p[tested]) <= fdr
    return out


def fewest_alike(n_tested: int, n_unrelated: int, fdr: float) -> int:
    """Fewest tiles of a slide that Benjamini and Hochberg's rule can call alike, if all have the smallest p-value."""
    return ceil(n_tested / (fdr * (n_unrelated + 1)) - 1e-9)


def require_unrelated(n: int, fdr: float) -> None:
    """Raise :class:`SetupError` if no similarity can be beyond that of so few unrelated tiles."""
    fewest = ceil(1 / fdr - 1e-9) - 1
    if n < fewest:
        raise SetupError(
            f"fdr={fdr:g} needs {fewest} tiles of the model that are unrelated to the query, and there are {n}. Allow a larger "
            "fdr, or train on more tissue."
        )


def similarities(
    query: Query, index: TileIndex, modality: str, scale: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Similarity of the tiles of an index in one of the towers, NaN without an embedding, and of those unrelated to a query."""
    reference = index.reference
    n_scales = len(index.scales) if scale == "all" else 1
    temperature = float(np.mean([t for s, t in index.temperatures.items() if scale in (s, "all")]))
    known = {"image": reference.image, "transcriptome": reference.transcriptome}[modality]
    null = at_scale(known, scale)[unrelated(query.vector, reference, scale, temperature)]
    found = similarity(query.vector, at_scale(index.embeddings[modality], scale), n_scales)
    return found, similarity(query.vector, null, n_scales)
