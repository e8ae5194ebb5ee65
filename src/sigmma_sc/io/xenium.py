"""10x Xenium output with its H&E."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc._checks import is_number, require_package, require_path
from sigmma_sc.errors import CoverageWarning, RegistrationWarning, SetupError
from sigmma_sc.io.tiff import read_pyramid

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
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
EXPLORER = "*he_image_matrix.csv"
"""Pattern of the matrix that Xenium Explorer exports by itself."""

NEEDED = ("cells.parquet", "cell_feature_matrix.h5", "cells.zarr.zip")
"""Files of a run without which there are no cells."""

BOUNDARIES = "cell_boundaries.parquet"


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
        Matrix ``(3, 3)`` from H&E pixels to pixels of the morphology image, as CSV. By default the file that has the name of
        the H&E, next to it or in the folder: ``<name>alignment.csv`` as 10x Genomics publishes it, or ``<name>_matrix.csv``
        or ``<name>_alignment_files/matrix.csv`` as Xenium Explorer exports it. Otherwise the only file of such a name there.
    **kwargs
        Further arguments of :func:`spatialdata_io.xenium`, such as ``transcripts=True``. If
        ``cells_as_circles=False, cells_labels=True``, the table annotates the raster of cells instead of circles.

    Returns
    -------
    ``images["he_image"]`` (multi-scale), ``shapes["cell_circles"]`` and ``shapes["cell_boundaries"]`` (µm), and
    ``tables["table"]`` (raw counts of genes), in the system ``"global"`` of morphology pixels. Boundaries are left out if
    their file is missing. A boundary of fewer than three vertices is left out, with a warning; the cell stays.

    Raises
    ------
    SetupError
        The folder is not a Xenium output or lacks a file that holds cells, there is no H&E or several, or the alignment is
        not an affine matrix.
    MissingPackageError
        The extra ``io`` is not installed.

    Warns
    -----
    RegistrationWarning
        There is no alignment, so that H&E and morphology image get the same pixels, which is rarely right.
    CoverageWarning
        Some cells have no boundary.
    ImageWarning
        The file of the H&E holds several colour images of about the same size.

    See Also
    --------
    sigmma_sc.io.hest : Read a Xenium sample of HEST-1k.
    sigmma_sc.pp.register : Find the alignment of an H&E that has none.
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
    require_path(path, "path")
    path = Path(path)
    if not (path / "experiment.xenium").is_file():
        raise SetupError(f"{path} has no file experiment.xenium. Pass the output folder of a Xenium run.")
    pixel = _pixel_size(path / "experiment.xenium")
    for name in NEEDED:
        if not (path / name).is_file():
            raise SetupError(f"{path} has no file {name}, which holds the cells. Copy it from the output of the run.")
    if "aligned_images" in kwargs:
        raise SetupError("aligned_images is not supported. Pass the H&E as he_image=… and he_alignment=….")
    image = _find_image(path) if he_image is None else _existing(he_image, "he_image")
    alignment = _find_alignment(path, image) if he_alignment is None else _existing(he_alignment, "he_alignment")
    matrix = np.eye(3) if alignment is None else read_alignment(alignment)
    if alignment is None:
        warnings.warn(
            f"No alignment was found for {image.name}: neither {' nor '.join(_beside(image))} nor {ALIGNMENT} is next to it or in "
            f"{path}. Its pixels are used as those of the morphology image, which is rarely right. Find the alignment with "
            "sg.pp.register(sdata). Or download the file with the data set of 10x Genomics, or align the H&E in Xenium Explorer "
            "and export the matrix. Pass it as he_alignment=…, then look at sg.pp.check_registration(sdata).",
            RegistrationWarning,
            stacklevel=2,
        )

    import spatialdata_io
    from spatialdata.transformations import Affine

    what = {**dict.fromkeys(LEFT_OUT, False), "cells_as_circles": True, "cells_boundaries": True, **kwargs}
    degenerate = None
    if what["cells_boundaries"]:
        degenerate = _degenerate(path / BOUNDARIES) if (path / BOUNDARIES).is_file() else None
        what["cells_boundaries"] = degenerate is not None and not degenerate.any()
    try:
        sdata = spatialdata_io.xenium(path, **what)
    except FileNotFoundError as error:
        raise SetupError(f"A file of the run in {path} is missing: {error}. Copy it, or do not ask for it.") from error
    if degenerate is not None and degenerate.any():
        sdata.shapes["cell_boundaries"] = _sound_boundaries(path / BOUNDARIES, degenerate, pixel)
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


def _degenerate(path: Path) -> NDArray[np.bool_]:
    """Which rows of a file of boundaries are vertices of a polygon with fewer than three of them."""
    import pyarrow.parquet as pq

    name = "label_id" if "label_id" in pq.read_schema(path).names else "cell_id"
    polygon = pq.read_table(path, columns=[name])[name].to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], polygon[1:] != polygon[:-1]]))
    n_vertices = np.diff(starts, append=len(polygon))
    # A ring ends with its first vertex.
    return np.repeat(n_vertices < 4, n_vertices)


def _sound_boundaries(file: Path, degenerate: NDArray[np.bool_], pixel: float) -> GeoDataFrame:
    """Boundaries of the cells whose polygon has three vertices or more, in µm and by the names of the cells."""
    import pandas as pd
    import shapely
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Scale

    rows = pd.read_parquet(file, columns=["cell_id", "vertex_x", "vertex_y"])
    # Older software wrote names as bytes.
    if isinstance(rows.cell_id.iloc[0], bytes):
        rows["cell_id"] = rows.cell_id.str.decode("utf-8")
    lost = rows.cell_id[degenerate].unique()
    rows = rows[~degenerate]
    polygon = (rows.cell_id != rows.cell_id.shift()).cumsum().to_numpy() - 1
    rings = shapely.linearrings(rows[["vertex_x", "vertex_y"]].to_numpy(float), indices=polygon)
    names = rows.cell_id.to_numpy(dtype=object)[np.flatnonzero(np.diff(polygon, prepend=-1))]
    warnings.warn(
        f"{file}: {len(lost):,} cells have a polygon of fewer than three vertices, e.g. {lost[0]!r}. They are left out of "
        "shapes['cell_boundaries'], and stay in the table.",
        CoverageWarning,
        stacklevel=3,
    )
    to_pixels = {"global": Scale([1 / pixel] * 2, ("x", "y"))}
    return ShapesModel.parse(GeoDataFrame(geometry=shapely.polygons(rings), index=names), transformations=to_pixels)


def _pixel_size(path: Path) -> float:
    """µm of a pixel of the morphology image, from the description of a run."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SetupError(f"{path} is not JSON: {error}. Copy it from the output of the run again.") from error
    pixel = described.get("pixel_size") if isinstance(described, dict) else None
    if pixel is None or not is_number(pixel) or pixel <= 0:
        raise SetupError(
            f"{path} has pixel_size={pixel!r}, which must be µm. Copy it from the output of the run again."
        )
    return float(pixel)


def _existing(path: str | Path, what: str) -> Path:
    require_path(path, what)
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


def _beside(image: Path) -> tuple[str, ...]:
    """Names of an image's alignment, relative to its folder: as 10x Genomics publishes it, and as Xenium Explorer exports it."""
    name = image.name.removesuffix(image.suffix).removesuffix(".ome")
    return f"{name}alignment.csv", f"{name}_matrix.csv", f"{name}_alignment_files/matrix.csv"


def _find_alignment(folder: Path, image: Path) -> Path | None:
    places = dict.fromkeys((image.parent.resolve(), folder.resolve()))
    for place in places:
        for name in _beside(image):
            if (place / name).is_file():
                return place / name
    found: list[Path] = []
    for place in places:
        for pattern in (ALIGNMENT, EXPLORER, "*he_image_alignment_files/matrix.csv"):
            found += sorted(place.glob(pattern))
    return _only(found, "he_alignment") if found else None


def _only(found: list[Path], what: str) -> Path:
    if len(found) > 1:
        raise SetupError(f"{len(found)} files: {', '.join(file.name for file in found)}. Choose one with {what}=…")
    return found[0]
