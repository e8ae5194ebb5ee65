"""Tile squares, blocks and coverage, in H&E pixels of level 0 (paper, sections 5.1 and 5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tiles:
    """Square tiles of one slide."""

    side: float  # side of a tile in px of level 0 (not an integer in general)
    origins: NDArray[np.float64]  # upper left corners in px, (n_tiles, 2) as (x, y)
    phase: NDArray[np.int64]  # tiles of one phase do not overlap, (n_tiles,); batches are drawn within a phase
    # Cells of tile t: cells[indptr[t]:indptr[t + 1]], ascending positions in the slide's cells.
    indptr: NDArray[np.int64]
    cells: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def n_cells(self) -> NDArray[np.int64]:
        """Number of cells of each tile."""
        return np.diff(self.indptr)

    def take(self, which: NDArray[np.int64]) -> Tiles:
        """The tiles at positions ``which``, in that order."""
        counts = self.n_cells[which]
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        cells = self.cells[np.arange(indptr[-1]) + np.repeat(self.indptr[which] - indptr[:-1], counts)]
        return Tiles(self.side, self.origins[which], self.phase[which], indptr, cells)


def covering_tiles(xy: NDArray[np.float64], width: int, height: int, side: float) -> tuple[Tiles, NDArray[np.int64]]:
    """Tiles that cover the whole image of ``width`` × ``height`` px in row-major order, and the tile of each cell.

    The last column and row are shifted inwards, so that they end with the image. A cell in two tiles belongs to the
    regular one. An image smaller than a tile gets one tile that is larger than the image. Cells off the image have tile
    -1.
    """
    counts = [max(1, int(np.ceil(extent / side - 1e-9))) for extent in (width, height)]
    starts = [
        np.minimum(np.arange(n) * side, max(0.0, extent - side))
        for n, extent in zip(counts, (width, height), strict=True)
    ]
    column = np.minimum(xy[:, 0] // side, counts[0] - 1).astype(np.int64)
    row = np.minimum(xy[:, 1] // side, counts[1] - 1).astype(np.int64)
    inside = ((xy >= 0) & (xy < (width, height))).all(axis=1)
    tile_of_cell = np.where(inside, row * counts[0] + column, -1)
    return _grid(starts, np.zeros(counts[0] * counts[1], np.int64), xy, side), tile_of_cell


def shifted_tiles(xy: NDArray[np.float64], chosen: NDArray[np.int64], side: float, shift: NDArray[np.float64]) -> Tiles:
    """Every chosen cell in one tile of a grid moved by ``shift`` (x, y) px; tiles may extend beyond the image.

    ``chosen`` are ascending positions in the cells ``xy`` ``(n_cells, 2)`` in px.
    """
    corner = np.floor((xy[chosen] - shift) / side).astype(np.int64)
    keys = _as_one(corner)
    order = np.argsort(keys, kind="stable")
    _, first, counts = np.unique(keys[order], return_index=True, return_counts=True)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    origins = corner[order[first]] * side + shift
    return Tiles(side, origins, np.zeros(len(origins), np.int64), indptr, chosen[order])


def quasi_random_shifts(n: int) -> NDArray[np.float64]:
    """The first ``n`` points of the R2 sequence in the unit square, ``(n, 2)``; the first is the origin.

    Any number of them in a row covers the square more evenly than random points do, and without the rows and columns of a
    lattice (Roberts 2018, *The unreasonable effectiveness of quasirandom sequences*).
    """
    plastic = 1.324717957244746  # the real root of x³ = x + 1
    return np.outer(np.arange(n), [1 / plastic, 1 / plastic**2]) % 1


def lattice_tiles(xy: NDArray[np.float64], width: int, height: int, side: float, stride: float) -> Tiles:
    """Tiles wholly on the image at every lattice point of step ``stride`` px; phase = offset in the lattice."""
    per_side = max(1, round(side / stride))
    steps = [
        np.arange(int((extent - side) / stride + 1e-9) + 1) if extent >= side else np.array([0])
        for extent in (width, height)
    ]
    gx, gy = np.meshgrid(*steps)
    phase = (gx % per_side) + per_side * (gy % per_side)
    return _grid([step * stride for step in steps], phase.ravel().astype(np.int64), xy, side)


def _grid(starts: Sequence[NDArray], phase: NDArray[np.int64], xy: NDArray[np.float64], side: float) -> Tiles:
    """Tiles at each of the ascending ``starts`` along x and y, row by row, with their cells: x0 ≤ x < x0 + side."""
    # Slightly wider than the half-open square, so that rounding of a shifted border tile loses no cell.
    reach = side * (1 + 1e-9)
    x, y = starts
    column, columns = _starts_of(x, xy[:, 0], reach)
    row, rows = _starts_of(y, xy[:, 1], reach)
    cell = np.repeat(np.arange(len(xy)), columns * rows)
    nth = np.arange(len(cell)) - np.repeat(np.cumsum(columns * rows) - columns * rows, columns * rows)
    down, across = np.divmod(nth, columns[cell])
    tile = (row[cell] + down) * len(x) + column[cell] + across
    counts = np.bincount(tile, minlength=len(x) * len(y))
    cells = cell[np.argsort(tile, kind="stable")]
    origins = np.column_stack([np.tile(x, len(y)), np.repeat(y, len(x))]).astype(float)
    return Tiles(side, origins, phase, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), cells)


def _starts_of(starts: NDArray, at: NDArray[np.float64], reach: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the ascending ``starts`` are at most ``reach`` below each value: the first, and how many."""
    first = np.searchsorted(starts, at - reach, side="right")
    return first, np.searchsorted(starts, at, side="right") - first


def _as_one(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs ``(n, 2)`` of whole numbers as one number each, in the same order: rows are many times slower to sort."""
    low, high = (pairs.min(axis=0), pairs.max(axis=0)) if len(pairs) else (np.zeros(2, np.int64),) * 2
    first, second = (pairs - low).T
    return first * (high[1] - low[1] + 1) + second


def block_of(offset: NDArray[np.float64], side: float, grid: int) -> NDArray[np.int64]:
    """Block of each cell in a tile cut into ``grid`` × ``grid`` blocks (paper, section 5.2), row-major, ``(n,)``.

    It is floor(grid · offset / side), clipped into the tile; ``offset`` ``(n, 2)`` is from the tile's corner, in px.
    """
    column, row = np.clip(np.floor(grid * offset / side).astype(np.int64), 0, grid - 1).T
    return row * grid + column


def crops_of_tiles(tiles: Tiles, grids: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Image crops ``(n_crops, 3)`` as (x, y, side) in px of every patch of every grid, each distinct crop once.

    Overlapping tiles with corners on a common lattice share most of their patches. A shared patch is encoded once. The
    crop of each patch ``(n_tiles, sum(b * b))`` has grids in the given order, row-major within a grid.
    """
    crops = []
    index = []
    n = 0
    for b in grids:
        step = tiles.side / b
        gy, gx = np.divmod(np.arange(b * b), b)
        corners = (tiles.origins[:, None, :] + np.stack([gx, gy], axis=-1)[None] * step).reshape(-1, 2)
        keys = _as_one(np.round(corners * 1000).astype(np.int64))
        first, inverse = np.unique(keys, return_index=True, return_inverse=True)[1:]
        crops.append(np.column_stack([corners[first], np.full(len(first), step)]))
        index.append(n + inverse.reshape(len(tiles), b * b))
        n += len(first)
    return np.concatenate(crops), np.concatenate(index, axis=1).astype(np.int64)
