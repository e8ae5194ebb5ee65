"""Order of decoding an image, such that every stored chunk is decoded once and little is kept in memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 2048
"""Chunks with a side below this, px, are decoded together."""


@dataclass(frozen=True)
class Block:
    """A rectangle of whole chunks, in px of the level read."""

    # Position in the grid of blocks.
    row: int
    column: int
    # Corners (x, y). The last row and column extend beyond the image, as windows do.
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    # Corners (x, y) of the part of this block that windows need.
    need_low: NDArray[np.int64]
    need_high: NDArray[np.int64]
    # Windows with their bottom right corner in this block: its neighbours above and to the left hold the rest.
    windows: NDArray[np.int64]


def plan_blocks(
    chunks: tuple[tuple[int, ...], tuple[int, ...]], low: NDArray[np.int64], high: NDArray[np.int64], reach: int
) -> list[Block]:
    """Blocks that windows need, row by row, for chunk lengths along y and x.

    A window, with corners ``low`` and ``high`` (x, y) in px, ``(n, 2)``, is assigned to the block that holds its bottom
    right corner. Of earlier blocks it needs at most ``reach`` px, the side of the largest window, above and to the left
    of that block, which is all that a reader has to keep. No window is further than ``reach`` from the image.
    """
    columns = _joined(chunks[1], max(BLOCK, reach))
    # Where a chunk is as wide as the slide (TIFF strips), a block is kept low.
    rows = _joined(chunks[0], max(reach, BLOCK**2 // int(np.diff(columns).max())))
    shape = np.array([len(columns), len(rows)]) - 1
    first = _block_at(low, (columns, rows))
    last = _block_at(high - 1, (columns, rows))
    window, at = _pairs(first, last)
    number = at[:, 1] * shape[0] + at[:, 0]
    need_low = np.full((shape.prod(), 2), np.iinfo(np.int64).max)
    need_high = np.full((shape.prod(), 2), -reach)
    np.minimum.at(need_low, number, low[window])
    np.maximum.at(need_high, number, high[window])
    ends_in = last[:, 1] * shape[0] + last[:, 0]
    order = np.argsort(ends_in, kind="stable")
    blocks = []
    for n in np.unique(number):
        row, column = divmod(int(n), int(shape[0]))
        corner = np.array([columns[column], rows[row]])
        far = np.array([columns[column + 1], rows[row + 1]]) + reach * (np.array([column, row]) == shape - 1)
        members = order[slice(*np.searchsorted(ends_in[order], [n, n + 1]))]
        box_low = need_low[n].clip(corner, far)
        box_high = need_high[n].clip(corner, far)
        blocks.append(Block(row, column, corner, far, box_low, box_high, members))
    return blocks


def _block_at(pixels: NDArray[np.int64], edges: tuple[NDArray[np.int64], ...]) -> NDArray[np.int64]:
    """Block (column, row) that holds each of some pixels (x, y), ``(n, 2)``, or the nearest one to those off the image."""
    return np.column_stack(
        [np.searchsorted(e, pixels[:, d].clip(0, e[-1] - 1), side="right") - 1 for d, e in enumerate(edges)]
    )


def _joined(chunks: tuple[int, ...], least: int) -> NDArray[np.int64]:
    """Edges of blocks: whole chunks, joined until they measure at least ``least`` px."""
    edges = [0]
    ends = np.cumsum(chunks)
    for end in ends:
        if end - edges[-1] >= least or end == ends[-1]:
            edges.append(int(end))
    return np.array(edges)


def _pairs(first: NDArray[np.int64], last: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a window and a block that it touches: window ``(p,)``, and (column, row) of the block, ``(p, 2)``."""
    across = last - first + 1
    count = across.prod(axis=1)
    window = np.repeat(np.arange(len(first)), count)
    nth = np.arange(len(window)) - np.repeat(np.cumsum(count) - count, count)
    row, column = np.divmod(nth, across[window, 0])
    return window, first[window] + np.column_stack([column, row])
