"""Arrays as text that a page decodes into typed arrays, in the byte order of browsers."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 2**16 - 1
"""Largest value of a position: the right or lower edge of the image."""

NO_SHARE = 255
"""Stands for a share that is missing."""


def packed(values: NDArray[np.unsignedinteger]) -> dict[str, str]:
    """Type and base64 text of unsigned integers, little-endian."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return {"type": f"u{8 * values.dtype.itemsize}", "data": base64.b64encode(little.tobytes()).decode("ascii")}


def positions(xy: NDArray[np.float64], width: int, height: int) -> NDArray[np.uint16]:
    """Positions ``(n, 2)`` in px as 65,535ths of the image's width and height; those beyond an edge are on it."""
    shares = np.clip(xy / (width, height), 0, 1)
    return np.round(shares * MOST).astype(np.uint16)


def codes(values: NDArray[np.int64], n: int) -> NDArray[np.unsignedinteger]:
    """Numbers below ``n`` in the smallest type that holds them; a negative one is the largest value of the type."""
    kinds: tuple[type[np.unsignedinteger], ...] = (np.uint8, np.uint16, np.uint32)
    kind = next(k for k in kinds if n <= np.iinfo(k).max)
    return np.where(values < 0, np.iinfo(kind).max, values).astype(kind)


def percents(shares: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Shares between 0 and 1 as whole percents; :data:`NO_SHARE` for NaN."""
    known = np.isfinite(shares)
    out = np.full(len(shares), NO_SHARE, np.uint8)
    out[known] = np.round(100 * np.clip(shares[known], 0, 1)).astype(np.uint8)
    return out
