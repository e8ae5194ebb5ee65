"""Windows of the image with the cells in them, for plots."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sigmma_sc.registration.check import lattice_pitch
from sigmma_sc.registration.haematoxylin import Zoom
from sigmma_sc.tissue.frame import Slide


def overlay_windows(
    slide: Slide, n_windows: int, window: float | None, seed: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float64], float]]:
    """Squares of the image around random cells, with the cells in them.

    Each has RGB pixels ``(side, side, 3)``, positions of the cells from its upper left corner in µm ``(n, 2)``, and its
    side in µm: ``window``, by default 100, or five bins where that is more.
    """
    if window is None:
        window = float(np.fmax(100.0, 5 * lattice_pitch(slide.xy) * slide.microns_per_pixel))
    zoom = Zoom.of(slide, window / 400)
    side = max(1, round(window / zoom.microns))
    under = np.flatnonzero(slide.under_image)
    for cell in np.random.default_rng(seed).permutation(under)[:n_windows]:
        corner = np.floor(zoom.place(slide.xy[cell])).astype(np.int64) - side // 2
        points = (zoom.place(slide.xy) - corner) * zoom.microns
        inside = ((points >= 0) & (points < side * zoom.microns)).all(axis=1)
        yield zoom.pixels(corner, side), points[inside], side * zoom.microns
