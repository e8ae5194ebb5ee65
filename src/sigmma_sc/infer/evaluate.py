"""Which tiles are scored, and Task 1 on them: expression from image embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sigmma_sc._checks import require_choice
from sigmma_sc.errors import SetupError
from sigmma_sc.metrics.expression import expression_probe
from sigmma_sc.tissue.setup import get_table, stored_setup
from sigmma_sc.features.nodes import pooled_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.infer.embed import SlideEmbedding

    Chosen = list[tuple[SlideEmbedding, NDArray[np.int64]]]


def chosen_tiles(model: Any, sdata: Any, split: str) -> Chosen:
    """Embedded slides, each with its tiles of a split that hold tissue and enough cells.

    Of a slide that was not trained on, every such tile is chosen, whatever the split.
    """
    require_choice(split, ("train", "val", "test", "all"), "split")
    model._trained()
    chosen = []
    for slide in model.data.slides(model._resolve(sdata, cells=True)):
        if slide.region is None:
            raise SetupError(
                f"Image {slide.image_key!r} has no cells to score it by; set up with table_key=… to evaluate."
            )
        tiles, _ = model.data.covering(slide)
        role, usable = model.data.roles_of(slide, len(tiles)), model.data.usable(slide, tiles)
        everything = split == "all" or (sdata is not None and (role == "unseen").all())
        chosen.append(np.flatnonzero(usable if everything else usable & (role == split)))
    if not any(map(len, chosen)):
        raise SetupError(
            f"No tile belongs to split={split!r}: the model was trained with split={model.data.split!r}, and a tile needs "
            f"{model.config.min_cells} cells and stained tissue. split='all' takes every tile that has them."
        )
    return list(zip(model._embed(sdata), chosen, strict=True))


def expression_table(model: Any, train: Chosen, test: Chosen, protocol: str) -> pd.DataFrame:
    """Per gene figures of the aligned embedding, the frozen encoder and the gene mean."""
    first = get_table(train[0][0].slide.sdata, stored_setup(train[0][0].slide.sdata) or model.setup)
    genes = list(map(str, first.var_names))
    train_counts, test_counts = (chosen_counts(model, part, genes) for part in (train, test))
    slides = np.concatenate([np.full(len(which), e.slide.name) for e, which in test])
    tables = [
        expression_probe(
            features(model, train),
            train_counts,
            features(model, test),
            test_counts,
            genes,
            protocol=protocol,
            groups=slides,
        )
        for features in (_aligned, _frozen)
    ]
    return tables[0].assign(pcc_frozen=tables[1]["pcc"].to_numpy(), mse_frozen=tables[1]["mse"].to_numpy())


def _aligned(model: Any, chosen: Chosen) -> NDArray[np.float32]:
    return np.concatenate([np.concatenate([z[which] for z in e.image.values()], axis=1) for e, which in chosen])


def _frozen(model: Any, chosen: Chosen) -> NDArray[np.float32]:
    """Features of the encoder as it came: mean over each grid, grids side by side."""
    sizes = np.cumsum([b * b for b in model.setup.grids])[:-1]
    out = []
    for e, which in chosen:
        features, index = model.data.patches(e.slide, e.tiles.take(which), model.device, pretrained=True)
        patches = features.float().numpy()[index]
        out.append(np.concatenate([part.mean(axis=1) for part in np.split(patches, sizes, axis=1)], axis=1))
    return np.concatenate(out)


def chosen_counts(model: Any, chosen: Chosen, genes: list[str]) -> csr_matrix:
    """Raw counts pooled over each tile's cells, ``(n_tiles, n_genes)``."""
    from scipy.sparse import vstack

    pooled = []
    for e, which in chosen:
        table = get_table(e.slide.sdata, stored_setup(e.slide.sdata) or model.setup)
        pooled.append(pooled_counts(table, e.slide.rows, e.tiles.take(which), genes, model.setup.layer))
    return vstack(pooled, format="csr")
