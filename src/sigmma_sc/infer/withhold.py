"""Predictions for tiles that are unlike the training tissue: withheld, with one sentence that says how many and why."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc.errors import SetupError, UnlikeWarning
from sigmma_sc.features.data import MIN_TISSUE
from sigmma_sc.features.tile_stain import tile_stain
from sigmma_sc.infer.alike import FEATURES, STAIN, Likeness
from sigmma_sc.infer.reference import encoder_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from sigmma_sc.infer.embed import Embedder, SlideEmbedding
    from sigmma_sc.infer.reference import Reference


def judge(
    out: AnnData,
    reference: Reference,
    embeddings: Sequence[SlideEmbedding],
    encoder: NDArray[np.float16],
    level: float | None,
) -> None:
    """Add the likeness of predicted tiles to ``obs``, and withhold those that are alike to ``level`` at most.

    ``encoder`` ``(n, d)`` are their features of the image encoder. Values and layers of withheld tiles are NaN. The sentence
    is warned of, and kept in ``uns``. A model that cannot tell withholds nothing, and warns.
    """
    try:
        likeness = Likeness.of(reference)
    except SetupError as error:
        if level is not None:
            warnings.warn(f"No tile is withheld. {error}", UnlikeWarning, stacklevel=4)
        return
    columns = likeness(np.concatenate([tile_stain(e.slide, e.tiles) for e in embeddings]), encoder)
    out.obs = out.obs.assign(**{name: columns[name].array for name in columns})
    if level is None:
        return
    withheld = unlike(out.obs, level)
    for values in (out.X, *out.layers.values()):
        values[withheld] = np.nan
    told = sentence(out.obs, withheld)
    out.uns[_keys.UNS] |= {"withhold": level, "unlike": told}
    warn_unlike(told, stacklevel=4)


def with_likeness(
    tiles: pd.DataFrame, likeness: Likeness, embedder: Embedder, embedding: SlideEmbedding | None
) -> pd.DataFrame:
    """``obs`` of the tiles of a slide with their likeness; missing for a slide that is not to be judged, ``None``."""
    if embedding is None:
        nothing = pd.Categorical([None] * len(tiles), [STAIN, FEATURES])
        return tiles.assign(**{_keys.ALIKE: np.nan, _keys.LEAST_ALIKE: nothing})
    columns = likeness(tile_stain(embedding.slide, embedding.tiles), encoder_features(embedder, embedding))
    return tiles.assign(**{name: columns[name].array for name in columns})


def unlike(tiles: pd.DataFrame, level: float) -> NDArray[np.bool_]:
    """Which tiles are alike to ``level`` at most; those that were not judged are not among them."""
    return (tiles[_keys.ALIKE] <= level).to_numpy()


def sentence(tiles: pd.DataFrame, which: NDArray[np.bool_]) -> str:
    """How many of the tiles with tissue are unlike the training tissue, and in what; empty if none is."""
    shown = (tiles["tissue"] >= MIN_TISSUE).to_numpy()
    n = int((which & shown).sum())
    if not n:
        return ""
    causes = tiles[_keys.LEAST_ALIKE][which & shown].value_counts()
    causes = causes[causes > 0]
    reasons = " and ".join(
        f"{cause}" if len(causes) == 1 else f"{cause} ({count / shown.sum():.0%})" for cause, count in causes.items()
    )
    return f"{n / shown.sum():.0%} of the tiles with tissue are unlike the training tissue: {reasons}."


def warn_unlike(told: str, stacklevel: int) -> None:
    """Warn with the sentence, if there is one, that these tiles are withheld."""
    if told:
        warnings.warn(
            f"{told} Their predictions are withheld (NaN). withhold=None keeps them.",
            UnlikeWarning,
            stacklevel=stacklevel + 1,
        )
