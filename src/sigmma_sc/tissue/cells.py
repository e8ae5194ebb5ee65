"""Where a table's cells are: circles, polygons, points, or a raster of labels, in the shared coordinate system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc import _keys
from sigmma_sc.errors import MissingKeyError, SetupError
from sigmma_sc.tissue.frame import affine_to, apply_affine, microns_per_unit, raster_levels

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from anndata import AnnData
    from dask.dataframe import DataFrame as DaskDataFrame
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData
    from xarray import DataArray, DataTree

N_PROBED = 32
"""Number of neighbouring cells looked up in a raster of labels; neighbours share chunks, so that few are decoded."""

MIN_HITS = 0.5
"""Least share of probed cells whose pixel holds their label; the centroid of a bent cell may be outside of it."""


def locate_cells(
    sdata: SpatialData,
    table: AnnData,
    region: str,
    rows: NDArray[np.int64],
    coordinate_system: str,
    microns_per_unit: float | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Positions of the cells of ``rows`` in a coordinate system, ``(n, 2)``, and the affine from the stored ones.

    Centroids of a raster of labels are never computed, which would cost tens of bytes a pixel. Positions come from
    shapes of the same cells or from ``obsm["spatial"]``, and are checked against the labels of a few cells. The affine
    ``(3, 3)`` is from the units of the stored positions, which are µm if its scale is above 1; ``None`` for pixels.
    """
    instance_key = table.uns["spatialdata_attrs"]["instance_key"]
    keys = table.obs[instance_key].to_numpy()[rows]
    _require_unique(keys, instance_key, region)
    if region in sdata.shapes or region in sdata.points:
        element = sdata[region]
        to_system = affine_to(element, coordinate_system, f"region {region!r}")
        return apply_affine(to_system, _centroids(element, keys, region)), to_system
    if region in sdata.labels:
        return _on_labels(sdata, table, region, rows, keys, coordinate_system, microns_per_unit)
    for name, names in _shapes_of(sdata, table, rows, keys):
        # Whole numbers are the index of almost anything, and without labels a mistake would go unnoticed.
        if not np.issubdtype(np.asarray(names).dtype, np.integer):
            shapes = sdata.shapes[name]
            to_system = affine_to(shapes, coordinate_system, f"shapes {name!r}")
            return apply_affine(to_system, _centroids(shapes, names, name)), to_system
    raise MissingKeyError(
        f"Region {region!r} of the table is no element of shapes, labels or points. No shapes of sdata hold its cells by "
        f"name (shapes: {', '.join(map(repr, sdata.shapes)) or 'none'}). Add them, e.g. with "
        f"sdata.shapes[{region!r}] = ShapesModel.parse(xy, geometry=0, radius=5, index=table.obs[instance_key], "
        "transformations={…}) from table.obsm['spatial']."
    )


def _require_unique(keys: NDArray, instance_key: str, region: str) -> None:
    import pandas as pd

    repeated = pd.Index(keys).duplicated()
    if repeated.any():
        cell = keys[repeated][0]
        raise SetupError(
            f"obs[{instance_key!r}] repeats: {int((keys == cell).sum())} rows are cell {cell!r} of region {region!r}, and "
            f"{int(repeated.sum()):,} rows in all are of a cell named before. Keep one row for each cell, or give sections of one "
            "table regions of their own."
        )


def _shapes_of(
    sdata: SpatialData, table: AnnData, rows: NDArray[np.int64], keys: NDArray
) -> Iterator[tuple[str, NDArray]]:
    """Shapes whose index holds every cell, by ``obs["cell_id"]`` or the instance key, and the cells' names there."""
    candidates = ([table.obs["cell_id"].to_numpy()[rows]] if "cell_id" in table.obs else []) + [keys]
    for names in candidates:
        for name, shapes in sdata.shapes.items():
            if name.startswith(_keys.TILES) or not shapes.index.is_unique:
                continue
            if (shapes.index.get_indexer(names) >= 0).all():
                yield name, names


def _centroids(element: GeoDataFrame | DaskDataFrame, keys: NDArray, name: str) -> NDArray[np.float64]:
    """Centroids ``(n, 2)`` of the shapes or points named by ``keys``, in that order and in the units of the element."""
    if not hasattr(element, "geometry"):
        frame = element[["x", "y"]].compute()
        return frame.to_numpy(dtype=float)[_positions(frame.index, keys, name)]
    points = element.geometry.iloc[_positions(element.index, keys, name)]
    # The centroid of a point is the point, and takes most of the time of a setup to compute.
    if not (points.geom_type == "Point").all():
        points = points.centroid
    return np.column_stack([points.x.to_numpy(), points.y.to_numpy()])


def _positions(index: pd.Index, keys: NDArray, name: str) -> NDArray[np.int64]:
    if not index.is_unique:
        raise SetupError(
            f"The index of {name!r} repeats, e.g. {index[index.duplicated()][0]!r}, so that a cell would have two places. "
            "Give its rows unique names that the table's instance key holds."
        )
    where = index.get_indexer(keys)
    if (where < 0).any():
        missing = keys[where < 0]
        raise MissingKeyError(
            f"{len(missing):,} of {len(keys):,} cells of the table are not in the index of {name!r}, e.g. {missing[0]!r} "
            f"(the index holds e.g. {index[:1].tolist()[0] if len(index) else 'nothing'!r}). Match the table's instance key to the index."
        )
    return where


def _on_labels(
    sdata: SpatialData,
    table: AnnData,
    region: str,
    rows: NDArray[np.int64],
    keys: NDArray,
    coordinate_system: str,
    unit: float | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Positions of the cells of a raster: the first candidate for which the labels hold the keys of the cells."""
    to_system = affine_to(sdata.labels[region], coordinate_system, f"labels {region!r}")
    tried = []
    for what, xy, matrix in _candidates(sdata, table, rows, keys, coordinate_system, to_system, unit):
        hits = _hits(sdata.labels[region], apply_affine(np.linalg.inv(to_system), xy), keys)
        if hits >= MIN_HITS:
            return xy, matrix
        tried.append(f"{what} ({hits:.0%} of the cells on their label)")
    raise SetupError(
        f"The positions of the cells of labels {region!r} cannot be found: tried {', '.join(tried) or 'nothing'}. Add circles or "
        "boundaries of the same cells to sdata.shapes, indexed by the table's instance key or obs['cell_id']. Or add "
        "table.obsm['spatial'] in µm and pass microns_per_pixel=…"
    )


def _candidates(
    sdata: SpatialData,
    table: AnnData,
    rows: NDArray[np.int64],
    keys: NDArray,
    coordinate_system: str,
    labels_to_system: NDArray[np.float64],
    unit: float | None,
) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64] | None]]:
    """Possible positions: a description, ``xy`` in the system, and the affine if it maps from µm."""
    from spatialdata.transformations import get_transformation

    for name, names in _shapes_of(sdata, table, rows, keys):
        shapes = sdata.shapes[name]
        if coordinate_system in get_transformation(shapes, get_all=True):
            matrix = affine_to(shapes, coordinate_system, f"shapes {name!r}")
            yield f"shapes {name!r}", apply_affine(matrix, _centroids(shapes, names, name)), matrix
    if "spatial" not in table.obsm:
        return
    xy = np.asarray(table.obsm["spatial"], dtype=float)[rows, :2]
    units = [unit]
    for name, element in (*sdata.shapes.items(), *sdata.points.items()):
        if coordinate_system in get_transformation(element, get_all=True):
            units.append(microns_per_unit(affine_to(element, coordinate_system, f"element {name!r}")))
    for known in dict.fromkeys(value for value in units if value):
        matrix = np.diag([1 / known, 1 / known, 1.0])
        yield f"obsm['spatial'] in µm, {known:.4g} to a unit of {coordinate_system!r}", apply_affine(matrix, xy), matrix
    yield f"obsm['spatial'] in units of {coordinate_system!r}", xy, None
    yield "obsm['spatial'] in pixels of the labels", apply_affine(labels_to_system, xy), None


def _hits(labels: DataArray | DataTree, xy: NDArray[np.float64], keys: NDArray) -> float:
    """Share of a few cells at ``xy`` (px of the labels) whose pixel holds the key of the cell."""
    import xarray as xr
    from scipy.spatial import cKDTree

    level = raster_levels(labels)[0]
    inside = np.flatnonzero(((xy >= 0) & (xy < (level.sizes["x"], level.sizes["y"]))).all(axis=1))
    if not len(inside):
        return 0.0
    middle = xy[inside[len(inside) // 2]]
    near = inside[np.atleast_1d(cKDTree(xy[inside]).query(middle, k=min(N_PROBED, len(inside)))[1])]
    column, row = np.floor(xy[near]).astype(np.int64).T
    pixels = level.isel(x=xr.DataArray(column, dims="cell"), y=xr.DataArray(row, dims="cell"))
    return float((pixels.to_numpy() == keys[near]).mean())
