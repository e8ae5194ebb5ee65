"""A second witness: nuclei of a DAPI image, which lies on the cells, against haematoxylin of the H&E at a pose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.registration.certificate import CANNOT_TELL
from sigmma_sc.registration.check import TOLERANCE
from sigmma_sc.registration.haematoxylin import SURROUNDINGS, Zoom, cell_windows
from sigmma_sc.registration.residuals import Residuals
from sigmma_sc.tissue.frame import affine_to, apply_affine, axis_scale, raster_levels
from sigmma_sc.tissue.levels import level_scales

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from sigmma_sc.registration.register import Registered
    from sigmma_sc.tissue.frame import Slide

WINDOW = 128.0
"""Side of the windows, µm; shifts of up to half of it are found."""

MICRONS = 1.0
"""Largest size of the pixels, µm, that the images are compared at, if they have them."""

SMOOTHING = 1.5
"""Standard deviation of the smoothing of both images, µm: their nuclei differ in texture, and agree in place."""

N_WINDOWS = 30
LEAST_WINDOWS = 5
"""Number of windows, and least number of them with both images in it."""


@dataclass(frozen=True)
class Dapi:
    """The DAPI channel of an image, at the level that is nearest to 1 µm a pixel from below."""

    level: xr.DataArray  # (y, x)
    factor: float  # side of its pixels in px of level 0
    to_system: NDArray[np.float64]  # affine (3, 3) from px of level 0 to the coordinate system

    @classmethod
    def of(cls, slide: Slide) -> Dapi | None:
        """The first image in the slide's system with a channel called DAPI, or a Xenium morphology image; else ``None``."""
        from spatialdata.transformations import get_transformation

        for name, image in slide.sdata.images.items():
            levels = raster_levels(image)
            channel = _channel(name, levels[0])
            known = slide.coordinate_system in get_transformation(image, get_all=True)
            if name == slide.image_key or channel is None or "z" in levels[0].dims or not known:
                continue
            to_system = affine_to(image, slide.coordinate_system, f"image {name!r}")
            he_to_system = affine_to(slide.sdata.images[slide.image_key], slide.coordinate_system, "image")
            unit = slide.microns_per_pixel / axis_scale(he_to_system, "image")
            scales = level_scales(levels)
            sizes = scales * axis_scale(to_system, f"image {name!r}") * unit
            number = max(0, int(np.searchsorted(sizes, MICRONS, side="right")) - 1)
            return cls(levels[number].isel(c=channel), float(scales[number]), to_system)
        return None

    def warped(self, matrix: NDArray[np.float64], side: int) -> NDArray[np.float32] | None:
        """Pixels ``(side, side)`` of a window; ``matrix`` takes its pixels, the first at (0.5, 0.5), to the system.

        ``None`` if the window is not wholly under the image.
        """
        from skimage.transform import AffineTransform, warp

        to_level = np.diag([1 / self.factor, 1 / self.factor, 1.0]) @ np.linalg.inv(self.to_system) @ matrix
        corners = apply_affine(to_level, side * np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]))
        low = np.floor(corners.min(axis=0)).astype(np.int64) - 1
        high = np.ceil(corners.max(axis=0)).astype(np.int64) + 1
        if (low < 0).any() or (high > (self.level.sizes["x"], self.level.sizes["y"])).any():
            return None
        pixels = self.level.isel(x=slice(low[0], high[0]), y=slice(low[1], high[1])).to_numpy().astype(np.float32)
        # scikit-image counts from the middle of the first pixel.
        half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        origin = np.array([[1, 0, -low[0] - 0.5], [0, 1, -low[1] - 0.5], [0, 0, 1]])
        return warp(pixels, AffineTransform(origin @ to_level @ half), output_shape=(side, side), preserve_range=True)


def _channel(name: str, level: xr.DataArray) -> int | None:
    """Position of the DAPI channel, which Xenium's morphology images have first."""
    names = [str(one).lower() for one in level.coords["c"].values] if "c" in level.coords else []
    named = [number for number, one in enumerate(names) if "dapi" in one]
    if named:
        return named[0]
    return 0 if name.startswith("morphology") else None


def dapi_shifts(slide: Slide, pose: NDArray[np.float64], seed: int, n_windows: int = N_WINDOWS) -> Residuals | None:
    """Shifts of the cells at a pose, px to px, that would put the nuclei of a DAPI image on those of the H&E.

    They are found by cross-correlation in windows of 128 µm around random cells. ``None`` without a DAPI image of the cells,
    or with fewer than five windows that hold both images.
    """
    from skimage.registration import phase_cross_correlation

    dapi = Dapi.of(slide)
    if dapi is None:
        return None
    zoom = Zoom.of(slide, MICRONS, exact=True)
    half = round(WINDOW / 2 / zoom.microns)
    xy = apply_affine(pose, slide.xy) / zoom.px
    inside = np.flatnonzero(((xy >= half) & (xy < zoom.size - half)).all(axis=1))
    he_to_system = affine_to(slide.sdata.images[slide.image_key], slide.coordinate_system, "image")
    to_system = he_to_system @ np.linalg.inv(pose)
    places = []
    shifts = []
    for corner, _ in cell_windows(xy, inside, half, n_windows, seed):
        window = np.array([[zoom.px, 0, zoom.px * corner[0]], [0, zoom.px, zoom.px * corner[1]], [0, 0, 1]])
        fluorescence = dapi.warped(to_system @ window, 2 * half)
        if fluorescence is None or fluorescence.std() == 0:
            continue
        stain = _relief(zoom.nuclei(zoom.pixels(corner, 2 * half)), zoom.microns)
        # Normalised, it would compare phases alone, which smooth images do not share.
        found = phase_cross_correlation(
            stain, _relief(fluorescence, zoom.microns), upsample_factor=10, normalization=None
        )
        shifts.append(found[0][::-1] * zoom.microns)
        places.append((corner + half) * zoom.microns)
    if len(shifts) < LEAST_WINDOWS:
        return None
    return Residuals(np.array(places, float), np.array(shifts))


def witnessed(slide: Slide, found: Registered, seed: int) -> Registered:
    """A pose with what a DAPI image says of it: one that it contradicts is not certified any more."""
    if not found.certified or found.matrix is None:
        return found
    shifts = dapi_shifts(slide, found.matrix, seed)
    if shifts is None:
        return found
    told = replace(found.certificate, dapi=shifts.median)
    if shifts.median > told.error + TOLERANCE:
        reason = (
            f"{told.reason}, but at this pose nuclei of the DAPI image are {shifts.median:.0f} µm from those of the H&E. Check the "
            "transformation of the DAPI image"
        )
        told = replace(told, verdict=CANNOT_TELL, reason=reason)
    return replace(found, certificate=told)


def _relief(pixels: NDArray[np.float32], microns: float) -> NDArray[np.float32]:
    """Smoothed pixels above their surroundings."""
    from scipy.ndimage import gaussian_filter, uniform_filter

    return gaussian_filter(pixels - uniform_filter(pixels, max(1, round(SURROUNDINGS / microns))), SMOOTHING / microns)
