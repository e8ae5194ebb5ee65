"""Where things are: cells in H&E pixels, µm per pixel, one :class:`Slide` a region.

All geometry is in one frame, the H&E pixels of level 0. H&E is often rotated and scaled against the frame of the cells,
so positions always pass through the transforms and are never assumed axis-aligned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc._checks import require_key
from sigmma_sc.errors import PixelSizeError, SetupError
from sigmma_sc.tissue.tiling import Tiles, covering_tiles

if TYPE_CHECKING:
    import xarray as xr
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData
    from spatialdata.models import SpatialElement

    from sigmma_sc.tissue.setup import Setup

MAX_ANISOTROPY = 1.01
"""Largest tolerated ratio of the two axis scales of an image transform."""

MAX_CONDITION = 1e6
"""A transform whose axes differ by more than this factor maps the plane onto a line."""

PLAUSIBLE_MICRONS = (0.05, 10.0)
"""Range of µm per H&E pixel; a value outside of it is refused as a mistake."""


@dataclass(frozen=True)
class Slide:
    """One image with its cells."""

    name: str  # unique name among the slides of a model
    # Object that holds the image, and name of the image.
    sdata: SpatialData
    image_key: str
    coordinate_system: str  # coordinate system that image and cells share
    region: str | None  # element that the table annotates, None for a slide of H&E alone
    microns_per_pixel: float  # µm per H&E pixel of level 0
    # Size of level 0 in px.
    width: int
    height: int
    rows: NDArray[np.int64]  # rows of the slide's cells in the table, ascending, (n_cells,)
    # Cell centroids in H&E px of level 0, (n_cells, 2) float64; the centre of a pixel is at +0.5.
    xy: NDArray[np.float64]
    sample: str  # donor or section the slide belongs to; its own name where it holds several
    setup: Setup  # setup of the object, which names table, image and tile size
    adata: AnnData | None  # table of the cells; None for a slide of H&E alone
    # Sample of each cell where the slide holds several, such as cores; "" for none, (n_cells,).
    cell_samples: NDArray[np.str_] | None = None
    # Affine (3, 3) from the stored positions of the cells to the coordinate system; None where they are in its units.
    cells_to_system: NDArray[np.float64] | None = None

    @property
    def under_image(self) -> NDArray[np.bool_]:
        """Which cells are under the image, ``(n_cells,)``."""
        x, y = self.xy.T
        return (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)

    @property
    def table(self) -> AnnData:
        """Table of the cells, or :class:`SetupError` for a slide of H&E alone."""
        if self.adata is None:
            raise SetupError(f"Slide {self.name!r} has no cells (table_key=None). Set up with table_key=….")
        return self.adata

    @property
    def samples(self) -> list[str]:
        """Names of the samples on the slide."""
        if self.cell_samples is None:
            return [self.sample]
        return [str(name) for name in np.unique(self.cell_samples) if name]

    def sample_of(self, tiles: Tiles) -> NDArray[np.str_]:
        """Sample of each tile, ``(n_tiles,)``; ``""`` where its cells are of several samples, or of none."""
        if self.cell_samples is None:
            return np.full(len(tiles), self.sample)
        names = np.array(self.samples)
        place = np.searchsorted(names, self.cell_samples[tiles.cells])
        named = self.cell_samples[tiles.cells] != ""
        holds = np.zeros((len(tiles), len(names)), bool)
        holds[np.repeat(np.arange(len(tiles)), tiles.n_cells)[named], place[named]] = True
        return np.where(holds.sum(axis=1) == 1, names[holds.argmax(axis=1)], "")

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


def raster_levels(image: xr.DataArray | xr.DataTree) -> list[xr.DataArray]:
    """Pyramid levels of an image or of labels, full resolution first; a single one where there is no pyramid."""
    from xarray import DataArray

    if isinstance(image, DataArray):
        return [image]
    levels = sorted(image.children.items(), key=lambda item: int(item[0].removeprefix("scale")))
    return [next(iter(node.ds.data_vars.values())) for _, node in levels]


def affine_to(element: SpatialElement, coordinate_system: str, what: str) -> NDArray[np.float64]:
    """Affine matrix ``(3, 3)`` over (x, y, 1) from the units of an element to a coordinate system, or a typed error."""
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
    """Length that one unit of the source measures in the target, ``sqrt(|det A|)``; axes may differ by 1 %."""
    singular = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if singular[0] > MAX_ANISOTROPY * singular[1]:
        raise PixelSizeError(
            f"The transform of {what} stretches one axis by {singular[0] / singular[1]:.3f} against the other. At most "
            f"{MAX_ANISOTROPY} is allowed, because a tile that is square in µm must be square in pixels. Resample the image to "
            "square pixels, or correct the transform."
        )
    return float(np.sqrt(singular[0] * singular[1]))


def microns_per_unit(cells_to_cs: NDArray[np.float64]) -> float | None:
    """µm per unit of the coordinate system, or ``None`` where the transforms do not determine it.

    The rule is spatialdata-io's convention for Xenium and MERSCOPE: cells in µm, with a scale above 1 to pixels finer
    than 1 µm. A scale of 1 (cells already in the system's units) or below does not determine the µm.
    """
    scale = axis_scale(cells_to_cs, "the cells")
    return 1 / scale if scale > 1 + 1e-6 else None


def resolve_pixel_size(
    image_to_cs: NDArray[np.float64], cells_to_cs: NDArray[np.float64] | None, stated: float | None, what: str
) -> float:
    """µm per H&E pixel of level 0: as stated, or unit size · sqrt(|det A|) (METHOD: units and frame)."""
    scale = axis_scale(image_to_cs, f"image {what!r}")
    microns = stated
    # If the pixel size is given, the transform of the cells is not needed and may be of any kind.
    if microns is None:
        unit = None if cells_to_cs is None else microns_per_unit(cells_to_cs)
        if unit is None:
            raise PixelSizeError(
                f"The transforms do not determine the µm per pixel of image {what!r}: the cells are not in µm, or there are "
                "none. Pass microns_per_pixel=… (µm per pixel of the full-resolution H&E; scanners write it in the slide's "
                "metadata, e.g. 0.2738 for a 40x scan)."
            )
        microns = scale * unit
    low, high = PLAUSIBLE_MICRONS
    if not low <= microns <= high:
        raise PixelSizeError(
            f"{microns:.4g} µm per pixel of image {what!r} is outside {low} to {high} µm. Check the transforms, the "
            "coordinate_system, or pass microns_per_pixel=…"
        )
    return float(microns)


def apply_affine(matrix: NDArray[np.floating], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply an affine ``(3, 3)`` to points ``(n, 2)``."""
    return xy @ matrix[:2, :2].T + matrix[:2, 2]
