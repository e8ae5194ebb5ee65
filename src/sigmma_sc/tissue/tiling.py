"""Tile squares, blocks and coverage, in H&E pixels of level 0 (paper, sections 5.1 and 5.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Tiles:
    """Square tiles of one slide.

    Attributes
    ----------
    side
        Side of a tile in px of level 0 (not an integer in general).
    origins
        Upper left corners in px, ``(n_tiles, 2)`` as (x, y).
    phase
        Tiles of one phase do not overlap, ``(n_tiles,)``; batches are drawn within a phase.
    indptr, cells
        Cells of tile ``t``: ``cells[indptr[t]:indptr[t + 1]]``, ascending positions in the slide's cells.
    """

    side: float
    origins: NDArray[np.float64]
    phase: NDArray[np.int64]
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
        lists = [self.cells[self.indptr[t] : self.indptr[t + 1]] for t in which]
        indptr = np.concatenate([[0], np.cumsum(self.n_cells[which])]).astype(np.int64)
        cells = np.concatenate(lists) if lists else np.empty(0, np.int64)
        return Tiles(self.side, self.origins[which], self.phase[which], indptr, cells)


def covering_tiles(xy: NDArray[np.float64], width: int, height: int, side: float) -> tuple[Tiles, NDArray[np.int64]]:
    """Tiles that cover the whole image, and each cell's own tile.

    The last column and row are shifted inwards, so that they end with the image; a cell that lies in two tiles belongs to
    the regular one. An image smaller than a tile gets one tile that reaches beyond it.

    Parameters
    ----------
    xy
        Cells in px, ``(n_cells, 2)``.
    width, height
        Image size in px.
    side
        Tile side in px.

    Returns
    -------
    The tiles in row-major order, and the tile of each cell ``(n_cells,)``, -1 for cells off the image.
    """
    counts = [max(1, int(np.ceil(extent / side - 1e-9))) for extent in (width, height)]
    starts = [
        np.minimum(np.arange(n) * side, max(0.0, extent - side))
        for n, extent in zip(counts, (width, height), strict=True)
    ]
    gx, gy = np.meshgrid(*starts)
    origins = np.column_stack([gx.ravel(), gy.ravel()])
    column, row = (np.minimum(xy[:, a] // side, counts[a] - 1).astype(np.int64) for a in (0, 1))
    inside = ((xy >= 0) & (xy < (width, height))).all(axis=1)
    own = np.where(inside, row * counts[0] + column, -1)
    return _with_cells(origins, np.zeros(len(origins), np.int64), xy, side), own


def shifted_tiles(xy: NDArray[np.float64], chosen: NDArray[np.int64], side: float, shift: NDArray[np.float64]) -> Tiles:
    """Every chosen cell in one tile of a grid moved by ``shift`` px, whether the tile lies on the image or not.

    Parameters
    ----------
    xy
        Cells in px, ``(n_cells, 2)``.
    chosen
        Cells to place, ascending positions.
    side
        Tile side in px.
    shift
        Corner of some tile of the grid, px.
    """
    corner = np.floor((xy[chosen] - shift) / side).astype(np.int64)
    origins, tile, counts = np.unique(corner, axis=0, return_inverse=True, return_counts=True)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    cells = chosen[np.argsort(tile.ravel(), kind="stable")]
    return Tiles(side, origins * side + shift, np.zeros(len(origins), np.int64), indptr, cells)


def lattice_tiles(xy: NDArray[np.float64], width: int, height: int, side: float, stride: float) -> Tiles:
    """Tiles at every lattice point of step ``stride`` px that lie wholly on the image; phase = offset in the lattice."""
    per_side = max(1, round(side / stride))
    steps = [
        np.arange(int((extent - side) / stride + 1e-9) + 1) if extent >= side else np.array([0])
        for extent in (width, height)
    ]
    gx, gy = np.meshgrid(*steps)
    phase = (gx % per_side) + per_side * (gy % per_side)
    origins = np.column_stack([gx.ravel(), gy.ravel()]) * stride
    return _with_cells(origins, phase.ravel().astype(np.int64), xy, side)


def _with_cells(origins: NDArray, phase: NDArray, xy: NDArray, side: float) -> Tiles:
    """Attach each tile's cells: x in [x0, x0 + side), likewise y."""
    from scipy.spatial import cKDTree

    # A hair wider than the half-open square, so that rounding of a shifted border tile loses no cell.
    reach = side * (1 + 1e-9)
    near = (
        cKDTree(xy).query_ball_point(origins + side / 2, side * 0.5001, p=np.inf, return_sorted=True) if len(xy) else []
    )
    lists = [np.asarray(found, np.int64) for found in near] or [np.empty(0, np.int64)] * len(origins)
    tile = np.repeat(np.arange(len(origins)), [len(found) for found in lists])
    cells = np.concatenate(lists) if len(lists) else np.empty(0, np.int64)
    offset = xy[cells] - origins[tile]
    keep = ((offset >= 0) & (offset < reach)).all(axis=1)
    counts = np.bincount(tile[keep], minlength=len(origins))
    return Tiles(side, origins, phase, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), cells[keep])


def block_of(offset: NDArray[np.float64], side: float, grid: int) -> NDArray[np.int64]:
    """Block of each cell in a tile cut into ``grid`` × ``grid`` blocks (paper, section 5.2).

    Parameters
    ----------
    offset
        Cells relative to their tile's corner, px, ``(n, 2)``.
    side
        Tile side in px.
    grid
        Blocks per side.

    Returns
    -------
    Row-major block index ``(n,)``, floor(grid · offset / side) clipped into the tile.
    """
    column, row = np.clip(np.floor(grid * offset / side).astype(np.int64), 0, grid - 1).T
    return row * grid + column


def crops_of_tiles(tiles: Tiles, grids: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Image crops of every patch of every grid, each distinct crop once.

    Overlapping tiles whose corners lie on a common lattice share most of their patches; a shared patch is encoded once.

    Returns
    -------
    crops
        ``(n_crops, 3)`` as (x, y, side) in px.
    index
        ``(n_tiles, sum(b * b))``, the crop of each patch, grids in the given order, row-major within a grid.
    """
    boxes = []
    for b in grids:
        step = tiles.side / b
        gy, gx = np.divmod(np.arange(b * b), b)
        corners = tiles.origins[:, None, :] + np.stack([gx, gy], axis=-1)[None] * step
        boxes.append(np.concatenate([corners, np.full((*corners.shape[:2], 1), step)], axis=-1))
    flat = np.concatenate(boxes, axis=1).reshape(-1, 3)
    _, first, inverse = np.unique(np.round(flat, 3), axis=0, return_index=True, return_inverse=True)
    return flat[first], inverse.reshape(len(tiles), -1).astype(np.int64)
