"""The options of the method."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np

from sigmma_sc._checks import is_number, require_choice, require_positive, require_whole
from sigmma_sc.errors import SetupError

COUNTS = {"n_latent": 2, "n_neighs": 1, "min_cells": 1, "lora_rank": 1, "last_k": 1, "mc_samples": 0, "seed": 0}
"""Options that are whole numbers, with their least values."""

FLAGS = ("cell_covariates", "symmetric_edges", "relational_edges", "learn_temperature")

MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 0.5
"""Bounds of a learned temperature; the lower one is CLIP's."""

LEAST_TEMPERATURE = 1e-3
"""Least temperature of the objective: below it the loss has a gradient for a single pair of a batch, or for none."""

MOST = {"n_latent": 2**16, "n_neighs": 1024, "lora_rank": 2**16, "mc_samples": 2**16}
"""Most of some options that are whole numbers: more would ask for the memory of many machines."""

LARGEST_SEED = 2**32 - 1
"""Largest seed of the generators of NumPy and scikit-learn."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"regime": "full", "cell_covariates": False, "standardise": "training", "relational_edges": False}
}
"""Options by name of a preset: ``"paper"`` is the method as published, as far as it is known."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the method; frozen, JSON-safe, and stored with the model.

    Every field is an argument of :class:`sigmma_sc.SIGMMA`. "Our choice" marks what the paper does not give.

    Attributes
    ----------
    n_latent
        Width of the shared space and of the cell embeddings (our choice).
    cells
        ``"graph"``, the cell graph (the method), or ``"genes"``, the pseudobulk of the tile, log-normalised, at every scale
        (Table 4). A model with ``"genes"`` embeds tiles and not cells.
    node_features
        ``"pca"`` of log-normalised counts, ``"obsm"`` for the embedding that ``features_key`` names, or the name of a
        registered node feature. ``"auto"`` is ``"obsm"`` if ``features_key`` is given, and ``"pca"`` otherwise.
    genes
        Genes that node features from counts are made of: ``"union"`` of the panels of the training slides, the genes that
        all of them have (``"shared"``), or a list of names. Control probes are left out, unless they are listed. A slide may
        lack some of the genes: page *Gene panels*.
    edges
        ``"sampled"`` adds edges stochastically (the method), ``"full"`` links every pair within a block, ``"none"`` has only
        the spatial edges (Table 4).
    cell_covariates
        Whether to add covariates to node features (our choice). They are log1p of the mean distance to the 8 nearest cells in
        µm, the same for all bins or spots of a lattice, and, for features from counts, log1p of the total. Pseudobulk gets total and number of cells of the tile.
    standardise
        Mean and standard deviation that centre and scale node features, and patch features of a frozen encoder (our choice).
        ``"slide"`` uses those of the tissue of each slide, which removes differences of stain and batch. ``"training"`` uses
        those of all training tiles for every slide, which keeps differences between slides.
    symmetric_edges
        Whether to sample one edge for both directions of a pair; by default directions are sampled independently.
    relational_edges
        Whether added edges have a mean and a weight matrix of their own (our choice), as each relation has in R-GCN
        (Schlichtkrull et al. 2018). Otherwise a cell takes one mean over spatial and added edges (the paper).
    edge_temperature
        Temperature τ of the edge sampler. A pair (first, last) decreases τ geometrically from first to last during one call
        of ``train`` (our choice).
    n_neighs
        Number of nearest neighbours with a spatial edge to each cell (our choice); not used with ``radius``.
    radius
        Largest length of spatial edges, µm, for bins on a lattice; ``None`` uses ``n_neighs`` (our choice).
    min_cells
        Least number of cells of a tile to train or evaluate on it. At least a twentieth of such a tile must be stained.
        Inference covers all tiles.
    loss_weights
        Weight of the loss of each scale, fine to coarse; ``None`` is 1 for all. ``(0, 0, 1)`` aligns the macro scale alone
        (Table 4). A scale of weight 0 has no tile embedding.
    objective
        Contrastive objective of each scale: ``"infonce"`` (the paper), or the name of a registered objective.
    temperature
        Temperature τ of the objective, 0.07 by default.
    learn_temperature
        Whether each scale learns its temperature, from ``temperature`` on, within 0.01 and 0.5 (our choice).
    negatives
        ``"within_slide"`` draws each batch from one slide, ``"pooled"`` from all slides.
    mc_samples
        Number of sampled graphs over which embeddings are averaged; 0 weighs each pair by its probability, which is
        deterministic.
    dropout
        Dropout rate of heads and node features, in [0, 1).
    regime
        Part of the image encoder that is trained. ``"frozen"``: none, and patch features are computed once. ``"lora"``:
        low-rank adapters of its linear maps and 1 × 1 convolutions (Hu et al. 2021). ``"last_k"``: its last blocks.
        ``"full"``: all of it (the paper).
    lora_rank
        Rank of the adapters of ``"lora"``.
    last_k
        Number of blocks of ``"last_k"``.
    crop_sizes
        Side in px of the crops of each scale at the input of the encoder, fine to coarse; ``None`` is its input size. A
        micro crop of 32 µm has 64 px at 0.5 µm/px; at 64 instead of 224 it costs a twelfth.
    seed
        Seed of weights, split, batches and sampling; the same seed on the same machine gives the same weights.

    Raises
    ------
    SetupError
        A value is out of range.

    See Also
    --------
    sigmma_sc.SIGMMA : Takes these options as arguments.

    Examples
    --------
    >>> config = sg.Config(edges="full", n_latent=64)
    >>> config.edges, config.temperature
    ('full', 0.07)
    >>> sg.Config(edges="all")
    Traceback (most recent call last):
        ...
    sigmma_sc.errors.SetupError: edges='all' is not one of 'sampled', 'full', 'none'.
    """

    n_latent: int = 128
    cells: Literal["graph", "genes"] = "graph"
    node_features: str = "auto"
    genes: Literal["union", "shared"] | tuple[str, ...] = "union"
    edges: Literal["sampled", "full", "none"] = "sampled"
    cell_covariates: bool = True
    standardise: Literal["slide", "training"] = "slide"
    symmetric_edges: bool = False
    relational_edges: bool = True
    edge_temperature: float | tuple[float, float] = 1.0
    n_neighs: int = 6
    radius: float | None = None
    min_cells: int = 5
    loss_weights: tuple[float, ...] | None = None
    objective: str = "infonce"
    temperature: float = 0.07
    learn_temperature: bool = False
    negatives: Literal["within_slide", "pooled"] = "within_slide"
    mc_samples: int = 0
    dropout: float = 0.1
    regime: Literal["frozen", "lora", "last_k", "full"] = "frozen"
    lora_rank: int = 8
    last_k: int = 2
    crop_sizes: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self):
        # JSON has neither tuples nor NumPy's numbers. Fields of a frozen dataclass can be set only in this way.
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                value = value.item()
            elif isinstance(value, list):
                value = tuple(value)
            object.__setattr__(self, field.name, value)
        require_choice(self.cells, ("graph", "genes"), "cells")
        require_choice(self.edges, ("sampled", "full", "none"), "edges")
        require_choice(self.standardise, ("slide", "training"), "standardise")
        require_choice(self.negatives, ("within_slide", "pooled"), "negatives")
        require_choice(self.regime, ("frozen", "lora", "last_k", "full"), "regime")
        _check_genes(self.genes)
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise SetupError(f"{name}={getattr(self, name)!r} must be True or False.")
        for name, least in COUNTS.items():
            require_whole(getattr(self, name), name, least, MOST.get(name))
        if self.seed > LARGEST_SEED:
            raise SetupError(f"seed={self.seed} must be at most {LARGEST_SEED}.")
        for name in ("loss_weights", "crop_sizes"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, tuple) and value and all(map(is_number, value))):
                raise SetupError(f"{name}={value!r} must be a tuple of numbers, one for each grid.")
        for value in self.edge_temperatures:
            require_positive(value, "edge_temperature")
        require_positive(self.temperature, "temperature")
        if self.temperature < LEAST_TEMPERATURE:
            raise SetupError(f"temperature={self.temperature!r} must be {LEAST_TEMPERATURE} or more; 0.07 is usual.")
        if self.learn_temperature and not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise SetupError(
                f"temperature={self.temperature} must be within {MIN_TEMPERATURE} and {MAX_TEMPERATURE} if learn_temperature=True."
            )
        if self.radius is not None:
            require_positive(self.radius, "radius")
        for size in self.crop_sizes or ():
            require_whole(size, "crop_sizes")
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise SetupError(f"dropout={self.dropout!r} must be in [0, 1).")
        weights = self.loss_weights
        if weights is not None and (min(weights) < 0 or max(weights) == 0):
            raise SetupError(f"loss_weights={weights!r} must be 0 or more, and one of them positive.")

    @property
    def edge_temperatures(self) -> tuple[float, float]:
        """First and last temperature τ of the edge sampler."""
        value = self.edge_temperature
        if not isinstance(value, tuple):
            return value, value
        if len(value) != 2:
            raise SetupError(f"edge_temperature={value!r} must be one number, or two: the first τ and the last.")
        return value

    def weights(self, n_scales: int) -> tuple[float, ...]:
        """Weight of the loss of each scale."""
        return self.loss_weights or (1.0,) * n_scales

    def to_json(self) -> dict[str, Any]:
        """Values by name, in plain JSON types."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def of(cls, options: dict[str, Any], grids: tuple[int, ...], preset: str | None = None) -> Config:
        """Configuration from options by name, as from JSON or a user, for tiles with these grids.

        Other options have the values of the preset, or the defaults.

        Raises
        ------
        SetupError
            A name does not exist, a value is out of range, or a tuple does not have one value for each grid.
        """
        if preset is not None:
            require_choice(preset, tuple(PRESETS), "preset")
            options = {**PRESETS[preset], **options}
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                like = get_close_matches(name, known, 1)
                raise SetupError(
                    f"SIGMMA has no option {name!r}." + (f" Did you mean {like[0]!r}?" if like else "")
                    + f" Options: {', '.join(known)}."
                )  # fmt: skip
        config = cls(**options)
        for name in ("loss_weights", "crop_sizes"):
            value = getattr(config, name)
            if value is not None and len(value) != len(grids):
                raise SetupError(f"{name}={value!r} must have one value for each of grids={grids!r}, fine to coarse.")
        return config


def _check_genes(genes: object) -> None:
    if isinstance(genes, tuple):
        names = [gene for gene in genes if isinstance(gene, str) and gene]
        if len(names) < max(2, len(genes)) or len(set(names)) < len(names):
            raise SetupError(f"genes={genes!r} must list two or more names of genes, all different.")
    else:
        require_choice(genes, ("union", "shared"), "genes")
