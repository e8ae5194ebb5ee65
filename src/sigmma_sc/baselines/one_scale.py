"""What the published methods have in common: one crop of a tile against one vector of its genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from sigmma_sc.errors import SetupError
from sigmma_sc.model import SIGMMA
from sigmma_sc.nn.image import Standardise
from sigmma_sc.nn.towers import TwoTowers
from sigmma_sc.store.model import build_backbone

if TYPE_CHECKING:
    from pathlib import Path

    from sigmma_sc.encoders.encoder import ImageEncoder


class OneScale(SIGMMA):
    """A method of one scale behind SIGMMA's interface.

    Subclasses give ``_towers``, and ``published``, their authors' arguments of :meth:`train`.
    """

    published: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        sdata: Any,
        image_encoder: str | ImageEncoder,
        n_latent: int,
        *,
        cache_dir: str | Path | None = None,
        **switches: Any,
    ):
        # As published: a vector of genes alone, and nothing done slide by slide.
        own = {"cells": "genes", "cell_covariates": False, "standardise": "training"}
        for name, value in own.items():
            if switches.get(name, value) != value:
                raise SetupError(
                    f"{name}={switches[name]!r} is not for {type(self).__name__}, which has {name}={value!r} as published."
                )
        super().__init__(sdata, image_encoder, n_latent, cache_dir=cache_dir, **{**switches, **own})

    def train(self, max_epochs: int = 240, **kwargs: Any) -> None:
        """As :meth:`sigmma_sc.SIGMMA.train`, with the published values where none are given.

        The weights of the lowest validation loss are kept, as by BLEEP's authors, of more epochs than SIGMMA's.
        """
        early = {"early_stopping": True, "early_stopping_patience": 40}
        super().train(max_epochs, **{**early, **self.published, **kwargs})


class OneScaleTowers(TwoTowers):
    """The tile's coarsest crop, standardised, and its log-normalised counts.

    Parameters
    ----------
    model
        Whose towers.
    n_genes
        Length of the gene vector.

    Attributes
    ----------
    image_head, gene_head
        Maps of the image's feature and of the gene vector into the shared space; subclasses set them.
    """

    image_head: nn.Module
    gene_head: nn.Module

    def __init__(self, model: SIGMMA, n_genes: int):
        super().__init__((model.setup.scales[-1],), n_genes, (1.0,), build_backbone(model))
        self.n_crops = model.setup.grids[-1] ** 2
        self.image_standardise = Standardise(model.image_encoder.dim, 10.0 if self.backbone is None else np.inf)

    def fit(self, patches: Tensor, cells: Tensor, n_components: int = 0) -> None:
        """Standardise the image feature."""
        self.image_standardise.fit(patches[:, -self.n_crops :].float().mean(1))

    def image_feature(self, batch: dict[str, Any]) -> Tensor:
        """Feature of the tile's image, ``(n_tiles, d)``."""
        patches = batch["patches"] if "patches" in batch else self.backbone(batch["pixels"])
        return self.image_standardise(patches[:, -self.n_crops :].float().mean(1))

    def embed_images(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Image embedding, ``(n_tiles, n_latent)``."""
        return {self.scales[0]: self.image_head(self.image_feature(batch))}

    def embed_cells(self, batch: dict[str, Any], sample: bool | None = None) -> tuple[dict, dict[str, Tensor]]:
        """No cells, and the transcriptome's embedding, ``(n_tiles, n_latent)``."""
        return {}, {self.scales[0]: self.gene_head(batch["genes"])}
