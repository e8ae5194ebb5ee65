"""Node features by name."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from sigmma_sc._checks import require_new_name, require_registered
from sigmma_sc.errors import SetupError
from sigmma_sc.features.counts_pca import CountsPCA
from sigmma_sc.features.node_features import NodeFeatures
from sigmma_sc.features.obsm_embedding import ObsmEmbedding
from sigmma_sc.features.pseudobulk import Pseudobulk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sigmma_sc.config import Config
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.setup import Setup

NODE_FEATURES: dict[str, type[NodeFeatures]] = {"pca": CountsPCA, "obsm": ObsmEmbedding, "pseudobulk": Pseudobulk}

"""Node features by name; :func:`register_node_features` adds to them."""


def register_node_features(name: str, kind: type[NodeFeatures]) -> None:
    """Register node features by a name, for the option ``node_features`` of :class:`sigmma_sc.SIGMMA`.

    They are registered in this process. On the command line, ``sigmma-sc --import MODULE`` first imports your module.

    Parameters
    ----------
    name
        Letters, digits, ``-`` and ``_``; not ``"auto"``.
    kind
        A subclass of :class:`sigmma_sc.NodeFeatures`, not an instance.

    Raises
    ------
    SetupError
        The name is malformed or taken, or the class is no such class or lacks a method.

    Examples
    --------
    >>> class Keratins(sg.NodeFeatures):
    ...     genes = ["KRT7", "KRT19"]
    ...
    ...     def transform(self, slide, tiles):
    ...         return np.log1p(slide.table[slide.rows, self.genes].X.toarray())
    >>> sg.register_node_features("keratins", Keratins)
    >>> sg.Config(node_features="keratins").node_features
    'keratins'
    """
    if not isinstance(kind, type) or not issubclass(kind, NodeFeatures):
        raise SetupError(
            f"node_features={name!r}: {kind!r} is not a subclass of sg.NodeFeatures. Pass your class itself."
        )
    require_new_name(name, kind, {**NODE_FEATURES, "auto": node_features_of}, "node_features")
    if inspect.isabstract(kind):
        raise SetupError(f"{kind.__name__} lacks {', '.join(sorted(kind.__abstractmethods__))}. Write these methods.")
    if kind.fit is not NodeFeatures.fit and (kind.state is NodeFeatures.state or kind.restore is NodeFeatures.restore):
        raise SetupError(
            f"{kind.__name__} has fit without state and restore, so that it could not be saved. Write both."
        )
    try:
        inspect.signature(kind).bind(True, 0)
    except TypeError as error:
        raise SetupError(
            f"{kind.__name__}.__init__ must take covariates and seed, as NodeFeatures does: {error}."
        ) from error
    NODE_FEATURES[name] = kind


def node_features_of(config: Config, setup: Setup) -> NodeFeatures:
    """Features, not fitted yet, that a configuration and a setup ask for, or :class:`SetupError` if there are none."""
    name = config.node_features
    require_registered(name, ("auto", *NODE_FEATURES), "node_features", "register_node_features")
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
    features = kind(config.cell_covariates, config.seed)
    features.panel = config.genes
    return features


def require_joint_features(config: Config, slides: Sequence[Slide]) -> None:
    """Raise :class:`SetupError` unless the cells of all slides can have features of one kind; it names slide and key."""
    with_cells = [slide for slide in slides if slide.region is not None]
    kind = NODE_FEATURES.get(config.node_features)
    embedding = kind is ObsmEmbedding or (config.node_features == "auto" and config.cells == "graph")
    if not with_cells:
        return
    first = with_cells[0]
    for slide in with_cells[1:]:
        if embedding and slide.setup.features_key != first.setup.features_key:
            raise SetupError(
                f"Slide {slide.name!r} was set up with features_key={slide.setup.features_key!r}, and {first.name!r} with "
                f"features_key={first.setup.features_key!r}. Set all objects up with an embedding of one key."
            )
        if embedding and slide.setup.features_key is not None:
            widths = [one.table.obsm[one.setup.features_key].shape[1:] for one in (slide, first)]
            if widths[0] != widths[1]:
                raise SetupError(
                    f"obsm[{slide.setup.features_key!r}] of slide {slide.name!r} has shape {('n', *widths[0])}, and of "
                    f"{first.name!r} {('n', *widths[1])}. Bring one embedding for all objects."
                )
