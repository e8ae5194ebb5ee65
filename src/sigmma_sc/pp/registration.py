"""Registration of image and cells, slide by slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigmma_sc._checks import require_whole
from sigmma_sc.registration.check import checked_slides
from sigmma_sc.registration.verdict import by_expression

if TYPE_CHECKING:
    import pandas as pd

    from sigmma_sc.tissue.setup import Tissue


def check_registration(sdata: Tissue, seed: int = 0) -> pd.DataFrame:
    """Check whether the cells of each slide are where the image shows them.

    Haematoxylin (colour deconvolution) is averaged at the cell centroids, and at the same centroids shifted by up to
    40 µm, in windows around random cells. It peaks at zero shift if image and cells are registered. For bins on a lattice,
    which fill the plane, the covariance of haematoxylin and counts is used.

    Where there is no peak, and for spots wider than a cell, the pose of the cells is searched by expression and colour as
    :func:`sigmma_sc.pp.register` does, and nothing is written. The verdict is then that of the distance between the cells
    and a certified pose. The search takes some 2 to 60 s a slide, and needs raw counts.

    Parameters
    ----------
    sdata
        Object, or objects by name, prepared with :meth:`sigmma_sc.SIGMMA.setup_spatialdata`.
    seed
        Seed of the random choice of windows, and of the squares held out of a search.

    Returns
    -------
    One row a slide, with these columns. What was not measured is NaN, such as scores and shifts of wide spots.

    ``verdict``: ``"registered"``, ``"shifted"``, ``"misregistered"`` or ``"cannot tell"``; ``advice`` explains it.
    ``on_image``: share of cells under the image. ``on_tissue``: share of cells in the windows on stained tissue.
    ``score``: height of the curve at zero shift, in standard deviations of far shifts. ``best_score``: height of its peak.
    ``shift_x``, ``shift_y``: shift of the peak, µm along the axes of the image.
    ``agreement``: share of the windows with a peak that have it there, low if the pixel size is wrong.
    ``r2``: R² of colour on expression in squares held out, under the alignment as it is. ``distance``: root mean square
    distance in µm of the cells from the best pose found by search. ``error``: expected error of that pose in µm, where it
    was measured.

    Raises
    ------
    SetupError
        The object has no setup, or was set up without a table.

    See Also
    --------
    sigmma_sc.pp.register : Find the pose of an image, and write it.
    sigmma_sc.pl.registration : Plot of cells on the image, and of the curve.

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

    require_whole(seed, "seed", 0)
    rows = {}
    for slide, by_nuclei in checked_slides(sdata, seed):
        found = by_expression(slide, by_nuclei, seed)
        m = found.match
        searched = found.found
        before = searched.before if searched is not None else None
        rows[slide.name] = {
            "verdict": found.verdict,
            "on_image": m.on_image,
            "on_tissue": m.on_tissue,
            "score": m.score,
            "shift_x": m.best_shift[0],
            "shift_y": m.best_shift[1],
            "best_score": m.best_score,
            "agreement": m.agreement,
            "r2": before.r2_held_out if before is not None else float("nan"),
            "distance": found.distance,
            "error": searched.certificate.error if searched is not None else float("nan"),
            "advice": found.advice,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("slide")
