"""Embeddings of one scale or of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sigmma_sc.infer.embed import SlideEmbedding

    Scales = dict[str, NDArray[np.float32]]


def at_scale(values: Scales, scale: str) -> NDArray[np.float32]:
    """Embeddings of one scale, or for ``"all"`` the unit vectors of every scale side by side."""
    if scale != "all":
        return values[scale]
    return np.concatenate([unit(value) for value in values.values()], axis=1)


def unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length one; a row of zeros stays."""
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def joined(chosen: Sequence[tuple[SlideEmbedding, NDArray[np.int64]]], tower: str) -> Scales:
    """Embeddings of chosen tiles of several slides by scale; ``tower`` is ``"image"`` or ``"transcriptome"``."""
    out = {}
    for scale in chosen[0][0].tower(tower):
        out[scale] = np.concatenate([e.tower(tower)[scale][which] for e, which in chosen])
    return out
