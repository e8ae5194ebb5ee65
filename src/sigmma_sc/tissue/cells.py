"""Where a table's cells are: circles, polygons, points, or a raster of labels, in the shared coordinate system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc import _keys
from sigmma_sc.errors import MissingKeyError, SetupError
from sigmma_sc.tissue.frame import affine_to, apply_affine, microns_per_unit, raster_levels

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

N_PROBED = 32
"""Cells whose own pixel is looked up in a raster of labels, neighbours of one another so that few chunks are decoded."""

MIN_HITS = 0.5
"""Share of probed cells that must lie on their own label; the centroid of a bent cell may lie beside it."""


def locate_cells(
    sdata: SpatialData,
    table: AnnData,
    region: str,
    rows: NDArray[np.int64],
    coordinate_system: str,
    microns_per_unit: float | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Find the positions of a region's cells.

    A raster of labels is never read for its centroids, which would cost tens of bytes a pixel. Positions come from shapes
    of the same cells or from ``obsm["spatial"]``, and a few cells are looked up in the raster to see that they are right.

    Parameters
    ----------
    sdata, table, region
        The region of the table, an element of ``sdata``.
    rows
        Rows of the region's cells, ``(n,)``.
    coordinate_system
        System to locate the cells in.
    microns_per_unit
        µm per unit of that system if known otherwise than by the cells' transform.

    Returns
    -------
    xy
        Centroids in the coordinate system, ``(n, 2)`` float64, in the order of ``rows``.
    to_system
        Affine ``(3, 3)`` from the units the cells were given in, which are µm if it magnifies; ``None`` if they were pixels.

    Raises
    ------
    MissingKeyError
        No element holds the cells, or not all of them.
    SetupError
        Positions are not unique, or contradict the labels.
    """
    keys = table.obs[table.uns["spatialdata_attrs"]["instance_key"]].to_numpy()[rows]
    if region in sdata.shapes or region in sdata.points:
        element = sdata[region]
        to_system = affine_to(element, coordinate_system, f"region {region!r}")
        return apply_affine(to_system, _centroids(element, keys, region)), to_system
    if region in sdata.labels:
        return _on_labels(sdata, table, region, rows, keys, coordinate_system, microns_per_unit)
    for name, names in _shapes_of(sdata, table, rows, keys):
        # Whole numbers are the index of almost anything; without the labels nothing would tell a mistake.
        if not np.issubdtype(np.asarray(names).dtype, np.integer):
            shapes = sdata.shapes[name]
            to_system = affine_to(shapes, coordinate_system, f"shapes {name!r}")
            return apply_affine(to_system, _centroids(shapes, names, name)), to_system
    raise MissingKeyError(
        f"Region {region!r} of the table is no element of shapes, labels or points, and no shapes of sdata hold its cells by "
        f"name (looked among {', '.join(map(repr, sdata.shapes)) or 'none'}). Add them, e.g. with "
        f"sdata.shapes[{region!r}] = ShapesModel.parse(xy, geometry=0, radius=5, index=table.obs[instance_key], "
        "transformations={…}) from table.obsm['spatial']."
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


def _centroids(element: Any, keys: NDArray, name: str) -> NDArray[np.float64]:
    """Centroids ``(n, 2)`` of the shapes or points named by ``keys``, in the element's own units, in the order of ``keys``."""
    if not hasattr(element, "geometry"):
        element = element[["x", "y"]].compute()
    where = _positions(element.index, keys, name)
    if not hasattr(element, "geometry"):
        return element.to_numpy(dtype=float)[where]
    points = element.geometry.iloc[where].centroid
    return np.column_stack([points.x.to_numpy(), points.y.to_numpy()])


def _positions(index: pd.Index, keys: NDArray, name: str) -> NDArray[np.int64]:
    if not index.is_unique:
        raise SetupError(
            f"The index of {name!r} repeats, e.g. {index[index.duplicated()][0]!r}, so that a cell would lie at two places. "
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
    """Positions of the cells of a raster: the first candidate whose cells lie on their own labels."""
    to_system = affine_to(sdata.labels[region], coordinate_system, f"labels {region!r}")
    tried = []
    for what, xy, matrix in _candidates(sdata, table, rows, keys, coordinate_system, to_system, unit):
        hits = _hits(sdata.labels[region], apply_affine(np.linalg.inv(to_system), xy), keys)
        if hits >= MIN_HITS:
            return xy, matrix
        tried.append(f"{what} ({hits:.0%} of the cells on their own label)")
    raise SetupError(
        f"Nothing says where the cells of labels {region!r} are: tried {', '.join(tried) or 'nothing, for there is nothing'}. "
        "Add circles or boundaries of the same cells to sdata.shapes, indexed by the table's instance key or obs['cell_id'], "
        "or table.obsm['spatial'] in µm and state microns_per_pixel=…"
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
    """What the positions might be: a description, ``xy`` in the system, and the affine if it starts from µm."""
    from spatialdata.transformations import get_transformation

    for name, names in _shapes_of(sdata, table, rows, keys):
        shapes = sdata.shapes[name]
        if coordinate_system in get_transformation(shapes, get_all=True):
            matrix = affine_to(shapes, coordinate_system, f"shapes {name!r}")
            yield f"shapes {name!r}", apply_affine(matrix, _centroids(shapes, names, name)), matrix
    if "spatial" not in table.obsm:
        return
    xy = np.asarray(table.obsm["spatial"], dtype=float)[rows, :2]
    units = [] if unit is None else [unit]
    for name, element in (*sdata.shapes.items(), *sdata.points.items()):
        if coordinate_system in get_transformation(element, get_all=True):
            units.append(microns_per_unit(affine_to(element, coordinate_system, f"element {name!r}")))
    for known in dict.fromkeys(value for value in units if value):
        matrix = np.diag([1 / known, 1 / known, 1.0])
        yield f"obsm['spatial'] in µm, {known:.4g} to a unit of {coordinate_system!r}", apply_affine(matrix, xy), matrix
    yield f"obsm['spatial'] in units of {coordinate_system!r}", xy, None
    yield "obsm['spatial'] in pixels of the labels", apply_affine(labels_to_system, xy), None


def _hits(labels: Any, xy: NDArray[np.float64], keys: NDArray) -> float:
    """Share of some cells at ``xy`` (px of the labels) whose pixel holds their own key."""
    import xarray as xr
    from scipy.spatial import cKDTree

    level = raster_levels(labels)[0]
    inside = np.flatnonzero(((xy >= 0) & (xy < (level.sizes["x"], level.sizes["y"]))).all(axis=1))
    if not len(inside):
        return 0.0
    middle = xy[inside[len(inside) // 2]]
    near = inside[np.atleast_1d(cKDTree(xy[inside]).query(middle, k=min(N_PROBED, len(inside)))[1])]
    column, row = (xr.DataArray(axis, dims="cell") for axis in np.floor(xy[near]).astype(np.int64).T)
    return float((level.isel(x=column, y=row).to_numpy() == keys[near]).mean())
