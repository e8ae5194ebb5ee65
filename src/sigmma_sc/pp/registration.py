"""Registration of image and cells, slide by slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.errors import SetupError
from sigmma_sc.registration.haematoxylin import Zoom
from sigmma_sc.registration.check import lattice_pitch, registration
from sigmma_sc.tissue.setup import resolve_slides, stored_setup, totals_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.registration.check import Registration


def check_registration(sdata: SpatialData | dict[str, SpatialData], seed: int = 0) -> pd.DataFrame:
    """Tell whether the cells of each slide lie on their nuclei.

    Haematoxylin (colour deconvolution) is averaged at the cell centroids, and at the same centroids shifted by up to
    40 µm, in windows around random cells. It peaks at zero shift iff image and cells are registered. Bins on a lattice fill
    the plane, so that theirs is the covariance of haematoxylin and counts; of spots wider than a cell, only the share on
    tissue is looked at. Where nothing peaks, the image's mirrorings and turns are tried.

    Parameters
    ----------
    sdata
        Object, or objects by name, prepared with :meth:`sigmma_sc.SIGMMA.setup_spatialdata`.
    seed
        Of the choice of windows.

    Returns
    -------
    One row a slide: ``verdict`` (``"registered"``, ``"shifted"``, ``"misregistered"``, ``"cannot tell"``), ``on_image``
    (share of cells under the image), ``on_tissue`` (share of those looked at that lie on stained tissue), ``score`` (height
    of the curve at zero in standard deviations of far shifts), ``shift_x``, ``shift_y`` (µm along the image's axes at which
    the curve peaks), ``best_score`` (its height there), ``agreement`` (share of the windows with a peak of
    their own that have it there, low if the pixel size is wrong), ``advice`` (in words). Scores and shifts of wide spots are NaN.

    Raises
    ------
    SetupError
        The object has no setup, or was set up without a table.

    Examples
    --------
    >>> tissue = sg.datasets.simulate_tissue(n_cells=500)
    >>> SIGMMA.setup_spatialdata(tissue, tile_size=64)
    >>> found = sg.pp.check_registration(tissue)
    >>> found[["verdict", "shift_x", "shift_y"]]
                     verdict  shift_x  shift_y
    slide
    cell_circles  registered      0.0      0.0
    """
    import pandas as pd

    rows = {}
    for slide, found in checked_slides(sdata, seed):
        m = found.match
        rows[slide.name] = {
            "verdict": found.verdict,
            "on_image": m.on_image,
            "on_tissue": m.on_tissue,
            "score": m.score,
            "shift_x": m.best_shift[0],
            "shift_y": m.best_shift[1],
            "best_score": m.best_score,
            "agreement": m.agreement,
            "advice": found.advice,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("slide")


def checked_slides(
    sdata: SpatialData | dict[str, SpatialData], seed: int = 0, only: str | None = None
) -> Iterator[tuple[Slide, Registration]]:
    """Each slide of an object, or of objects by name, with what its check found; ``only`` one if its name is given."""
    for prefix, one in {f"{k}/": v for k, v in sdata.items()}.items() if isinstance(sdata, dict) else [("", sdata)]:
        setup = stored_setup(one)
        if setup is None:
            raise SetupError("The object has no setup. Call SIGMMA.setup_spatialdata(sdata) first.")
        if setup.table_key is None:
            raise SetupError(
                "The object was set up with table_key=None: without cells there is no registration to check."
            )
        for slide in resolve_slides(one, setup, prefix):
            if only in (None, slide.name):
                yield slide, registration(slide, totals_of(setup, slide), seed=seed)


def overlay_windows(
    slide: Slide, n_windows: int, window: float | None, seed: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float64], float]]:
    """Squares of the image around random cells, with the cells in them.

    Parameters
    ----------
    slide
        Slide with cells.
    n_windows
        Number of squares, fewer if the image holds fewer cells.
    window
        Side in µm; by default 100, or five bins where that is more.
    seed
        Of the choice of cells.

    Yields
    ------
    pixels
        RGB ``(side, side, 3)``.
    points
        Cells from the upper left corner, µm, ``(n, 2)``.
    extent
        Side in µm.
    """
    if window is None:
        window = float(np.fmax(100.0, 5 * lattice_pitch(slide.xy) * slide.microns_per_pixel))
    zoom = Zoom.of(slide, window / 400)
    side = max(1, round(window / zoom.microns))
    under = np.flatnonzero(slide.under_image)
    for cell in np.random.default_rng(seed).permutation(under)[:n_windows]:
        corner = np.floor(slide.xy[cell] / zoom.px).astype(np.int64) - side // 2
        points = (slide.xy / zoom.px - corner) * zoom.microns
        inside = ((points >= 0) & (points < side * zoom.microns)).all(axis=1)
        yield zoom.pixels(corner, side), points[inside], side * zoom.microns
