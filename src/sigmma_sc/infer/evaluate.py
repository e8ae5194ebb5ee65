"""Task 1 on tiles: expression from image embeddings (paper, section 6.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from sigmma_sc.metrics.expression import expression_probe
from sigmma_sc.tissue.counts import pooled_counts
from sigmma_sc.tissue.panel import common_genes

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.infer.embed import Embedder, SlideEmbedding

    Chosen = list[tuple[SlideEmbedding, NDArray[np.int64]]]


def expression_table(
    embedder: Embedder, train: Chosen, test: Chosen, protocol: Literal["default", "hest"]
) -> pd.DataFrame:
    """Per gene figures of the aligned embedding, frozen encoder and gene mean, from ``train`` to ``test`` tiles."""
    genes = common_genes([e.slide.table for e, _ in (*train, *test)])
    train_counts = chosen_counts(train, genes)
    test_counts = chosen_counts(test, genes)
    slides = slide_names(test)

    def score(train_features: NDArray, test_features: NDArray) -> pd.DataFrame:
        return expression_probe(
            train_features, train_counts, test_features, test_counts, genes, protocol=protocol, groups=slides
        )

    aligned = score(_aligned(train), _aligned(test))
    frozen = score(_frozen(embedder, train), _frozen(embedder, test))
    return aligned.assign(pcc_frozen=frozen["pcc"].to_numpy(), mse_frozen=frozen["mse"].to_numpy())


def slide_names(chosen: Chosen) -> NDArray:
    """Slide of each tile, ``(n_tiles,)``."""
    return np.concatenate([np.full(len(which), e.slide.name) for e, which in chosen])


def _aligned(chosen: Chosen) -> NDArray[np.float32]:
    parts = []
    for e, which in chosen:
        parts.append(np.concatenate([z[which] for z in e.image.values()], axis=1))
    return np.concatenate(parts)


def _frozen(embedder: Embedder, chosen: Chosen) -> NDArray[np.float32]:
    """Features of the encoder as it came: mean over each grid, grids side by side."""
    parts = []
    for e, which in chosen:
        means = embedder.data.grid_means(e.slide, e.tiles.take(which), embedder.device, pretrained=True)
        parts.append(np.concatenate(means, axis=1))
    return np.concatenate(parts)


def chosen_counts(chosen: Chosen, genes: list[str]) -> csr_matrix:
    """Raw counts pooled over each tile's cells, ``(n_tiles, n_genes)``."""
    from scipy.sparse import vstack

    pooled = [pooled_counts(e.slide, e.tiles.take(which), genes) for e, which in chosen]
    return vstack(pooled, format="csr")
