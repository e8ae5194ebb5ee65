"""What tells one tissue from another without reading all of it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc.tissue.counts import embedding_rows
from sigmma_sc.tissue.frame import image_levels
from sigmma_sc.tissue.pixels import read_window
from sigmma_sc.tissue.setup import totals_of

if TYPE_CHECKING:
    from xarray import DataArray

    from sigmma_sc.tissue.frame import Slide

WHOLE_PIXELS = 32_000_000
"""A level of no more pixels is read whole: half a second."""

STRIP = 1024
WINDOWS, WINDOW = 6, 64
"""Windows per side of the image, and their side in px, that are read where full resolution is not read whole."""

FEW_WINDOWS = 4
"""Windows per side that tell one slide from another."""

SAMPLED_CELLS = 10_000


def image_identity(slide: Slide) -> str:
    """SHA-256 that changes with the pixels of a slide's image, wherever and however the image is stored.

    It covers size and type of every level, every pixel of the finest level of at most 32 million pixels, and 36 windows of
    64 px spread over full resolution. A second or two for any slide.

    Limits: of an image that has no level as small as that, the windows alone are read; and a change at full resolution that
    was not carried into its pyramid is seen only where a window lies. Whoever edits pixels in such a way has to start a new
    cache.
    """
    levels = image_levels(slide.sdata, slide.image_key)
    digest = hashlib.sha256(repr([(level.shape, str(level.dtype)) for level in levels]).encode())
    small = [level for level in levels if level.sizes["x"] * level.sizes["y"] <= WHOLE_PIXELS]
    for level in small[:1]:
        for top in range(0, level.sizes["y"], STRIP):
            bottom = min(top + STRIP, level.sizes["y"])
            digest.update(read_window(level, 0, top, level.sizes["x"], bottom).data)
    if len(small) < len(levels):
        _add_windows(digest, levels[0], WINDOWS)
    return digest.hexdigest()


def slide_identity(slide: Slide) -> str:
    """SHA-256 over size, type and 16 windows of 64 px of a slide's full resolution, whatever pyramid it has.

    It tells slides apart that share name and size; of edits between the windows it does not know.
    """
    level = image_levels(slide.sdata, slide.image_key)[0]
    digest = hashlib.sha256(repr((level.shape, str(level.dtype))).encode())
    _add_windows(digest, level, FEW_WINDOWS)
    return digest.hexdigest()


def _add_windows(digest: Any, level: DataArray, n: int) -> None:
    """Read n × n windows, in the middle of each field, and never beyond the edge."""
    width, height = level.sizes["x"], level.sizes["y"]
    x, y = (((np.arange(n) + 0.5) / n * max(0, side - WINDOW)).astype(int) for side in (width, height))
    for top in y:
        for left in x:
            window = read_window(level, left, top, min(left + WINDOW, width), min(top + WINDOW, height))
            digest.update(np.ascontiguousarray(window).data)


def cells_identity(slide: Slide) -> str:
    """SHA-256 over the positions of a slide's cells, the names of the genes, and the features or counts of 10,000 cells."""
    # A thousandth of a pixel: another machine's arithmetic may move the last bits.
    digest = hashlib.sha256(np.round(slide.xy * 1000).astype(np.int64).data)
    some = np.unique(np.linspace(0, len(slide.rows) - 1, SAMPLED_CELLS).astype(np.int64))
    if slide.setup.features_key is not None:
        values = embedding_rows(slide.table, slide.setup.features_key, slide.rows[some])
    else:
        digest.update("\n".join(map(str, slide.table.var_names)).encode())
        values = totals_of(slide)(some)
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
