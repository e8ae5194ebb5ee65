"""CLIP, PLIP and OmiCLIP on tissue: an image tower against a text tower that reads gene names."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from sigmma_sc._checks import require_choice
from sigmma_sc._random import kept_random_state
from sigmma_sc.baselines.one_scale import OneScale, OneScaleTowers
from sigmma_sc.encoders.text import PRETRAINED, GeneSentenceTower, PretrainedText, text_tower
from sigmma_sc.errors import SetupError
from sigmma_sc.nn.objectives import info_nce
from sigmma_sc.nn.temperature import Temperature

if TYPE_CHECKING:
    from pathlib import Path

    from sigmma_sc.config import Config
    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.features.data import TissueData
    from sigmma_sc.nn.trainable import TrainableEncoder
    from sigmma_sc.tissue.setup import Setup, Tissue


class CLIP(OneScale):
    """CLIP (Radford et al. 2021), and after it PLIP (Huang et al. 2023) and OmiCLIP (Chen et al. 2025), fine-tuned on tissue.

    The tile's transcriptome is a sentence, the names of its 50 most expressed genes, most first, as OmiCLIP writes it. Linear
    maps take image and text into the shared space; τ begins at 0.07 and is learned.

    Parameters
    ----------
    sdata, image_encoder, n_latent, cache_dir, **options
        As for :class:`sigmma_sc.SIGMMA`. With ``image_encoder="plip"`` and ``text="plip"`` the towers are PLIP's own; ``regime``
        decides what is trained of the image tower.
    text
        ``"clip"``, ``"plip"`` or ``"omiclip"`` for that model's text tower, which is trained on; ``"genes"`` for a small one
        from scratch with a word for each gene, which needs no download.
    text_weights
        Local checkpoint of the model whose text tower it is.

    Raises
    ------
    SetupError
        ``text`` is none of these, or needs no ``text_weights``.
    EncoderError
        Weights of either tower cannot be had or do not fit.

    Examples
    --------
    >>> tissue = sg.datasets.simulate_tissue(n_cells=500)
    >>> SIGMMA.setup_spatialdata(tissue, tile_size=64)
    >>> clip = sg.baselines.CLIP(tissue, image_encoder="stain-stats", text="genes")
    >>> clip.train(max_epochs=2, enable_progress_bar=False)
    >>> clip.get_tile_representation(modality="transcriptome").shape
    (81, 512)
    """

    def __init__(
        self,
        sdata: Tissue,
        image_encoder: str | ImageEncoder = "clip",
        n_latent: int = 512,
        *,
        text: str = "genes",
        text_weights: str | None = None,
        cache_dir: str | Path | None = None,
        **options: Any,
    ):
        require_choice(text, ("genes", *PRETRAINED), "text")
        if text == "genes" and text_weights is not None:
            raise SetupError(
                f"text_weights={text_weights!r} goes with text={', '.join(map(repr, PRETRAINED))}; text='genes' is from scratch."
            )
        super().__init__(sdata, image_encoder, n_latent, cache_dir=cache_dir, **options)
        self._state = replace(self._state, extra={"text": text, "text_weights": text_weights})
        self._text: PretrainedText | None = None
        if text != "genes":
            # Now, and not when all crops are encoded: weights that cannot be had are told of before any compute.
            with kept_random_state():
                self._text = text_tower(text, text_weights, [])

    def _towers(self, n_node_features: int, data: TissueData) -> CLIPTowers:
        encoder = self._trainable_encoder()
        tower: GeneSentenceTower | PretrainedText
        if self._text is None:
            tower = GeneSentenceTower(n_node_features)
        else:
            tower = copy.deepcopy(self._text)  # the model's own stays as it came
            tower.names = list(data.node_features.genes or ())
        return CLIPTowers(self.image_encoder.dim, n_node_features, self.setup, self.config, tower, encoder)


class CLIPTowers(OneScaleTowers):
    """Linear maps of the image's feature and of the sentence's."""

    def __init__(
        self,
        n_image: int,
        n_genes: int,
        setup: Setup,
        config: Config,
        text: GeneSentenceTower | PretrainedText,
        encoder: TrainableEncoder | None,
    ):
        temperature = Temperature(1, config.temperature, learned=True)
        super().__init__(n_image, n_genes, setup, info_nce, temperature, encoder)
        self.image_head = nn.Linear(n_image, config.n_latent, bias=False)
        self.gene_head = nn.Sequential(text, nn.Linear(text.width, config.n_latent, bias=False))
