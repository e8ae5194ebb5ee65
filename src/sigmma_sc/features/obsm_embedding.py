"""Node features that the user brings: an embedding of the cells in ``obsm``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc.errors import SetupError
from sigmma_sc.features.node_features import NodeFeatures
from sigmma_sc.tissue.counts import embedding_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sigmma_sc.features.node_features import Training
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles


class ObsmEmbedding(NodeFeatures):
    """Rows of ``obsm[features_key]`` of each slide's own setup."""

    width: int | None = None  # columns of the embedding; None before fit

    def fit(self, training: Training) -> None:
        """Remember the width of the embedding, or raise :class:`SetupError` if it is the same for all cells."""
        values = [self.transform(slide, slide.tiles) for slide, _ in training]
        lowest = np.min([rows.min(axis=0) for rows in values], axis=0)
        highest = np.max([rows.max(axis=0) for rows in values], axis=0)
        if np.array_equal(lowest, highest):
            key = _key_of(training[0][0])
            raise SetupError(
                f"obsm[{key!r}] is the same for every cell, {lowest[:3].tolist()} …. Name another embedding."
            )
        self.width = len(lowest)

    def transform(self, slide: Slide, tiles: Tiles) -> NDArray[np.float32]:
        """Rows of the embedding, or :class:`SetupError` for one that is not finite."""
        key = _key_of(slide)
        values = embedding_rows(slide.table, key, slide.rows)
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise SetupError(
                f"obsm[{key!r}] has {int(bad.sum()):,} rows that are not finite, e.g. cell "
                f"{slide.table.obs_names[slide.rows[bad][0]]!r}. Fill or remove these cells first."
            )
        return values

    def check(self, slide: Slide) -> None:
        """Read the embedding."""
        self.transform(slide, slide.tiles)

    def differences(self, slide: Slide) -> Iterator[str]:
        """Another width."""
        key = _key_of(slide)
        width = slide.table.obsm[key].shape[1]
        if self.width is not None and width != self.width:
            yield f"obsm[{key!r}] has {width} columns here and {self.width} in the model"

    def state(self) -> dict[str, Any]:
        """Width of the embedding."""
        return {"width": self.width}

    def restore(self, state: dict[str, Any]) -> None:
        """Set the width."""
        self.width = state["width"]


def _key_of(slide: Slide) -> str:
    key = slide.setup.features_key
    if key is None:
        raise SetupError(f"Slide {slide.name!r} was set up without features_key=…, which node_features='obsm' needs.")
    return key
