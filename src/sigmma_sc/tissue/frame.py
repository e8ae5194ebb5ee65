"""Where things are: cells in H&E pixels, µm per pixel, one :class:`Slide` a region.

All geometry lives in one frame, the H&E pixels of level 0. H&E is often rotated and scaled against the frame of the
cells, so positions always travel through the transforms and are never assumed axis-aligned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc._checks import require_key
from sigmma_sc.errors import PixelSizeError, SetupError
from sigmma_sc.tissue.tiling import Tiles, covering_tiles

if TYPE_CHECKING:
    import xarray as xr
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from sigmma_sc.tissue.setup import Setup

MAX_ANISOTROPY = 1.01
"""Largest tolerated ratio of the two axis scales of an image transform."""

MAX_CONDITION = 1e6
"""A transform whose axes differ by more than this factor maps the plane onto a line."""

PLAUSIBLE_MICRONS = (0.05, 10.0)
"""µm per H&E pixel outside this range is taken for a mistake."""


@dataclass(frozen=True)
class Slide:
    """One image with the cells that lie on it.

    Attributes
    ----------
    name
        Unique name among the slides of a model.
    sdata, image_key, coordinate_system
        Where the image is, and the system that image and cells share.
    region
        Element that the table annotates, ``None`` for a slide of H&E alone.
    microns_per_pixel
        µm per H&E pixel of level 0.
    width, height
        Size of level 0 in px.
    rows
        Rows of the slide's cells in the table, ascending, ``(n_cells,)``.
    xy
        Cell centroids in H&E px of level 0, ``(n_cells, 2)`` float64; a pixel's centre lies at +0.5.
    sample
        Donor or section the slide belongs to.
    setup
        How the object is read.
    adata
        Table of the cells; ``None`` for a slide of H&E alone.
    """

    name: str
    sdata: SpatialData
    image_key: str
    coordinate_system: str
    region: str | None
    microns_per_pixel: float
    width: int
    height: int
    rows: NDArray[np.int64]
    xy: NDArray[np.float64]
    sample: str
    setup: Setup
    adata: AnnData | None

    @property
    def under_image(self) -> NDArray[np.bool_]:
        """Which cells lie under the image, ``(n_cells,)``."""
        x, y = self.xy.T
        return (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)

    @property
    def table(self) -> AnnData:
        """Table of the cells.

        Raises
        ------
        SetupError
            The slide is one of H&E alone.
        """
        if self.adata is None:
            raise SetupError(
                f"Slide {self.name!r} was set up with table_key=None and has no cells. Set up with table_key=…."
            )
        return self.adata

    @property
    def side(self) -> float:
        """Side of a tile in px."""
        return self.setup.tile_size / self.microns_per_pixel

    @property
    def tiles(self) -> Tiles:
        """Tiles that cover the image."""
        return self._covering[0]

    @property
    def tile_of_cell(self) -> NDArray[np.int64]:
        """Covering tile of each cell, ``(n_cells,)``; -1 for cells off the image."""
        return self._covering[1]

    @cached_property
    def _covering(self) -> tuple[Tiles, NDArray[np.int64]]:
        return covering_tiles(self.xy, self.width, self.height, self.side)


def image_levels(sdata: SpatialData, image_key: str) -> list[xr.DataArray]:
    """Pyramid levels of an image, full resolution first, each ``(c, y, x)`` and lazy."""
    require_key(image_key, sdata.images, "image_key")
    return raster_levels(sdata.images[image_key])


def raster_levels(image: Any) -> list[xr.DataArray]:
    """Pyramid levels of an image or of labels, full resolution first; a single one where there is no pyramid."""
    if not hasattr(image, "children"):
        return [image]
    return [next(iter(node.ds.data_vars.values())) for _, node in sorted(image.children.items(), key=_level_number)]


def _level_number(item: tuple[str, Any]) -> int:
    return int(item[0].removeprefix("scale"))


def affine_to(element: Any, coordinate_system: str, what: str) -> NDArray[np.float64]:
    """Affine matrix ``(3, 3)`` over (x, y, 1) from an element's own units to a coordinate system.

    Raises
    ------
    MissingKeyError
        The element has no transform to that coordinate system.
    SetupError
        The transform is not affine in the plane, or not invertible.
    """
    from spatialdata.transformations import get_transformation

    transforms = get_transformation(element, get_all=True)
    require_key(
        coordinate_system,
        transforms,
        "coordinate_system",
        f"{what} must have a transformation to the system of the cells.",
    )
    try:
        matrix = np.asarray(transforms[coordinate_system].to_affine_matrix(("x", "y"), ("x", "y")), dtype=float)
    except (ValueError, NotImplementedError) as error:
        raise SetupError(
            f"The transform of {what} to {coordinate_system!r} is not affine in the plane: {error}"
        ) from error
    if not np.isfinite(matrix).all() or np.linalg.cond(matrix[:2, :2]) > MAX_CONDITION:
        raise SetupError(
            f"The transform of {what} to {coordinate_system!r} cannot be inverted: {matrix[:2].tolist()}. Set it with "
            "spatialdata.transformations.set_transformation."
        )
    return matrix


def axis_scale(matrix: NDArray[np.float64], what: str) -> float:
    """Length that one unit of the source measures in the target, ``sqrt(|det A|)``.

    Raises
    ------
    PixelSizeError
        The two axes differ by more than 1 %: a tile would be no square, and a nucleus no circle.
    """
    singular = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if singular[0] > MAX_ANISOTROPY * singular[1]:
        raise PixelSizeError(
            f"The transform of {what} stretches one axis by {singular[0] / singular[1]:.3f} against the other; more than "
            f"{MAX_ANISOTROPY} is refused, for a square tile in µm would be no square in pixels, and one number could not say "
            "how many µm a pixel measures. Resample the image to square pixels, or correct the transform."
        )
    return float(np.sqrt(singular[0] * singular[1]))


def microns_per_unit(cells_to_cs: NDArray[np.float64]) -> float | None:
    """µm that one unit of the coordinate system measures, or ``None`` where the transforms cannot say.

    The rule is spatialdata-io's convention for Xenium and MERSCOPE: cells in µm, with a scale above 1 that takes
    them to pixels finer than a µm. A scale of 1 (cells already in the system's units) or below says nothing of µm.
    """
    scale = axis_scale(cells_to_cs, "the cells")
    return 1 / scale if scale > 1 + 1e-6 else None


def resolve_pixel_size(
    image_to_cs: NDArray[np.float64], cells_to_cs: NDArray[np.float64] | None, stated: float | None, what: str
) -> float:
    """µm per H&E pixel of level 0: as stated, or unit size · sqrt(|det A|) (METHOD: units and frame).

    Raises
    ------
    PixelSizeError
        The transforms cannot say, or the value is implausible.
    """
    scale = axis_scale(image_to_cs, f"image {what!r}")
    # What is stated needs no word from the cells, whose transform may then be of any kind.
    unit = None if cells_to_cs is None or stated is not None else microns_per_unit(cells_to_cs)
    if stated is None and unit is None:
        raise PixelSizeError(
            f"The transforms cannot say how many µm a pixel of image {what!r} measures: the cells are not in µm, or there "
            "are none. Pass microns_per_pixel=… (µm per pixel of the full-resolution H&E; scanners write it in the slide's "
            "metadata, e.g. 0.2738 for a 40x scan)."
        )
    microns = scale * unit if stated is None else stated
    low, high = PLAUSIBLE_MICRONS
    if not low <= microns <= high:
        raise PixelSizeError(
            f"{microns:.4g} µm per pixel of image {what!r} is outside {low} to {high} µm. Check the transforms, the "
            "coordinate_system, or state microns_per_pixel=…"
        )
    return float(microns)


def apply_affine(matrix: NDArray[np.float64], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply an affine ``(3, 3)`` to points ``(n, 2)``."""
    return xy @ matrix[:2, :2].T + matrix[:2, 2]
