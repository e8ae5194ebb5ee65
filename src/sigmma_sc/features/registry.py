"""Node features by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigmma_sc.features.counts_pca import CountsPCA
from sigmma_sc.features.obsm_embedding import ObsmEmbedding
from sigmma_sc.features.pseudobulk import Pseudobulk

if TYPE_CHECKING:
    from sigmma_sc.config import Config
    from sigmma_sc.features.node_features import NodeFeatures
    from sigmma_sc.tissue.setup import Setup

NODE_FEATURES: dict[str, type[NodeFeatures]] = {
    "pca": CountsPCA,
    "obsm": ObsmEmbedding,
    "pseudobulk": Pseudobulk,
}


def node_features_of(config: Config, setup: Setup) -> NodeFeatures:
    """Features, not fitted yet, that a configuration and a setup ask for."""
    name = config.node_features
    if name == "auto":
        name = "pca" if setup.features_key is None else "obsm"
    if config.cells == "genes":
        name = "pseudobulk"
    return NODE_FEATURES[name](config.cell_covariates, config.seed)
