"""Windows of the image with the cells in them, and the whole image at a small size, for plots."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sigmma_sc.registration.check import lattice_pitch
from sigmma_sc.registration.haematoxylin import Zoom
from sigmma_sc.tissue.frame import Slide
from sigmma_sc.tissue.pixels import read_crops

CROP = 10
"""Side in px of the pieces that a small picture is read in: a strip as high as one of them is held at full resolution."""


class Window:
    """A square of the image around a point, ``(2,)`` in px of level 0; its side is ``microns`` µm or a little more."""

    def __init__(self, slide: Slide, middle: NDArray[np.float64], microns: float) -> None:
        self._zoom = Zoom.of(slide, microns / 400)
        self._side = max(1, round(microns / self._zoom.microns))
        self._corner = np.floor(self._zoom.place(middle)).astype(np.int64) - self._side // 2
        self.extent = self._side * self._zoom.microns

    def pixels(self) -> NDArray[np.uint8]:
        """RGB ``(side, side, 3)``."""
        return self._zoom.pixels(self._corner, self._side)

    def within(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Those of the points ``(n, 2)`` in px of level 0 that are in the window, in µm from its upper left corner."""
        points = (self._zoom.place(xy) - self._corner) * self._zoom.microns
        return points[((points >= 0) & (points < self.extent)).all(axis=1)]


def overlay_windows(
    slide: Slide, n_windows: int, window: float | None, seed: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float64], float]]:
    """Squares of the image around random cells, with the cells in them.

    Each has RGB pixels ``(side, side, 3)``, positions of the cells from its upper left corner in µm ``(n, 2)``, and its
    side in µm: ``window``, by default 100, or five bins where that is more.
    """
    if window is None:
        window = float(np.fmax(100.0, 5 * lattice_pitch(slide.xy) * slide.microns_per_pixel))
    under = np.flatnonzero(slide.under_image)
    for cell in np.random.default_rng(seed).permutation(under)[:n_windows]:
        one = Window(slide, slide.xy[cell], window)
        yield one.pixels(), one.within(slide.xy), one.extent


def small_picture(slide: Slide, size: int = 640) -> NDArray[np.uint8]:
    """The whole image with its longer side at ``size`` px, RGB; memory does not grow with the image's height."""
    step = max(slide.width, slide.height) / size * CROP
    columns, rows = (int(np.ceil(side / step)) for side in (slide.width, slide.height))
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(columns), np.arange(rows)))
    crops = np.column_stack([x * step, y * step, np.full(len(x), step)])
    picture = np.empty((rows, CROP, columns, CROP, 3), np.uint8)
    for number, pixels in read_crops(slide, crops, CROP):
        picture[y[number], :, x[number]] = pixels
    whole = picture.reshape(rows * CROP, columns * CROP, 3)
    return whole[: round(slide.height / step * CROP), : round(slide.width / step * CROP)]
