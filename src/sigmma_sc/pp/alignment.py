"""Automatic registration of images on their cells."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_whole
from sigmma_sc.errors import RegistrationWarning, SetupError
from sigmma_sc.registration.dapi import witnessed
from sigmma_sc.registration.landmarks import pose_of_landmarks, read_landmarks
from sigmma_sc.registration.place import embedded, moved, place, placed, require_free
from sigmma_sc.registration.record import alignment, record_of
from sigmma_sc.registration.register import KNOWN_SCALE, Registered
from sigmma_sc.registration.size import find_at_likely_sizes, identity
from sigmma_sc.tissue.appearance import warn_of_image
from sigmma_sc.tissue.setup import Setup, prefixed, resolve_slides, stored_setup

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from sigmma_sc.registration.landmarks import Landmarks
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.setup import Tissue

DEFAULTS = Setup("he_image", "table", "global", None, None, None, None, 128.0, (4, 2, 1))
"""Setup of an object that was never set up, as the defaults of ``setup_spatialdata``."""


def register(
    sdata: Tissue,
    image_key: str | dict[str, str] | None = None,
    table_key: str | None = None,
    coordinate_system: str | dict[str, str] | None = None,
    layer: str | None = None,
    microns_per_pixel: float | dict[str, float] | None = None,
    landmarks: ArrayLike | tuple[ArrayLike, ArrayLike] | tuple[str, str] | dict[str, Any] | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Find where each H&E image belongs on its cells, and write a certified pose as the transformation of the image.

    Colour and its spread, in squares of some 200 µm and then of 24 to 100 µm, are regressed on 15 components of
    expression. The pose that explains most colour is searched over mirrorings, turns of 15° about each quarter, scales, and
    shifts that keep half of the cells on the tissue. Cells are then put on their nuclei by haematoxylin. Bins, spots and
    cells without visible nuclei are refined by expression.

    A pose is certified if it explains squares that were held out of the search, better than shuffled expression does and
    much better than any pose elsewhere. Other poses are reported and not written. The alignment in the object is used for
    nothing but the size of a pixel, and may be wholly wrong.

    Parameters
    ----------
    sdata
        Object, or objects by name, with images and a table of cells with raw counts. It need not be set up. If it is, what is not given here is
        taken from its setup.
    image_key
        Name of the H&E image, or names by region; ``"he_image"`` by default.
    table_key
        Name of the table of cells; ``"table"`` by default.
    coordinate_system
        System that image and cells share, or systems by region; ``"global"`` by default.
    layer
        Layer with the raw counts; ``X`` by default.
    microns_per_pixel
        Size of a pixel of level 0 in µm, or sizes by region. Scales within 2 % of it are searched. Without it, the
        transformation of the image determines the size. An identity does not: then scales from 0.8 to 1.25 are searched
        about the unit of the system, and about the size at which the image holds as much tissue as the cells cover. The
        latter is also tried where nothing fits at the size by the transformation.
    landmarks
        Places marked by hand, used in place of the search; or landmarks by slide, where slides without any are searched.
        Three or more pairs, not on a line: an array ``(n, 2, 2)``, two arrays ``(n, 2)``, or the names of two elements of
        points or circles in the object. The first of a pair is on the image, the second at the same place among the cells.
        Arrays hold (x, y) in px of level 0 of the image, and in units of the element that the table annotates. Elements may
        be points that napari-spatialdata saved, in the order in which they were marked. The similarity, mirrored or not, with
        the least squares is taken, of any scale. Cells with visible nuclei are then put on them.
    overwrite
        Register an image again that was registered before.
    seed
        Seed of the squares that are held out, and of the windows around cells.

    Returns
    -------
    One row a slide, with these columns. What was not measured is NaN.

    ``verdict``: ``"registered"`` or ``"cannot tell"``; ``advice`` explains it. ``error``: expected error in µm, 95 % of the
    time below it. ``moved``: root mean square distance in µm that the cells moved on the image.
    ``written``: whether the image has a new transformation. Cells within ``error`` of the pose stay where they are.
    ``by``: ``"nuclei"``, ``"expression"`` or ``"landmarks"``. ``affine``: whether windows held out are better explained by
    an affine than by a similarity. ``r2``: R² of colour in squares held out. ``far``: score of the best pose elsewhere, as a
    share. ``nuclei``: height of the peak of haematoxylin at the cells. ``dapi``: median distance in µm between the nuclei
    of the H&E and those of a DAPI image of the cells, such as ``morphology_focus`` of a Xenium run; a pose that it
    contradicts is not certified. ``residual``: median shift in µm of single windows, or of landmarks, that remains, as in a
    deformed section.

    The transformation before is kept on the image as that to ``"<coordinate_system>_unregistered"``. Tile squares that
    :meth:`sigmma_sc.SIGMMA.write_embeddings` wrote are in pixels of the image, and get the same two transformations. The
    rows, with what :func:`sigmma_sc.pl.register` shows, are kept in ``sdata.attrs["sigmma_registration"]``. Write them to the
    store with ``sdata.write_transformations()`` and ``sdata.write_attrs()``.

    Raises
    ------
    SetupError
        The table has no raw counts or no genes, or several regions share an image. Landmarks are fewer than three pairs, of
        different numbers, on a line, not finite, or do not fit together; the message names the pairs that do not.
    ExistsError
        An image was registered before, and ``overwrite`` is not set.
    MissingKeyError
        A name does not exist.

    Warns
    -----
    RegistrationWarning
        The pose of a slide cannot be told, or the object holds embeddings that were made with the alignment before.
    ImageWarning
        A part of an image is black or transparent, or the image may not be an H&E, of an object that was never set up.

    See Also
    --------
    sigmma_sc.pl.register : Before and after, poses elsewhere, residuals.
    sigmma_sc.pp.check_registration : Check an alignment.

    Examples
    --------
    >>> tissue = sg.datasets.simulate_tissue(n_cells=3000)
    >>> found = sg.pp.register(tissue)
    >>> found[["verdict", "by", "written"]]
                     verdict      by  written
    slide
    cell_circles  registered  nuclei    False

    By three places marked by hand, in px and µm:

    >>> on_image = [(250, 300), (1800, 400), (800, 1600)]
    >>> among_cells = [(149, -61), (876, 214), (222, 641)]
    >>> found = sg.pp.register(tissue, landmarks=(on_image, among_cells))
    >>> found[["verdict", "by", "written"]]
                     verdict         by  written
    slide
    cell_circles  registered  landmarks    False
    """
    import pandas as pd

    require_whole(seed, "seed", 0)
    given: dict[str, Any] = {
        "image_key": image_key,
        "table_key": table_key,
        "coordinate_system": coordinate_system,
        "layer": layer,
        "microns_per_pixel": microns_per_pixel,
    }
    given = {name: value for name, value in given.items() if value is not None}
    slides = []
    for prefix, one in prefixed(sdata):
        stored = stored_setup(one)
        found_here = resolve_slides(one, (stored or DEFAULTS).changed(given), prefix, aligned=False)
        # Otherwise the setup has warned.
        for slide in found_here if stored is None else ():
            warn_of_image(slide, stacklevel=2)
        slides += found_here
    require_free(slides, overwrite)
    marked = _by_slide(landmarks, slides)
    rows: dict[str, dict[str, Any]] = {}
    records: dict[str, dict[str, Any]] = {}
    matrices = []
    for given_slide in slides:
        if given_slide.name in marked:
            slide, found = given_slide, pose_of_landmarks(given_slide, marked[given_slide.name], seed)
        else:
            slide, found = find_at_likely_sizes(given_slide, seed)
        found = witnessed(slide, found, seed)
        row = _row(slide, found, given_slide.microns_per_pixel)
        if row["written"]:
            matrices.append((slide, placed(slide, found)))
        elif not found.certified:
            warnings.warn(f"Slide {slide.name!r}: {row['advice']}", RegistrationWarning, stacklevel=2)
        rows[slide.name] = row
        records[slide.name] = record_of(slide, found)
    # After the last search, so that an error leaves every image as it was.
    for slide, matrix in matrices:
        place(slide, matrix)
        if stale := embedded(slide):
            warnings.warn(
                f"Slide {slide.name!r}: {', '.join(stale)} are of the alignment before. Train again, and call "
                "model.write_embeddings().",
                RegistrationWarning,
                stacklevel=2,
            )
    for slide in slides:
        # JSON has neither NaN nor infinity.
        told = {k: v for k, v in rows[slide.name].items() if not isinstance(v, float) or np.isfinite(v)}
        known = slide.sdata.attrs.get(_keys.REGISTRATION, {})
        # A new dict, because subsets of an object share the one that it has.
        # By region: the name in a dict of objects is gone when the object is stored and read alone.
        known = {**known, slide.region: told | records[slide.name] | {"alignment": alignment(slide)}}
        slide.sdata.attrs = {**slide.sdata.attrs, _keys.REGISTRATION: known}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("slide")


def _by_slide(landmarks: Any, slides: list[Slide]) -> dict[str, Landmarks]:  # noqa: ANN401 - checked in read_landmarks
    """Landmarks by name of slide, all read before any search."""
    if landmarks is None:
        return {}
    names = [slide.name for slide in slides]
    if not isinstance(landmarks, dict):
        if len(slides) > 1:
            raise SetupError(
                f"landmarks belong to one of the slides {', '.join(names)}. Pass a dict by slide. A file needs a column slide."
            )
        landmarks = {names[0]: landmarks}
    for name in landmarks:
        require_key(name, names, "slide of landmarks")
    return {slide.name: read_landmarks(slide, landmarks[slide.name]) for slide in slides if slide.name in landmarks}


def _row(slide: Slide, found: Registered, implied: float) -> dict[str, Any]:
    """What was found of one slide, in plain types; ``implied`` is the size of a pixel by the alignment before, µm."""
    told = found.certificate
    distance = moved(slide, found)
    written = bool(found.certified and distance > told.error)
    advice = f"{told.reason}.{_on_size(slide, found, implied)}"
    if found.certified and not written:
        advice = f"{told.reason}. The cells are there already, within {distance:.1f} µm."
    if not found.certified:
        advice = (
            f"{told.reason}. The image keeps its transformation. {_on_size(slide, found, implied)}Mark three or more places on image and cells, and pass "
            "them as landmarks=…"
        )
    return {
        "verdict": told.verdict,
        "error": float(told.error),
        "moved": distance,
        "written": written,
        "by": found.by,
        "affine": bool(found.affine),
        "r2": float(told.r2_held_out),
        "far": float(told.far_share),
        "nuclei": float(told.nuclei),
        "dapi": float(told.dapi),
        "residual": found.residuals.median if found.residuals is not None else float("nan"),
        "advice": advice,
    }


def _on_size(slide: Slide, found: Registered, implied: float) -> str:
    """A sentence on the size of a pixel, where the alignment before gave a wrong one, or one that may be wrong."""
    if slide.setup.microns_per_pixel is not None:
        return ""
    if found.certified:
        size = slide.microns_per_pixel
        wrong = found.by != "landmarks" and not identity(slide) and max(size / implied, implied / size) > KNOWN_SCALE[1]
        return (
            f" Its pixels are of {size:.3g} µm, and not of {implied:.3g} µm as by the transformation." if wrong else ""
        )
    if identity(slide):
        return "Give the size of its pixels as microns_per_pixel, if you know it. "
    return (
        f"If its pixels are not of {implied:.3g} µm, as by the transformation, give their size as microns_per_pixel. "
    )
