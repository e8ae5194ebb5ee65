"""Write embeddings into a SpatialData object."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc.errors import CoverageWarning, SetupError
from sigmma_sc.tissue.setup import get_table, stored_setup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from sigmma_sc.tissue.setup import Setup
    from sigmma_sc.infer.embed import SlideEmbedding


def existing_keys(sdata: SpatialData, setup: Setup) -> list[str]:
    """Names that a write would replace."""
    found = [f"tables[{_keys.TILES!r}]"] * (_keys.TILES in sdata.tables)
    found += [f"shapes[{name!r}]" for name in sdata.shapes if name.startswith(_keys.tile_squares(""))]
    if setup.table_key in sdata.tables:
        table = sdata.tables[setup.table_key]
        found += [f"obsm[{key!r}]" for key in map(_keys.obsm_cells, setup.scales) if key in table.obsm]
    return found


def cell_matrices(
    model: Any, sdata: SpatialData, embeddings: Sequence[SlideEmbedding]
) -> dict[str, NDArray[np.float32]]:
    """Cell embeddings of every scale in the order of the object's table; NaN, and a warning, for cells off the image."""
    setup = stored_setup(sdata) or model.setup
    if setup.table_key is None:
        raise SetupError("The object was set up with table_key=None and has no cells to embed.")
    n = get_table(sdata, setup).n_obs
    covered = np.zeros(n, bool)
    out = {s: np.full((n, model.config.n_latent), np.nan, np.float32) for s in model.module.embedded}
    for e in embeddings:
        if e.slide.sdata is sdata:
            rows = e.slide.rows[e.covered]
            covered[rows] = True
            for s, matrix in out.items():
                matrix[rows] = e.cells[s][e.covered]
    if not covered.all():
        warnings.warn(
            f"{(~covered).sum():,} of {n:,} cells do not lie under the image and get NaN embeddings. Keep the others with "
            f"adata[adata.obs['{_keys.COVERED}']] after write_embeddings(), before scanpy's neighbours.",
            CoverageWarning,
            stacklevel=3,
        )
    return out


def at_scale(values: dict[str, NDArray[np.float32]], scale: str) -> NDArray[np.float32]:
    """Embeddings of one scale, or for ``"all"`` the unit vectors of every scale side by side."""
    if scale != "all":
        return values[scale]
    parts = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in values.values()]
    return np.concatenate(parts, axis=1)


def tile_obs(model: Any, e: SlideEmbedding) -> pd.DataFrame:
    """Slide, corner in px, number of cells, share of tissue and split of each tile."""
    obs = pd.DataFrame(
        {
            "slide": e.slide.name,
            "x": e.tiles.origins[:, 0],
            "y": e.tiles.origins[:, 1],
            "n_cells": e.tiles.n_cells,
            "tissue": model.data.tissue(e.slide, e.tiles),
            "split": model.data.roles_of(e.slide, len(e.tiles)).astype(object),
        }
    )
    obs.index = pd.Index([f"{e.slide.name}_{k}" for k in range(len(obs))], dtype=object)
    return obs.astype({"slide": "category", "split": "category"})


def write_cells(table: AnnData, cells: Mapping[str, NDArray[np.float32]], params: dict[str, Any]) -> None:
    """Cell embeddings of every scale, rows in the order of the table."""
    for scale, matrix in cells.items():
        table.obsm[_keys.obsm_cells(scale)] = matrix
    table.obs[_keys.COVERED] = ~np.isnan(next(iter(cells.values()))[:, 0])
    table.uns[_keys.UNS] = _plain(params)


def write_tiles(
    sdata: SpatialData, embeddings: Sequence[SlideEmbedding], frames: Sequence[pd.DataFrame], params: dict[str, Any]
) -> None:
    """Tile squares as shapes in the image's frame, and a table over them with both towers' embeddings."""
    from anndata import AnnData
    from spatialdata.models import TableModel

    names = [_keys.tile_squares(e.slide.region or e.slide.image_key) for e in embeddings]
    for stale in [name for name in sdata.shapes if name.startswith(_keys.tile_squares(""))]:
        del sdata.shapes[stale]
    obs = []
    for e, name, frame in zip(embeddings, names, frames, strict=True):
        sdata.shapes[name] = _squares(e)
        obs.append(frame.assign(**{_keys.REGION: name, _keys.INSTANCE: np.arange(len(frame))}))
    obs = pd.concat(obs)
    for column in (_keys.REGION, "slide", "split"):
        obs[column] = pd.Categorical(obs[column].astype(object))
    obsm = {"spatial": np.concatenate([e.tiles.origins + e.tiles.side / 2 for e in embeddings])}
    for tower in ("image", "transcriptome"):
        for scale in getattr(embeddings[0], tower):
            parts = [getattr(e, tower)[scale] for e in embeddings]
            if all(len(part) == len(e.tiles) for part, e in zip(parts, embeddings, strict=True)):
                obsm[f"{tower}_{scale}"] = np.concatenate(parts)
    table = AnnData(obs=obs, obsm=obsm, uns={_keys.UNS: _plain(params)})
    if _keys.TILES in sdata.tables:
        del sdata.tables[_keys.TILES]
    # A list even of one: in a plain name spatialdata's get_element_annotators would find the region that is part of it.
    sdata.tables[_keys.TILES] = TableModel.parse(
        table, region=names, region_key=_keys.REGION, instance_key=_keys.INSTANCE
    )


def _squares(e: SlideEmbedding):
    from geopandas import GeoDataFrame
    from shapely import box
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    x, y = e.tiles.origins.T
    squares = GeoDataFrame(geometry=box(x, y, x + e.tiles.side, y + e.tiles.side))
    transform = get_transformation(e.slide.sdata.images[e.slide.image_key], e.slide.coordinate_system)
    return ShapesModel.parse(squares, transformations={e.slide.coordinate_system: transform})


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    """Without ``None``, which not every AnnData can write."""
    return {key: value for key, value in params.items() if value is not None}
