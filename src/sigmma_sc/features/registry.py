"""Node features by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigmma_sc._checks import require_choice
from sigmma_sc.errors import SetupError
from sigmma_sc.features.counts_pca import CountsPCA
from sigmma_sc.features.obsm_embedding import ObsmEmbedding
from sigmma_sc.features.pseudobulk import Pseudobulk

if TYPE_CHECKING:
    from sigmma_sc.config import Config
    from sigmma_sc.features.node_features import NodeFeatures
    from sigmma_sc.tissue.setup import Setup

NODE_FEATURES: dict[str, type[NodeFeatures]] = {"pca": CountsPCA, "obsm": ObsmEmbedding, "pseudobulk": Pseudobulk}


def node_features_of(config: Config, setup: Setup) -> NodeFeatures:
    """Features, not fitted yet, that a configuration and a setup ask for, or :class:`SetupError` if there are none."""
    name = config.node_features
    require_choice(name, ("auto", *NODE_FEATURES), "node_features")
    per_tile = config.cells == "genes"
    if name == "auto" and per_tile:
        name = "pseudobulk"
    elif name == "auto":
        name = "pca" if setup.features_key is None else "obsm"
    kind = NODE_FEATURES[name]
    if kind.per_tile != per_tile:
        rows, cells = ("tile", "genes") if kind.per_tile else ("cell", "graph")
        raise SetupError(
            f"node_features={name!r} has one row for each {rows}, which cells={config.cells!r} cannot use. Choose other "
            f"node features, or cells={cells!r}."
        )
    # A slide of H&E alone has no cells, and so no embedding of them either.
    if name == "obsm" and setup.features_key is None and setup.table_key is not None:
        raise SetupError(
            "node_features='obsm' needs an embedding of the cells. Name it with SIGMMA.setup_spatialdata(sdata, features_key=…)."
        )
    return kind(config.cell_covariates, config.seed)
