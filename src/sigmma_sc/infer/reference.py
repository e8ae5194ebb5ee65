"""Tiles that a model predicts expression from: kept with it, so that it needs none of the slides it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sigmma_sc.errors import SetupError
from sigmma_sc.features.tile_stain import tile_stain
from sigmma_sc.infer.evaluate import chosen_counts
from sigmma_sc.infer.scales import joined
from sigmma_sc.metrics.expression import log_expression, median_total
from sigmma_sc.tissue.panel import common_genes
from sigmma_sc.tissue.split import Blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sigmma_sc.infer.embed import Embedder, SlideEmbedding
    from sigmma_sc.tissue.frame import Slide

PREFIX = "reference."
"""Of its tensors among those of a saved model."""

ARRAYS = ("expression", "encoder", "slide", "block", "train", "position", "stain")
"""Fields of a reference that are arrays, beside the embeddings by scale."""


@dataclass(frozen=True)
class Reference:
    """Training and validation tiles of a model, with both embeddings and expression."""

    genes: list[str]  # genes in order: those that all slides trained on have
    library: float  # counts that a tile's are scaled to: the median total of the training tiles
    # (n, n_genes) float16, log1p of the counts pooled over a tile's cells and scaled to library.
    expression: NDArray[np.float16]
    # Embeddings by scale, (n, d) float32.
    image: dict[str, NDArray[np.float32]]
    transcriptome: dict[str, NDArray[np.float32]]
    # Features of the image encoder, the means of the grids side by side, (n, d) float16.
    encoder: NDArray[np.float16]
    # Number of each tile's slide, and of its spatial block on any slide, (n,).
    slide: NDArray[np.int64]
    block: NDArray[np.int64]
    train: NDArray[np.bool_]  # which are training tiles, (n,); the others are validation tiles
    position: NDArray[np.float32]  # corner of each tile in tile sides, (n, 2)
    stain: NDArray[np.float32]  # that of each tile, (n, 6)


def build_reference(embedder: Embedder, slides: Sequence[Slide]) -> Reference:
    """Reference from the slides that a model was trained on; other slides, or ones without raw counts, are an error."""
    chosen = []
    roles = []
    blocks: list[NDArray[np.int64]] = []
    for slide in slides:
        role = embedder.data.roles.of(slide)
        which = np.flatnonzero(np.isin(role, ("train", "val")))
        if len(which):
            # Only these: the others may never have been encoded.
            chosen.append((embedder.tiles(slide, slide.tiles.take(which)), np.arange(len(which))))
            roles.append(role[which])
            first = blocks[-1].max() + 1 if blocks else 0
            block = Blocks().groups(slide.tiles, embedder.data.usable(slide, slide.tiles))[which]
            blocks.append(first + np.unique(block, return_inverse=True)[1])
    if not chosen:
        raise SetupError(
            "The model carries no expression to predict from, and its object holds none of the tiles it was trained on. Load "
            "it on the object it was trained on, save it again, and load that."
        )
    train = np.concatenate(roles) == "train"
    genes = common_genes([e.slide.table for e, _ in chosen])
    counts = chosen_counts(chosen, genes)
    library = median_total(counts[train])
    return Reference(
        genes=genes,
        library=library,
        expression=log_expression(counts, library).astype(np.float32).toarray().astype(np.float16),
        image=joined(chosen, "image"),
        transcriptome=joined(chosen, "transcriptome"),
        encoder=np.concatenate([encoder_features(embedder, e) for e, _ in chosen]),
        block=np.concatenate(blocks),
        slide=np.repeat(np.arange(len(chosen)), [len(which) for _, which in chosen]),
        train=train,
        position=np.concatenate([e.tiles.origins / e.tiles.side for e, _ in chosen]).astype(np.float32),
        stain=np.concatenate([tile_stain(e.slide, e.tiles) for e, _ in chosen]),
    )


def encoder_features(embedder: Embedder, embedding: SlideEmbedding) -> NDArray[np.float16]:
    """Features of the image encoder for embedded tiles: the mean over each grid, grids side by side, ``(n, d)``."""
    means = embedder.data.grid_means(embedding.slide, embedding.tiles, embedder.device)
    return np.concatenate(means, axis=1).astype(np.float16)


def reference_tensors(reference: Reference) -> dict[str, torch.Tensor]:
    """Expression, embeddings, slides and roles; genes and library are plain JSON."""
    arrays = {name: getattr(reference, name) for name in ARRAYS}
    for scale, values in reference.image.items():
        arrays[f"image.{scale}"] = values
    for scale, values in reference.transcriptome.items():
        arrays[f"transcriptome.{scale}"] = values
    return {PREFIX + name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}


def restore_reference(
    described: dict[str, Any], tensors: dict[str, torch.Tensor], scales: tuple[str, ...]
) -> Reference:
    """Rebuild what :func:`reference_tensors` gave, with genes and library."""

    def array(name: str) -> NDArray:
        return tensors[PREFIX + name].numpy().copy()

    return Reference(
        genes=described["genes"],
        library=described["library"],
        image={scale: array(f"image.{scale}") for scale in scales},
        transcriptome={scale: array(f"transcriptome.{scale}") for scale in scales},
        **{name: array(name) for name in ARRAYS},
    )
