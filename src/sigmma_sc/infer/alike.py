"""How alike a tile is to the tissue that a model was trained on, in stain and in the features of the image encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.infer.reference import Reference

NEIGHBOURS = 5
"""Training tiles to which the mean distance is taken: a single one may be odd itself."""

FEWEST = 20
"""Tiles of other blocks, or slides, from which a usual distance can be told."""

STAIN, FEATURES = "stain", "image features"
"""What a tile may be unlike in."""


@dataclass(frozen=True)
class View:
    """Tiles seen in one way: their features, centred and scaled by the training tiles, and usual distances."""

    mean: NDArray[np.float32]  # of the training tiles, (d,)
    std: NDArray[np.float32]
    train: NDArray[np.float32]  # features of the training tiles, (n, d)
    usual: NDArray[np.float64]  # distances of tiles to training tiles of other groups, ascending, (m,)

    @classmethod
    def of(cls, features: NDArray, train: NDArray[np.bool_], group: NDArray[np.int64]) -> View:
        """View of features ``(n, d)``; a tile's usual distance is to the training tiles outside its ``group`` ``(n,)``."""
        mean = features[train].mean(axis=0, dtype=np.float64).astype(np.float32)
        std = features[train].std(axis=0, dtype=np.float64).astype(np.float32)
        std[std <= 1e-6] = 1
        scaled = (features - mean) / std
        usual = []
        for g in np.unique(group):
            others = train & (group != g)
            if others.any():
                usual.append(distances(scaled[group == g], scaled[others]))
        return cls(mean, std, scaled[train], np.sort(np.concatenate(usual)) if usual else np.empty(0))

    def share(self, features: NDArray) -> NDArray[np.float64]:
        """Share of usual distances that are as large as those of features ``(m, d)``, or larger, ``(m,)``."""
        found = distances((features - self.mean) / self.std, self.train)
        return 1 - np.searchsorted(self.usual, found) / len(self.usual)


@dataclass(frozen=True)
class Likeness:
    """What is usual among the training and validation tiles of a model."""

    stain: View
    features: View

    @classmethod
    def of(cls, reference: Reference) -> Likeness:
        """Likeness of a model's tiles, or :class:`SetupError` if it does not hold enough of them.

        With training tiles of several slides, distances are to tiles of other slides. A new slide is then as unlike as
        these are to each other. With one slide they are to tiles of other spatial blocks.
        """
        train = reference.train
        group = reference.slide if len(np.unique(reference.slide[train])) > 1 else reference.block
        stain = View.of(reference.stain, train, group)
        if len(stain.usual) < FEWEST:
            raise SetupError(
                f"The model holds {len(stain.usual)} tiles with training tiles in other blocks, and {FEWEST} are needed to tell "
                "which distances are usual. Train on more tissue."
            )
        return cls(stain, View.of(reference.encoder.astype(np.float32), train, group))

    def __call__(self, stain: NDArray[np.float32], encoder: NDArray[np.float16]) -> pd.DataFrame:
        """Columns ``sigmma_alike`` and ``sigmma_least_alike`` of tiles with a stain ``(n, 6)`` and features ``(n, d)``.

        The smaller share of the two views is doubled, as there were two chances to be small.
        """
        by_stain = self.stain.share(stain)
        by_features = self.features.share(encoder.astype(np.float32))
        least = np.where(by_stain <= by_features, STAIN, FEATURES)
        return pd.DataFrame(
            {
                _keys.ALIKE: np.minimum(1, 2 * np.minimum(by_stain, by_features)),
                _keys.LEAST_ALIKE: pd.Categorical(least, [STAIN, FEATURES]),
            }
        )


def distances(query: NDArray[np.float32], keys: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean distance of each of ``query`` ``(m, d)`` to its nearest :data:`NEIGHBOURS` of ``keys`` ``(n, d)``."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(keys)), algorithm="brute").fit(keys)
    return nearest.kneighbors(query)[0].mean(axis=1)
