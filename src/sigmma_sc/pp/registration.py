"""Registration of image and cells, slide by slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigmma_sc._checks import SetupError
from sigmma_sc.tissue.registration import registration
from sigmma_sc.tissue.setup import resolve_slides, stored_setup

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData


def check_registration(sdata: SpatialData, seed: int = 0) -> pd.DataFrame:
    """Tell whether the cells of each slide lie on their nuclei.

    Haematoxylin (colour deconvolution) is averaged at the cell centroids, and at the same centroids shifted by up to
    40 µm, in windows around random cells. It peaks at zero shift iff image and cells are registered. Bins or spots on a
    lattice say nothing of nuclei: the verdict is ``"cannot tell"`` then.

    Parameters
    ----------
    sdata
        Object prepared with :meth:`sigmma_sc.SIGMMA.setup_spatialdata`.
    seed
        Of the choice of windows.

    Returns
    -------
    One row a slide: ``verdict`` (``"registered"``, ``"shifted"``, ``"misregistered"``, ``"cannot tell"``), ``on_image``
    (share of cells under the image), ``score`` (height of the curve at zero in standard deviations of far shifts),
    ``shift_x``, ``shift_y`` (µm along the image's axes at which the curve peaks), ``advice`` (in words).
    """
    import pandas as pd

    setup = stored_setup(sdata)
    if setup is None:
        raise SetupError("The object has no setup. Call SIGMMA.setup_spatialdata(sdata) first.")
    if setup.table_key is None:
        raise SetupError("The object was set up with table_key=None: without cells there is no registration to check.")
    rows = {}
    for slide in resolve_slides(sdata, setup):
        found = registration(slide, seed=seed)
        rows[slide.name] = {
            "verdict": found.verdict,
            "on_image": found.on_image,
            "score": found.score,
            "shift_x": found.best_shift[0],
            "shift_y": found.best_shift[1],
            "advice": found.advice,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("slide")
