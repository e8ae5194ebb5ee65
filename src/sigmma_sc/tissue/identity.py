"""Hashes that distinguish one tissue from another without reading all of it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.tissue.counts import counts_by_rows, embedding_rows, row_totals, take_rows
from sigmma_sc.tissue.decode import read_window
from sigmma_sc.tissue.frame import Slide, image_levels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from xarray import DataArray


WHOLE_PIXELS = 32_000_000
"""A level of at most this many pixels is read whole, in about half a second."""

STRIP = 1024
WINDOWS = 6
WINDOW = 64
"""Number of windows per side of the image, and their side in px, where full resolution is not read whole."""

FEW_WINDOWS = 4
"""Number of windows per side that distinguish one slide from another."""

SAMPLED_CELLS = 10_000


def image_identity(slide: Slide) -> str:
    """SHA-256 that changes with the pixels of a slide's image, wherever and however the image is stored.

    It covers size and type of every level, every pixel of the finest level of at most 32 million pixels, and 36 windows of
    64 px at full resolution. This takes a second or two for any slide.

    Limits: if no level is as small as that, only the windows are read. A change at full resolution that is not in the
    pyramid is detected only within a window. After such an edit, start a new cache.
    """
    levels = image_levels(slide.sdata, slide.image_key)
    kinds = [(level.shape, str(level.dtype)) for level in levels]
    digest = hashlib.sha256(repr(kinds).encode())
    small = [level for level in levels if level.sizes["x"] * level.sizes["y"] <= WHOLE_PIXELS]
    for level in small[:1]:
        for top in range(0, level.sizes["y"], STRIP):
            bottom = min(top + STRIP, level.sizes["y"])
            digest.update(read_window(level, 0, top, level.sizes["x"], bottom).data)
    if len(small) < len(levels):
        for window in _windows(levels[0], WINDOWS):
            digest.update(window.data)
    return digest.hexdigest()


def slide_identity(slide: Slide) -> str:
    """SHA-256 over size, type and 16 windows of 64 px of a slide's full resolution, whatever pyramid it has.

    It distinguishes slides that share name and size. An edit between the windows does not change it.
    """
    level = image_levels(slide.sdata, slide.image_key)[0]
    digest = hashlib.sha256(repr((level.shape, str(level.dtype))).encode())
    for window in _windows(level, FEW_WINDOWS):
        digest.update(window.data)
    return digest.hexdigest()


def _windows(level: DataArray, n: int) -> Iterator[NDArray[np.uint8]]:
    """Read n × n windows, in the middle of each field, and never beyond the edge."""
    width, height = level.sizes["x"], level.sizes["y"]
    middles = (np.arange(n) + 0.5) / n
    x = (middles * max(0, width - WINDOW)).astype(int)
    y = (middles * max(0, height - WINDOW)).astype(int)
    for top in y:
        for left in x:
            window = read_window(level, left, top, min(left + WINDOW, width), min(top + WINDOW, height))
            yield np.ascontiguousarray(window)


def cells_identity(slide: Slide) -> str:
    """SHA-256 over positions of cells, names of genes, and features or total counts of 10,000 cells."""
    # To a thousandth of a pixel, for the last bits may differ between machines.
    digest = hashlib.sha256(np.round(slide.xy * 1000).astype(np.int64).data)
    some = np.unique(np.linspace(0, len(slide.rows) - 1, SAMPLED_CELLS).astype(np.int64))
    if slide.setup.features_key is not None:
        features = embedding_rows(slide.table, slide.setup.features_key, slide.rows[some])
        digest.update(np.ascontiguousarray(features).data)
    else:
        digest.update("\n".join(map(str, slide.table.var_names)).encode())
        counts = take_rows(counts_by_rows(slide.table, slide.setup.layer), slide.rows[some])
        digest.update(row_totals(counts).data)
    return digest.hexdigest()
