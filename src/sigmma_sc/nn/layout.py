"""Lay the cells of some tiles out in blocks, see :mod:`sigmma_sc.nn.pairs`."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sigmma_sc.nn.pairs import Bucket, CellLayout


class Limits(NamedTuple):
    """How blocks are joined into buckets."""

    # Largest block of a bucket over its smallest, by shell; the last is for all further ones. Small blocks waste little, and
    # many buckets cost calls.
    spread: tuple[float, ...]
    # Pairs in a bucket, for memory: what is computed on the way is of this size.
    pairs: int


CPU_LIMITS = Limits((1.5, 1.25), 2**18)
GPU_LIMITS = Limits((2.0, 2.0), 2**22)
"""A GPU starts a call more slowly than it computes pairs that are padding."""


def limits_of(device: torch.device) -> Limits:
    """Limits of the device that will compute."""
    return CPU_LIMITS if device.type == "cpu" else GPU_LIMITS


def cell_layout(
    indptr: NDArray[np.int64],
    blocks: NDArray[np.int64],
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    limits: Limits = CPU_LIMITS,
) -> CellLayout:
    """Slots of a batch's cells; ``indptr`` ``(n_tiles + 1,)`` is the first cell of each tile and one past the last.

    ``blocks`` ``(n_scales, n_cells)`` is the block of each cell at every grid, fine to coarse; each grid divides the
    one before. Spatial edges from ``source`` to ``target`` lie within blocks of the finest grid.
    """
    counts = np.diff(indptr)
    tile = np.repeat(np.arange(len(counts)), counts)
    n = len(tile)
    buckets: list[Bucket] = []
    cells = [np.zeros(0, np.int64)]
    inner = [np.zeros(0, np.float32)]
    slot = []
    start = 0
    units = np.arange(n)
    micro = np.zeros(0, bool)
    # Where there is a single grid, its blocks hold the spatial edges.
    for shell, block in enumerate(blocks[1:] if len(blocks) > 1 else blocks):
        before = units
        units = tile * (block.max(initial=0) + 1) + block
        mine = np.full(n, -1)
        for index in _buckets(units, limits.spread[min(shell, len(limits.spread) - 1)], limits.pairs):
            n_blocks, size = index.shape
            buckets.append(Bucket(shell, n_blocks, size, start))
            there = index < n
            mine[index[there]] = start + np.flatnonzero(there)
            cells.append(index.ravel())
            # A slot of padding is no cell's: whatever it is paired with, its row of zeros sends no message. Numbers are small, so that
            # floats hold them.
            number = np.append(before, 0)[index]
            inner.append((number - number[:, :1]).ravel().astype(np.float32))
            start += index.size
        slot.append(mine)
        if shell == 0:
            micro = _adjacency(buckets, mine, source, target)
    slots = np.stack(slot)
    slots[slots < 0] = start
    return CellLayout(
        buckets=tuple(buckets),
        cell=torch.from_numpy(np.concatenate(cells)),
        inner_block=torch.from_numpy(np.concatenate(inner)),
        slot=torch.from_numpy(slots),
        micro=torch.from_numpy(micro),
        tile=torch.from_numpy(tile),
        n_tiles=len(counts),
    )


def _buckets(units: NDArray[np.int64], spread: float, max_pairs: int) -> list[NDArray[np.int64]]:
    """Cells of blocks of two cells and more, ``(n, size)`` each, padded with ``n_cells``."""
    order = np.argsort(units, kind="stable")
    _, first, sizes = np.unique(units[order], return_index=True, return_counts=True)
    by_size = np.argsort(sizes, kind="stable")
    by_size = by_size[sizes[by_size] > 1]
    first = first[by_size]
    sizes = sizes[by_size]
    out: list[NDArray[np.int64]] = []
    begin = 0
    padded = np.append(order, len(units))
    while begin < len(sizes):
        end = begin + int(np.searchsorted(sizes[begin:], max(4, spread * sizes[begin]), side="right"))
        end = min(end, begin + max(1, max_pairs // int(sizes[end - 1]) ** 2))
        slots = np.arange(sizes[end - 1])
        inside = slots < sizes[begin:end, None]
        out.append(padded[np.where(inside, first[begin:end, None] + slots, len(units))])
        begin = end
    return out


def _adjacency(
    buckets: list[Bucket], slot: NDArray[np.int64], source: NDArray[np.int64], target: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Spatial edges as a matrix for each block, one after the other: row v, column u."""
    areas = np.array([b.n * b.size**2 for b in buckets], dtype=np.int64)
    out = np.zeros(int(areas.sum()), bool)
    if not len(source):
        return out
    starts = np.array([b.start for b in buckets], dtype=np.int64)
    sizes = np.array([b.size for b in buckets], dtype=np.int64)
    v = slot[target]
    u = slot[source]
    bucket = np.searchsorted(starts, v, side="right") - 1
    before = (np.cumsum(areas) - areas)[bucket]
    size = sizes[bucket]
    # Row v of the bucket's blocks, one under the other, and u's column in its block.
    out[before + (v - starts[bucket]) * size + (u - starts[bucket]) % size] = True
    return out
