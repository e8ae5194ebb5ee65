"""Regions on the image to and from QuPath."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sigmma_sc._checks import (
    require_choice,
    require_key,
    require_name,
    require_path,
    require_positive,
    require_stored_name,
)
from sigmma_sc._files import fresh_file
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError
from sigmma_sc.tissue.setup import slides_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData

    from sigmma_sc.tissue.frame import Slide

REACH = 2.0
"""Distance from a cell at which its niche ends, in medians of the distance to the nearest cell."""

DECIMALS = 2
"""Of coordinates in px."""


def to_geojson(
    sdata: SpatialData,
    path: str | Path,
    key: str = "sigmma_niche_meso",
    shapes: Literal["niches", "tiles"] = "niches",
    slide: str | None = None,
    max_distance: float | None = None,
    overwrite: bool = False,
) -> None:
    """Write niches, or tiles with their niche, as a GeoJSON file that QuPath opens on the H&E.

    In QuPath, open the image that was read into the object, and drag the file onto it. Coordinates are pixels of the image at
    full resolution.

    Parameters
    ----------
    sdata
        Object prepared with :meth:`sigmma_sc.SIGMMA.setup_spatialdata`, with labels of its cells.
    path
        File to write, such as ``"niches.geojson"``.
    key
        Column of ``obs`` with the labels. Cells without a label are left out.
    shapes
        ``"niches"``: one annotation for each niche, the ground that is nearer to its cells than to others. ``"tiles"``: the
        tiles that hold cells, each with the niche of most of them.
    slide
        Name of the slide, where there are several.
    max_distance
        Distance from a cell at which its niche ends, µm; ``None`` for twice the median distance of a cell to the next.
    overwrite
        Replace the file.

    Raises
    ------
    ExistsError
        The file exists and ``overwrite`` is not set.
    MissingKeyError
        There is no such column or slide.
    SetupError
        The object has no setup or several slides, or no cell has a label.

    See Also
    --------
    sigmma_sc.io.read_regions : What was drawn in QuPath, as a column of ``obs``.

    Notes
    -----
    Each feature has ``objectType``, and a ``classification`` with ``name`` and ``color``, as QuPath writes them. Colours are
    those of ``uns[f"{key}_colors"]``, where the table has them. Polygons are Voronoi cells, joined by niche. They do not overlap.

    Examples
    --------
    >>> sg.io.to_geojson(sdata, "niches.geojson")
    >>> import json
    >>> json.load(open("niches.geojson"))["features"][0]["properties"]["objectType"]
    'annotation'
    """
    require_path(path, "path")
    require_name(key, "key")
    require_choice(shapes, ("niches", "tiles"), "shapes")
    if max_distance is not None:
        require_positive(max_distance, "max_distance")
    file = Path(path).expanduser()
    if file.exists() and not overwrite:
        raise ExistsError(f"{file} exists. Choose another path, or pass overwrite=True to replace it.")
    one = _slide_of(sdata, slide)
    require_key(key, one.table.obs, "column")
    labels = one.table.obs[key].iloc[one.rows].astype("category").cat.remove_unused_categories()
    codes = labels.cat.codes.to_numpy()
    if not (codes >= 0).any():
        raise SetupError(f"obs[{key!r}] labels no cell of slide {one.name!r}. Pass another key=….")
    names = [str(name) for name in labels.cat.categories]
    places = _niches(one, codes, len(names), max_distance) if shapes == "niches" else _tiles(one, codes)
    kind = "annotation" if shapes == "niches" else "tile"
    colours = _colours(one, key, names)
    features = []
    for code, geometry, measured in places:
        features.append(_feature(geometry, kind, names[code], colours.get(names[code]), measured))
    file.parent.mkdir(parents=True, exist_ok=True)
    with fresh_file(file) as fresh:
        fresh.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")


def read_regions(
    sdata: SpatialData,
    path: str | Path,
    key_added: str = "region_drawn",
    slide: str | None = None,
    overwrite: bool = False,
) -> None:
    """Read regions that were drawn on the H&E, as in QuPath, into a column of ``obs``.

    In QuPath: *File*, *Export objects as GeoJSON*, of the image that was read into the object, at full resolution. A cell is
    of the region that its centre lies in. Of several, one inside the other, it is of the smallest.

    Parameters
    ----------
    sdata
        Object prepared with :meth:`sigmma_sc.SIGMMA.setup_spatialdata`.
    path
        GeoJSON file of polygons in px of the image. Points and lines are left out.
    key_added
        Column of ``obs`` that is written: the name of the region's class, or else its own name, or else ``"region 1"``,
        ``"region 2"``, … in the order of the file. Missing for cells in no region, and for cells of other slides, unless
        they have a name from an earlier call with ``overwrite=True``.
    slide
        Name of the slide, where there are several.
    overwrite
        Replace what the column says of the cells of the slide.

    Raises
    ------
    ExistsError
        The column exists and ``overwrite`` is not set.
    MissingKeyError
        There is no such slide.
    SetupError
        The file is no GeoJSON, holds no polygon, or none with a cell in it; or the object has no setup or several slides.

    See Also
    --------
    sigmma_sc.io.to_geojson : Niches as a file for QuPath.
    sigmma_sc.metrics.niche_agreement : Agreement of niches with regions.

    Examples
    --------
    >>> sg.io.to_geojson(sdata, "niches.geojson", overwrite=True)
    >>> sg.io.read_regions(sdata, "niches.geojson")
    >>> bool((adata.obs["region_drawn"].astype(str) == adata.obs["sigmma_niche_meso"].astype(str)).all())
    True
    """
    import shapely

    require_path(path, "path")
    require_stored_name(key_added, "key_added")
    one = _slide_of(sdata, slide)
    obs = one.table.obs
    if key_added in obs and not overwrite:
        raise ExistsError(
            f"obs[{key_added!r}] exists. Pass another key_added=…, or overwrite=True to replace it for the slide."
        )
    regions = list(_polygons(Path(path).expanduser()))
    regions.sort(key=lambda region: -region[1].area)
    found = np.full(len(one.rows), None, dtype=object)
    for name, polygon in regions:  # the smallest last
        shapely.prepare(polygon)
        found[shapely.intersects_xy(polygon, *one.xy.T)] = name
    if all(name is None for name in found):
        low, high = one.xy.min(axis=0), one.xy.max(axis=0)
        raise SetupError(
            f"No cell of slide {one.name!r} lies in a region of {path}. Cells are from {low.round().tolist()} to "
            f"{high.round().tolist()} px of {one.image_key!r}. Export from that image, at full resolution."
        )
    labels = obs[key_added].astype(object).to_numpy(copy=True) if key_added in obs else np.full(len(obs), None, object)
    labels[one.rows] = found
    obs[key_added] = pd.Categorical(labels)


def _slide_of(sdata: SpatialData, name: str | None) -> Slide:
    """The slide of a name, or the only one."""
    slides = {slide.name: slide for slide in slides_of(sdata)}
    if name is not None:
        require_key(name, slides, "slide")
        return slides[name]
    if len(slides) > 1:
        raise SetupError(f"The object has {len(slides)} slides. Choose one with slide=…: {', '.join(slides)}.")
    return next(iter(slides.values()))


def _niches(
    slide: Slide, codes: NDArray[np.integer], n: int, max_distance: float | None
) -> Iterator[tuple[int, BaseGeometry, dict[str, float]]]:
    """Ground of each niche: Voronoi cells of its cells, up to a distance from them."""
    import shapely
    from scipy.spatial import Voronoi, cKDTree

    # Of cells at one place the first counts.
    xy, first = np.unique(slide.xy[codes >= 0], axis=0, return_index=True)
    niche = codes[codes >= 0][first]
    if max_distance is not None:
        reach = max_distance / slide.microns_per_pixel
    else:
        reach = REACH * float(np.median(cKDTree(xy).query(xy, 2)[0][:, 1])) if len(xy) > 1 else slide.side / 2
    # Four points far away close the cells at the edge.
    middle, size = xy.mean(axis=0), 10 * (np.ptp(xy, axis=0).max() + reach)
    diagram = Voronoi(np.concatenate([xy, middle + size * np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])]))
    rings = [diagram.regions[region] for region in diagram.point_region[: len(xy)]]
    lengths = [len(ring) for ring in rings]
    corners = diagram.vertices[np.concatenate(rings)]
    cells = shapely.polygons(shapely.linearrings(corners, indices=np.repeat(np.arange(len(rings)), lengths)))
    near = shapely.multipoints(xy).buffer(reach, quad_segs=4)
    for code in range(n):
        if (niche == code).any():
            ground = shapely.coverage_union_all(cells[niche == code])
            yield code, shapely.intersection(ground, near), {"n_cells": int((codes == code).sum())}


def _tiles(slide: Slide, codes: NDArray[np.integer]) -> Iterator[tuple[int, BaseGeometry, dict[str, float]]]:
    """Tiles that hold cells, with the niche of most of them; of equal ones the first."""
    import shapely

    known = (slide.tile_of_cell >= 0) & (codes >= 0)
    counts = np.zeros((len(slide.tiles), int(codes.max()) + 1), np.int64)
    np.add.at(counts, (slide.tile_of_cell[known], codes[known]), 1)
    for tile in np.flatnonzero(counts.sum(axis=1)):
        x, y = slide.tiles.origins[tile]
        code = int(counts[tile].argmax())
        share = counts[tile, code] / counts[tile].sum()
        square = shapely.box(x, y, x + slide.tiles.side, y + slide.tiles.side)
        yield code, square, {"n_cells": int(counts[tile].sum()), "share": float(share)}


def _colours(slide: Slide, key: str, names: list[str]) -> dict[str, list[int]]:
    """Red, green and blue of each label, where the table has its colours."""
    from matplotlib.colors import to_rgb

    categories = slide.table.obs[key].astype("category").cat.categories
    colours = slide.table.uns.get(f"{key}_colors", ())
    if len(colours) < len(categories):
        return {}
    found = {}
    for name, colour in zip(categories, colours, strict=False):
        found[str(name)] = [round(255 * part) for part in to_rgb(colour)]
    return found


def _feature(
    geometry: BaseGeometry, kind: str, name: str, colour: list[int] | None, measured: dict[str, float]
) -> dict[str, Any]:
    """A feature as QuPath writes it."""
    import shapely

    rounded = shapely.set_precision(geometry, 10**-DECIMALS)
    oriented = shapely.orient_polygons(rounded, exterior_cw=False)  # RFC 7946
    classification: dict[str, Any] = {"name": name}
    if colour is not None:
        classification["color"] = colour
    properties = {"objectType": kind, "name": name, "classification": classification, "measurements": measured}
    return {"type": "Feature", "geometry": json.loads(shapely.to_geojson(oriented)), "properties": properties}


def _polygons(file: Path) -> Iterator[tuple[str, BaseGeometry]]:
    """Name and polygon of each region of a file."""
    import shapely

    if not file.is_file():
        raise MissingKeyError(f"path={str(file)!r} is no file.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        features = found["features"] if isinstance(found, dict) and "features" in found else found
        features = features if isinstance(features, list) else [features]
        placed = [
            feature for feature in features if feature["geometry"] is not None
        ]  # RFC 7946 has features without a place
        geometries = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in placed]
    except (ValueError, KeyError, TypeError, shapely.errors.GEOSException) as error:
        raise SetupError(
            f"{file} is no GeoJSON of features ({type(error).__name__} {error}). In QuPath: File, Export objects as GeoJSON."
        ) from error
    number = 0
    for feature, geometry in zip(placed, geometries, strict=True):
        if geometry.geom_type not in ("Polygon", "MultiPolygon") or geometry.is_empty:
            continue
        number += 1
        sound = geometry if geometry.is_valid else shapely.make_valid(geometry, method="structure")
        yield _name_of(feature.get("properties") or {}) or f"region {number}", sound
    if not number:
        raise SetupError(f"{file} holds no polygon. Draw regions as polygons, and export them as GeoJSON.")


def _name_of(properties: dict[str, Any]) -> str | None:
    """Name of a region: of its class, or its own."""
    classification = properties.get("classification")
    named = classification.get("name") if isinstance(classification, dict) else None
    name = named or properties.get("name")
    return None if name is None else str(name)
