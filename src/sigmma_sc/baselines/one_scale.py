"""What the published methods have in common: one crop of a tile against one vector of its genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from sigmma_sc.errors import SetupError
from sigmma_sc.model import SIGMMA
from sigmma_sc.nn.image import Standardise
from sigmma_sc.nn.towers import TwoTowers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.nn.objectives import Objective
    from sigmma_sc.nn.part import Part
    from sigmma_sc.nn.temperature import Temperature
    from sigmma_sc.nn.trainable import TrainableEncoder
    from sigmma_sc.tissue.setup import Setup, Tissue


class OneScale(SIGMMA):
    """A method of one scale behind SIGMMA's interface; subclasses give ``_towers`` and ``published`` arguments."""

    published: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        sdata: Tissue,
        image_encoder: str | ImageEncoder,
        n_latent: int,
        *,
        cache_dir: str | Path | None = None,
        **options: Any,
    ):
        # As published: a vector of genes alone, and nothing done slide by slide.
        own = {"cells": "genes", "cell_covariates": False, "standardise": "training"}
        objective = options.get("objective", "infonce")
        if objective != "infonce":
            raise SetupError(f"objective={objective!r} is not for {type(self).__name__}: it has its own. Leave it out.")
        for name, value in own.items():
            if options.get(name, value) != value:
                raise SetupError(
                    f"{name}={options[name]!r} is not for {type(self).__name__}, published with {value!r}."
                )
        super().__init__(sdata, image_encoder, n_latent, cache_dir=cache_dir, **{**options, **own})

    def train(
        self,
        max_epochs: int = 240,
        batch_size: int = 128,
        split: str | Mapping[str, Sequence[str]] = "auto",
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        precision: str = "auto",
        **kwargs: Any,
    ) -> None:
        """As :meth:`sigmma_sc.SIGMMA.train`, with the published values where none are given.

        The weights of the lowest validation loss are kept, as by BLEEP's authors, of more epochs than SIGMMA's.
        """
        early = {"early_stopping": True, "early_stopping_patience": 40}
        options = {**early, **self.published, **kwargs}
        super().train(max_epochs, batch_size, split, accelerator, devices, precision, **options)


class OneScaleTowers(TwoTowers):
    """The tile's coarsest crop, standardised, and its pseudobulk profile.

    Subclasses set ``image_head`` and ``gene_head``, which map patch features and the profile into the shared space.
    """

    image_head: nn.Module
    gene_head: nn.Module

    def __init__(
        self,
        n_image: int,
        n_genes: int,
        setup: Setup,
        objective: Objective,
        temperature: Temperature,
        encoder: TrainableEncoder | None,
    ):
        super().__init__((setup.scales[-1],), n_genes, (1.0,), objective, temperature, encoder)
        self.n_crops = setup.grids[-1] ** 2
        self.image_standardise = Standardise(n_image, 10.0 if encoder is None else np.inf)

    def fit(self, images: Tensor, cells: Tensor, n_components: int = 0) -> None:
        """Standardise the image feature."""
        self.image_standardise.fit(images[:, -self.n_crops :].float().mean(1))

    def image_feature(self, part: Part) -> Tensor:
        """Feature of the tile's image, ``(n_tiles, d)``."""
        return self.image_standardise(self.patch_features(part)[:, -self.n_crops :].float().mean(1))

    def embed_images(self, part: Part) -> dict[str, Tensor]:
        """Image embedding, ``(n_tiles, n_latent)``."""
        return {self.scales[0]: self.image_head(self.image_feature(part))}

    def embed_cells(self, part: Part, sample: bool | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """No cells, and the transcriptome's embedding, ``(n_tiles, n_latent)``."""
        return {}, {self.scales[0]: self.gene_head(part["profiles"])}
