"""Write a pose into the object, as the transformation of the image, and keep the one before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc import _keys
from sigmma_sc.errors import ExistsError, SetupError
from sigmma_sc.registration.register import Registered
from sigmma_sc.tissue.frame import MAX_ANISOTROPY, affine_to, apply_affine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide


def require_free(slides: Sequence[Slide], overwrite: bool) -> None:
    """Raise before the search if a pose could not be written: an image of several regions, or one registered before."""
    seen: set[tuple[int, str]] = set()
    for slide in slides:
        image = id(slide.sdata), slide.image_key
        if image in seen:
            raise SetupError(
                f"Image {slide.image_key!r} belongs to several regions, and has one transformation. Register one region: give "
                "each an image of its own, or a table of one region."
            )
        seen.add(image)
        if not overwrite and _keys.unregistered(slide.coordinate_system) in _transformations(slide):
            raise ExistsError(
                f"Image {slide.image_key!r} was registered before: its first transformation is kept as "
                f"{_keys.unregistered(slide.coordinate_system)!r}. Pass overwrite=True to register it again."
            )


def moved(slide: Slide, found: Registered) -> float:
    """Root mean square distance in µm between the cells' places on the image before and after; NaN without a pose."""
    if found.matrix is None:
        return float("nan")
    apart = (apply_affine(found.matrix, slide.xy) - slide.xy) * slide.microns_per_pixel
    return float(np.sqrt((apart**2).sum(axis=1).mean()))


def placed(slide: Slide, found: Registered) -> NDArray[np.float64]:
    """Affine ``(3, 3)`` from the image to the coordinate system under a certified pose, or :class:`SetupError`."""
    if found.matrix is None or not found.certified:
        raise SetupError(f"The pose of slide {slide.name!r} is not certified: {found.certificate.reason}.")
    before = affine_to(slide.sdata.images[slide.image_key], slide.coordinate_system, f"image {slide.image_key!r}")
    # The pose moves cells in the image. The image moves the other way.
    matrix = before @ np.linalg.inv(found.matrix)
    singular = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if singular[0] > MAX_ANISOTROPY * singular[1]:
        raise SetupError(
            f"The pose of slide {slide.name!r} stretches the image by {singular[0] / singular[1]:.3f} along one axis. At most "
            f"{MAX_ANISOTROPY} is allowed. Check that the pixels of the image are square."
        )
    return matrix


def place(slide: Slide, matrix: NDArray[np.float64]) -> None:
    """Make an affine the transformation of the image; the first one stays under a name of its own.

    Tile squares are in pixels of the image, and go with it.
    """
    from spatialdata.transformations import Affine, set_transformation

    system = slide.coordinate_system
    before = _transformations(slide)
    first = before.get(_keys.unregistered(system), before[system])
    for name in on_image(slide):
        set_transformation(slide.sdata[name], first, _keys.unregistered(system))
        set_transformation(slide.sdata[name], Affine(matrix, ("x", "y"), ("x", "y")), system)


def on_image(slide: Slide) -> list[str]:
    """Names of the elements in pixels of a slide's image: itself, and its tile squares if a model wrote them."""
    squares = _keys.tile_squares(slide.region or slide.image_key)
    return [slide.image_key] + [squares] * (squares in slide.sdata.shapes)


def embedded(slide: Slide) -> list[str]:
    """What of an object a model made from the cells where they were."""
    written = [f"obsm[{key!r}]" for key in map(_keys.obsm_cells, slide.setup.scales) if key in slide.table.obsm]
    return written + [f"tables[{_keys.TILES!r}]"] * (_keys.TILES in slide.sdata.tables)


def _transformations(slide: Slide) -> dict[str, NDArray]:
    from spatialdata.transformations import get_transformation

    return get_transformation(slide.sdata.images[slide.image_key], get_all=True)
