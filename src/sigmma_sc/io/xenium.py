"""10x Xenium output with its H&E."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc._checks import require_package
from sigmma_sc.errors import RegistrationWarning, SetupError
from sigmma_sc.io.tiff import read_pyramid

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

LEFT_OUT = (
    "cells_labels",
    "nucleus_boundaries",
    "nucleus_labels",
    "transcripts",
    "morphology_mip",
    "morphology_focus",
    "aligned_images",
)
"""Elements that spatialdata-io reads by default, and alignment does not need."""

IMAGE = "*he_image.ome.tif"
ALIGNMENT = "*he_imagealignment.csv"


def xenium(
    path: str | Path, he_image: str | Path | None = None, he_alignment: str | Path | None = None, **kwargs: object
) -> SpatialData:
    """Read a Xenium output folder and the H&E of the same section.

    Cells are read by :func:`spatialdata_io.xenium`, from all versions of the software of the instrument. The H&E is lazy,
    with the pyramid that its file stores.

    Parameters
    ----------
    path
        Folder with ``experiment.xenium``.
    he_image
        H&E as (OME-)TIFF; by default the only ``*he_image.ome.tif`` of the folder. The largest colour image of the file is
        read.
    he_alignment
        Matrix ``(3, 3)`` from H&E pixels to pixels of the morphology image, as CSV. By default
        ``<name of the H&E>alignment.csv`` next to the H&E or in the folder, or else the only ``*he_imagealignment.csv``
        there.
    **kwargs
        Further arguments of :func:`spatialdata_io.xenium`, such as ``transcripts=True``. If
        ``cells_as_circles=False, cells_labels=True``, the table annotates the raster of cells instead of circles.

    Returns
    -------
    ``images["he_image"]`` (multi-scale), ``shapes["cell_circles"]`` and ``shapes["cell_boundaries"]`` (µm), and
    ``tables["table"]`` (raw counts of genes), in the system ``"global"`` of morphology pixels.

    Raises
    ------
    SetupError
        The folder is not a Xenium output, there is no H&E or several, or the alignment is not an affine matrix.
    MissingPackageError
        The extra ``io`` is not installed.

    Warns
    -----
    RegistrationWarning
        There is no alignment, so that H&E and morphology image get the same pixels, which is rarely right.
    ImageWarning
        The file of the H&E holds several colour images of about the same size.

    See Also
    --------
    sigmma_sc.io.hest : Read a Xenium sample of HEST-1k.
    sigmma_sc.pp.check_registration : Check the alignment.

    Notes
    -----
    File names: `10x Genomics, Xenium Onboard Analysis and Xenium Explorer documentation
    <https://www.10xgenomics.com/support/software/xenium-onboard-analysis>`__.

    Examples
    --------
    >>> sdata = sg.io.xenium("outs/", he_image="he.ome.tif", he_alignment="he_alignment.csv")  # doctest: +SKIP
    >>> SIGMMA.setup_spatialdata(sdata)  # doctest: +SKIP
    """
    require_package("spatialdata_io", "io")
    path = Path(path)
    if not (path / "experiment.xenium").is_file():
        raise SetupError(f"{path} has no file experiment.xenium. Pass the output folder of a Xenium run.")
    if "aligned_images" in kwargs:
        raise SetupError("aligned_images is not supported. Pass the H&E as he_image=… and he_alignment=….")
    image = _find_image(path) if he_image is None else _existing(he_image, "he_image")
    alignment = _find_alignment(path, image) if he_alignment is None else _existing(he_alignment, "he_alignment")
    matrix = np.eye(3) if alignment is None else read_alignment(alignment)
    if alignment is None:
        warnings.warn(
            f"No alignment was found for {image.name}: neither {_beside(image)} nor {ALIGNMENT} is next to it or in {path}. "
            "Its pixels are used as those of the morphology image, which is rarely right. Download the file with the data "
            "set of 10x Genomics, or align the H&E in Xenium Explorer and export the matrix. Pass it as he_alignment=…, then "
            "look at sg.pp.check_registration(sdata).",
            RegistrationWarning,
            stacklevel=2,
        )

    import spatialdata_io
    from spatialdata.transformations import Affine

    what = {**dict.fromkeys(LEFT_OUT, False), "cells_as_circles": True, **kwargs}
    sdata = spatialdata_io.xenium(path, **what)
    sdata.images["he_image"] = read_pyramid(image, Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y")))
    return sdata


def read_alignment(path: Path) -> NDArray[np.float64]:
    """Read an affine matrix ``(3, 3)`` over (x, y, 1), as Xenium Explorer writes it, or raise :class:`SetupError`."""
    try:
        matrix = np.loadtxt(path, delimiter=",", ndmin=2, encoding="utf-8-sig")
    except ValueError as error:
        raise SetupError(
            f"{path} is not a matrix of numbers: {error}. Xenium Explorer exports two files; pass matrix.csv, not the keypoints."
        ) from error
    if matrix.shape != (3, 3) or not np.allclose(matrix[2], (0, 0, 1)):
        raise SetupError(f"{path} must hold a 3 × 3 affine matrix whose last row is 0,0,1; it holds {matrix.tolist()}.")
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise SetupError(f"The alignment in {path} cannot be inverted: {matrix[:2].tolist()}. Export it again.")
    return matrix


def _existing(path: str | Path, what: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise SetupError(f"{what}={str(path)!r} is not a file.")
    return path


def _find_image(folder: Path) -> Path:
    found = sorted(folder.glob(IMAGE))
    if not found:
        raise SetupError(
            f"{folder} holds no {IMAGE}. Pass the H&E of the section as he_image=…; a Xenium run only makes "
            "fluorescence images."
        )
    return _only(found, "he_image")


def _beside(image: Path) -> str:
    """Name of an image's alignment: ``x_he_image.ome.tif`` has ``x_he_imagealignment.csv``."""
    return image.name.removesuffix(image.suffix).removesuffix(".ome") + "alignment.csv"


def _find_alignment(folder: Path, image: Path) -> Path | None:
    places = dict.fromkeys((image.parent.resolve(), folder.resolve()))
    for place in places:
        if (place / _beside(image)).is_file():
            return place / _beside(image)
    found: list[Path] = []
    for place in places:
        found += sorted(place.glob(ALIGNMENT))
    return _only(found, "he_alignment") if found else None


def _only(found: list[Path], what: str) -> Path:
    if len(found) > 1:
        raise SetupError(f"{len(found)} files: {', '.join(file.name for file in found)}. Choose one with {what}=…")
    return found[0]
