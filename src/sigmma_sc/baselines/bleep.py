"""BLEEP (Xie et al. 2023, arXiv:2306.01859; bowang-lab/BLEEP)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from sigmma_sc.baselines.one_scale import OneScale, OneScaleTowers
from sigmma_sc.nn.dropout import Dropout
from sigmma_sc.nn.objectives import at_least_single
from sigmma_sc.nn.temperature import Temperature

if TYPE_CHECKING:
    from pathlib import Path

    from sigmma_sc.config import Config
    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.features.data import TissueData
    from sigmma_sc.nn.trainable import TrainableEncoder
    from sigmma_sc.tissue.setup import Setup, Tissue


class BLEEP(OneScale):
    """BLEEP: two projection heads and a contrastive loss whose targets are as soft as the batch is alike.

    As published: ResNet50, heads of 256 with dropout 0.1, temperature 1, AdamW at 1e-3 with weight decay 1e-3, batches of 128.
    Its genes are the highly variable ones, log-normalised and corrected by Harmony; here they are all genes of the panel,
    log-normalised. Image features are standardised, as for every method here.

    Parameters
    ----------
    sdata, image_encoder, n_latent, cache_dir, **options
        As for :class:`sigmma_sc.SIGMMA`.
    temperature
        Of logits, and inverse of that of targets.

    Examples
    --------
    >>> tissue = sg.datasets.simulate_tissue(n_cells=500)
    >>> SIGMMA.setup_spatialdata(tissue, tile_size=64)
    >>> bleep = sg.baselines.BLEEP(tissue, image_encoder="stain-stats")
    >>> bleep.train(max_epochs=2, enable_progress_bar=False)
    >>> bleep.get_tile_representation(modality="transcriptome").shape
    (81, 256)
    """

    published: ClassVar[dict[str, Any]] = {"lr": 1e-3, "weight_decay": 1e-3}

    def __init__(
        self,
        sdata: Tissue,
        image_encoder: str | ImageEncoder = "resnet50",
        n_latent: int = 256,
        *,
        temperature: float = 1.0,
        cache_dir: str | Path | None = None,
        **options: Any,
    ):
        super().__init__(sdata, image_encoder, n_latent, cache_dir=cache_dir, temperature=temperature, **options)

    def _towers(self, n_node_features: int, data: TissueData) -> BLEEPTowers:
        encoder = self._trainable_encoder()
        return BLEEPTowers(self.image_encoder.dim, n_node_features, self.setup, self.config, encoder)


class BLEEPHead(nn.Module):
    """Linear map, a residual branch, layer norm."""

    def __init__(self, n_input: int, n_latent: int, dropout: float):
        super().__init__()
        self.projection = nn.Linear(n_input, n_latent)
        self.branch = nn.Sequential(nn.GELU(), nn.Linear(n_latent, n_latent), Dropout(dropout))
        self.norm = nn.LayerNorm(n_latent)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, n_input)`` to ``(n, n_latent)``."""
        y = self.projection(x)
        return self.norm(y + self.branch(y))


class BLEEPTowers(OneScaleTowers):
    """Heads of image and genes."""

    def __init__(self, n_image: int, n_genes: int, setup: Setup, config: Config, encoder: TrainableEncoder | None):
        temperature = Temperature(1, config.temperature, learned=False)
        super().__init__(n_image, n_genes, setup, soft_target_loss, temperature, encoder)
        self.image_head = BLEEPHead(n_image, config.n_latent, config.dropout)
        self.gene_head = BLEEPHead(n_genes, config.n_latent, config.dropout)


def soft_target_loss(image: Tensor, genes: Tensor, temperature: Tensor | float) -> Tensor:
    """BLEEP's objective: targets are the softmax of the mean of both modalities' own similarities, ``(n, d)`` each.

    Inner products, not cosines. The targets of an image are a column of those of the genes, as published; columns do
    not add up to one. τ (``temperature``) divides the logits and multiplies the targets.
    """
    with torch.autocast(image.device.type, enabled=False):
        image = at_least_single(image)
        genes = at_least_single(genes)
        targets = functional.softmax((image @ image.T + genes @ genes.T) / 2 * temperature, dim=-1)
        logits = genes @ image.T / temperature
        of_genes = -(targets * logits.log_softmax(-1)).sum(1)
        of_images = -(targets.T * logits.T.log_softmax(-1)).sum(1)
        return ((of_genes + of_images) / 2).mean()
