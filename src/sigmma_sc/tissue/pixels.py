"""Streaming reader of image crops: each stored chunk is decoded once, and all its crops are cut from it."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sigmma_sc.tissue.blank import BLACK, GLASS, padding_width, without_padding
from sigmma_sc.tissue.blocks import Block, plan_blocks
from sigmma_sc.tissue.decode import decode, paint, planes_read
from sigmma_sc.tissue.frame import Slide, image_levels
from sigmma_sc.tissue.levels import level_frames

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import xarray as xr
    from numpy.typing import NDArray


GROUP = 128
"""Number of crops yielded at once."""

TASKS = 16
"""Number of thread tasks for a group of crops; a task for each crop would cost as much as a small crop."""


@dataclass(frozen=True)
class Canvas:
    """Decoded pixels of a level, and the crops to cut from them; all positions are in px of the level from its corner."""

    pixels: NDArray[np.uint8]  # (h, w, 3); overwritten when the canvas after the next is read
    crops: NDArray[np.int64]  # which crops, ordered by side, x and y, (n,)
    # Corners (x, y) of the window of whole pixels that each crop is resampled from, (n, 2).
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    inner: NDArray[np.float64]  # where in its window each crop begins, (n, 2)
    side: NDArray[np.float64]  # side of each crop, (n,)
    padding: int  # width of a square of black padding, which is glass; 0 if no pixel is black


def read_crops(
    slide: Slide, crops: NDArray[np.float64], size: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Read square crops ``(n, 3)`` as (x, y, side) in px of level 0, resampled to ``size``² with antialiasing.

    Crops are at fractional positions and are never rounded to pixels. A crop on whole pixels of its level that needs no
    resampling is copied. A crop's pixels do not depend on what else is read with it, nor on how the image is stored.
    See :func:`read_canvases` for the rest.

    Yields positions of the crops ``(k,)``, 128 but for the last group, with their pixels ``(k, size, size, 3)`` uint8
    RGB.
    """
    with ThreadPoolExecutor() as workers:
        for canvas, some, begin, length in in_groups(read_canvases(slide, crops, size), len(crops)):
            if not begin:
                index = np.empty(length, np.int64)
                pixels = np.empty((length, size, size, 3), np.uint8)
            end = begin + some.stop - some.start
            at = canvas.low[some], canvas.high[some], canvas.inner[some], canvas.side[some], pixels[begin:end]
            cut = partial(_cut, canvas.pixels, canvas.padding)
            list(workers.map(cut, *(np.array_split(part, TASKS) for part in at)))
            index[begin:end] = canvas.crops[some]
            if end == length:
                yield index, pixels


def in_groups(canvases: Iterable[Canvas], n: int) -> Iterator[tuple[Canvas, slice, int, int]]:
    """Groups of 128 of ``n`` crops, the last one of fewer, filled from one canvas after the other.

    Yields a canvas, which of its crops are next, where in the group they begin, and the length of the group.
    """
    left = n
    filled = 0
    for canvas in canvases:
        begin = 0
        while begin < len(canvas.crops):
            length = min(GROUP, left)
            end = min(len(canvas.crops), begin + length - filled)
            yield canvas, slice(begin, end), filled, length
            filled += end - begin
            begin = end
            if filled == length:
                left -= length
                filled = 0


def read_canvases(slide: Slide, crops: NDArray[np.float64], size: int) -> Iterator[Canvas]:
    """Read the pixels that square crops ``(n, 3)`` as (x, y, side) in px of level 0 are resampled from to ``size``².

    The pyramid level is the coarsest that still holds at least one pixel for each output pixel. Black padding and
    transparent pixels are glass, see :mod:`sigmma_sc.tissue.blank`.

    Each level is read once, in blocks of whole chunks, from left to right and from top to bottom. A stored chunk is
    decoded once, and only if a crop needs it. Threads decode the next block while crops are cut from this one. Dask's
    default scheduler is not used, so a task of a Dask worker may read crops. Memory holds four blocks (one chunk each,
    or enough small ones for 2,048 px a side), and a strip across the slide as high as the largest crop.
    """
    levels = image_levels(slide.sdata, slide.image_key)
    frames = level_frames(slide)
    scales = frames.scales
    level_of = np.maximum(np.searchsorted(scales, crops[:, 2] / size * (1 + 1e-6), side="right") - 1, 0)
    boxes = crops / scales[level_of, None]
    boxes[:, :2] -= (frames.origins / scales[:, None])[level_of]
    shapes = np.array([(level.sizes["x"], level.sizes["y"]) for level in levels])
    low, high, inner = _windows(boxes, size, shapes[level_of])
    with ThreadPoolExecutor() as workers:
        for number in np.unique(level_of):
            members = np.flatnonzero(level_of == number)
            members = members[np.lexsort((boxes[members, 1], boxes[members, 0], boxes[members, 2]))]
            width = padding_width(slide.microns_per_pixel * scales[number])
            for block, corner, pixels in _canvases(levels[number], low[members], high[members], workers):
                # Crops overlap, so that a look at all of the block is cheaper than one at each.
                black = width if pixels.min() <= BLACK else 0
                here = members[block.windows]
                yield Canvas(pixels, here, low[here] - corner, high[here] - corner, inner[here], boxes[here, 2], black)


def _windows(
    boxes: NDArray[np.float64], size: int, shapes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Corners, low and high, of the whole pixels that each box ``(x, y, side)`` is resampled from, and its start."""
    start, side = boxes[:, :2], boxes[:, 2:]
    # The resampling kernel extends beyond the box by its support, which grows when the crop shrinks.
    margin = np.ceil(3 * np.maximum(1.0, side / size)).astype(np.int64)
    unchanged = (side == size) & (start == np.floor(start)).all(axis=1, keepdims=True)
    margin[unchanged] = 0
    low = np.floor(start).astype(np.int64) - margin
    across = np.ceil(start + side).astype(np.int64) + margin - low
    inner = start - low
    # A window wholly off the image is glass at any position.
    low = low.clip(-across, shapes)
    return low, low + across, inner


def _canvases(
    level: xr.DataArray, low: NDArray[np.int64], high: NDArray[np.int64], workers: Executor
) -> Iterator[tuple[Block, NDArray[np.int64], NDArray[np.uint8]]]:
    """Decode a level ``(c, y, x)`` block by block, the next one in the background.

    Yields the block, the upper left corner of the canvas (x, y) in px, and the pixels ``(h, w, 3)`` of the block and of
    the neighbours above and to the left that its windows need. The block after the next overwrites them.
    """
    data = level.data
    n_planes = planes_read(level)
    reach = int((high - low).max())
    blocks = plan_blocks(data.chunks[1:], low, high, reach)
    width, height = reach + np.max([block.high - block.low for block in blocks], axis=0)
    # The same memory for all blocks, because used memory is several times faster to write than new memory. Two of them,
    # because crops may be cut from one block while the next is painted.
    buffers = np.empty((min(2, len(blocks)), height, width, 3), np.uint8)
    beside = np.empty((height, reach, 3), np.uint8)
    above = np.full((reach, data.shape[2] + reach, 3), GLASS, np.uint8)
    before = None
    with ThreadPoolExecutor(1) as ahead:
        turn = ahead.submit(decode, data, blocks[0].need_low, blocks[0].need_high, workers, n_planes)
        for n, block in enumerate(blocks):
            planes = turn.result()
            if n + 1 < len(blocks):
                turn = ahead.submit(decode, data, blocks[n + 1].need_low, blocks[n + 1].need_high, workers, n_planes)
            across = slice(block.low[0], block.high[0])
            canvas = buffers[n % 2, : reach + block.high[1] - block.low[1], : reach + block.high[0] - block.low[0]]
            # No window needs a neighbour that was skipped, so any values may fill its place.
            canvas[:, :reach] = beside[: len(canvas)] if before == (block.row, block.column - 1) else GLASS
            canvas[:reach, reach:] = above[:, across]
            left, top = block.need_low - block.low + reach
            right, bottom = block.need_high - block.low + reach
            paint(canvas[top:bottom, left:right], planes, block.need_low)
            del planes
            above[:, across] = canvas[-reach:, reach:]
            beside[: len(canvas)] = canvas[:, -reach:]
            before = block.row, block.column
            yield block, block.low - reach, canvas


def _cut(
    canvas: NDArray[np.uint8],
    width: int,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    inner: NDArray[np.float64],
    side: NDArray[np.float64],
    out: NDArray[np.uint8],
) -> None:
    """Resample boxes, each at ``inner`` of its window of the canvas, into ``out`` ``(k, size, size, 3)``.

    Black padding of ``width`` px is glass; 0 if there is none.
    """
    for (left, top), (right, bottom), (x, y), length, crop in zip(low, high, inner, side, out, strict=True):
        # Resampled from its window alone, so that a crop's pixels do not depend on what else is read with it.
        around = canvas[top:bottom, left:right]
        if width:
            around = without_padding(around, width)
        if around.shape == crop.shape and not (x or y):
            crop[:] = around
        else:
            box = (x, y, x + length, y + length)
            crop[:] = Image.fromarray(around).resize(crop.shape[:2], Image.Resampling.BICUBIC, box=box)
