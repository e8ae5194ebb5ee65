"""Crops cut from decoded pixels on the device of the encoder: Pillow's bicubic kernel as two sums of weighted rows."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from sigmma_sc.tissue.blank import without_padding
from sigmma_sc.tissue.pixels import in_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from sigmma_sc.tissue.pixels import Canvas

UNIT = 2**16
"""Parts of a pixel to which positions are rounded, so that the weights of a row do not depend on the canvas around it."""

STRIP = 8
"""Most crops of a column that are resampled at once: with more, the numbers on the way leave the cache of a CPU."""


def cut_crops(
    canvases: Iterable[Canvas], n: int, size: int, device: torch.device
) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    """Cut all ``n`` crops of some canvases, resampled to ``size``² with antialiasing.

    They are within one grey level of those of :func:`~sigmma_sc.tissue.pixels.read_crops`, and what is said there of
    positions and neighbours holds. Rows of pixels that overlapping crops of a column share are computed once.

    Yields positions of the crops ``(k,)``, 128 but for the last group, with their pixels ``(k, size, size, 3)`` uint8
    RGB on the device.
    """
    now = None
    for canvas, some, begin, length in in_groups(canvases, n):
        if canvas is not now:
            now = canvas
            # Rows are summed, and the first sum is over columns.
            turned = _turned(_moved(canvas.pixels, device))
        if not begin:
            index = np.empty(length, np.int64)
            pixels = torch.empty(length, size, size, 3, dtype=torch.uint8, device=device)
        end = begin + some.stop - some.start
        _cut(canvas, turned, some, pixels[begin:end])
        index[begin:end] = canvas.crops[some]
        if end == length:
            yield index, pixels


def _cut(canvas: Canvas, turned: torch.Tensor, some: slice, out: torch.Tensor) -> None:
    """Cut some crops of a canvas, turned ``(w, h, 3)``, into ``out`` ``(k, size, size, 3)``."""
    low, high, inner, side = canvas.low[some], canvas.high[some], canvas.inner[some], canvas.side[some]
    size = out.shape[1]
    mended = _without_padding(canvas, some)
    # The window of a crop has no margin if it is on whole pixels and needs no resampling.
    copied = (high[:, 0] - low[:, 0] == size) & (side == size)
    single = copied | np.isin(np.arange(len(side)), list(mended))
    edges = np.flatnonzero((side[1:] != side[:-1]) | single[1:] | single[:-1]) + 1
    for run in np.split(np.arange(len(side)), edges):
        k = int(run[0])
        source = turned
        corner = low[run]
        if k in mended:
            source = _turned(_moved(mended[k], out.device))
            corner = np.zeros_like(corner)
        if copied[k]:
            (left, top), (right, bottom) = corner[0], corner[0] + size
            out[k] = source[left:right, top:bottom].transpose(0, 1)
        else:
            resample(source, corner, inner[run], float(side[k]), out[k : run[-1] + 1])


def _without_padding(canvas: Canvas, some: slice) -> dict[int, NDArray[np.uint8]]:
    """Windows ``(h, w, 3)`` of those crops that hold black padding, with glass in its place."""
    mended: dict[int, NDArray[np.uint8]] = {}
    if canvas.padding:
        for k, ((left, top), (right, bottom)) in enumerate(zip(canvas.low[some], canvas.high[some], strict=True)):
            window = canvas.pixels[top:bottom, left:right]
            filled = without_padding(window, canvas.padding)
            if filled is not window:
                mended[k] = filled
    return mended


def resample(
    turned: torch.Tensor, corner: NDArray[np.int64], inner: NDArray[np.float64], side: float, out: torch.Tensor
) -> None:
    """Resample square crops of one side into ``out`` ``(k, size, size, 3)``, by Pillow's bicubic kernel.

    ``turned`` ``(w, h, 3)`` are pixels, columns first. Crops begin ``inner`` px from ``corner`` ``(k, 2)`` (x, y), and are
    ordered by x, then by y.
    """
    size = out.shape[1]
    kernels, (across, down) = _kernels(inner, side / size, size)
    corner = corner + kernels.first[np.column_stack([across, down])]
    heads, n_new = _strips(corner, across, down, kernels, side)
    ends = np.cumsum(n_new)
    strip = np.repeat(np.arange(len(heads)), np.diff(heads, append=len(out)))
    tops = corner[heads, 1]
    is_new = np.arange(size) >= size - n_new[:, None]
    rows = kernels.taps[down] + (corner[:, 1] - tops[strip]).astype(np.int32)[:, None, None]
    # One transfer for all crops.
    columns, weights, rows, row_weights = (
        _moved(values, out.device)
        for values in (kernels.taps, kernels.weights, rows[is_new], kernels.weights[down][is_new])
    )
    for head, tail, top in zip(heads, np.append(heads[1:], len(out)), tops, strict=True):
        left = corner[head, 0]
        bottom = corner[tail - 1, 1] + kernels.extent[down[tail - 1]]
        window = turned[left : left + kernels.extent[across[head]], top:bottom]
        width, height, _ = window.shape
        table = window.float().reshape(width, height * 3)
        values = _sums(columns[across[head]], weights[across[head]], table)
        # Pillow rounds between its passes.
        table = _turned(values.clamp_(0, 255).round_().view(size, height, 3)).view(height, size * 3)
        begin, end = ends[head] - n_new[head], ends[tail - 1]
        values = _sums(rows[begin:end], row_weights[begin:end], table)
        pixels = values.clamp_(0, 255).round_().view(-1, size, 3)
        for k in range(head, tail):
            _store(pixels[ends[k] - begin - size : ends[k] - begin], out[k])


class _Kernels(NamedTuple):
    """Pillow's bicubic kernels for crops of one side, by where in their windows they begin."""

    centres: NDArray[np.int64]  # of output pixels in the window, in parts of a pixel, (u, size)
    first: NDArray[np.int64]  # first pixel of the window that is summed, (u,)
    extent: NDArray[np.int64]  # number of pixels that are summed, (u,)
    taps: NDArray[np.int32]  # pixels that are summed to each output pixel, from the first one, (u, size, t)
    weights: NDArray[np.float32]  # their weights, (u, size, t)


def _kernels(inner: NDArray[np.float64], scale: float, size: int) -> tuple[_Kernels, NDArray[np.int64]]:
    """Kernels of crops that begin ``inner`` ``(k, 2)`` px in their windows, and which ones crops take, ``(2, k)``.

    The kernel is wider by ``scale``, the pixels that an output pixel measures, if that is above 1.
    """
    starts, which = np.unique(inner.T, return_inverse=True)
    centres = np.rint((starts[:, None] + (np.arange(size) + 0.5) * scale) * UNIT).astype(np.int64)
    stretch = max(1.0, scale)
    centre = centres[..., None] / UNIT
    taps = np.floor(centre - 2 * stretch + 0.5) + np.arange(int(np.ceil(4 * stretch)) + 1)
    x = np.abs(taps + 0.5 - centre) / stretch
    weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))
    weights /= weights.sum(axis=2, keepdims=True)
    first = taps[:, 0, 0].astype(np.int64)
    index = (taps - first[:, None, None]).astype(np.int32)
    extent = index[:, -1, -1].astype(np.int64) + 1
    return _Kernels(centres, first, extent, index, weights.astype(np.float32)), which.reshape(2, -1)


def _strips(
    corner: NDArray[np.int64], across: NDArray[np.int64], down: NDArray[np.int64], kernels: _Kernels, side: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First crop of each strip, and how many rows of each crop are not among those of the crop before it in its strip.

    The crops of a strip are of one column, and overlap by whole output rows or hardly lie apart.
    """
    y = kernels.centres[down] + (corner[:, 1] - kernels.first[down])[:, None] * UNIT
    size = y.shape[1]
    column = np.column_stack([corner[:, 0], across])
    shift = (y[:-1] < y[1:, :1]).sum(axis=1)
    before = np.arange(size) + shift[:, None]
    shared = np.take_along_axis(y[:-1], before.clip(0, size - 1), axis=1) == y[1:]
    apart = (column[1:] != column[:-1]).any(axis=1) | (y[1:, 0] - y[:-1, 0] > 1.5 * side * UNIT)
    apart |= (shift == 0) | ~(shared | (before >= size)).all(axis=1)
    heads: list[int] = []
    for begin, end in pairwise([0, *(np.flatnonzero(apart) + 1), len(y)]):
        heads += range(begin, end, STRIP)
    n_new = np.append(size, shift)
    n_new[heads] = size
    return np.array(heads), n_new


def _sums(index: torch.Tensor, weights: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Weighted sums ``(n, d)`` of rows of a table ``(m, d)``, by their numbers ``(n, t)``."""
    return embedding_bag(index, table, mode="sum", per_sample_weights=weights)


def _turned(pixels: torch.Tensor) -> torch.Tensor:
    """The same values ``(b, a, 3)`` of ``(a, b, 3)``, contiguous."""
    if pixels.device.type != "cpu":
        return pixels.transpose(0, 1).contiguous()
    # NumPy, channel by channel, is twice as fast as torch on a CPU, and many rows at once leave the cache.
    source = pixels.numpy()
    out = np.empty((source.shape[1], source.shape[0], 3), source.dtype)
    for begin in range(0, len(source), 256):
        for channel in range(3):
            out[:, begin : begin + 256, channel] = source[begin : begin + 256, :, channel].T
    return torch.from_numpy(out)


def _store(values: torch.Tensor, out: torch.Tensor) -> None:
    """Write whole numbers below 256 as bytes."""
    if out.device.type == "cpu":
        out.numpy()[:] = values.numpy()  # six times as fast as torch
    else:
        out.copy_(values)


def _moved(values: NDArray, device: torch.device) -> torch.Tensor:
    """Values on the device, without a wait for its other work."""
    here = torch.from_numpy(values)
    if device.type == "cuda":
        here = here.pin_memory()
    return here.to(device, non_blocking=True)
