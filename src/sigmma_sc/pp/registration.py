"""Registration of image and cells, slide by slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigmma_sc.registration.check import checked_slides

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData


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
