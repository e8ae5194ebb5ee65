"""Write embeddings into a SpatialData object."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc._version import __version__
from sigmma_sc.errors import CoverageWarning, ExistsError
from sigmma_sc.infer.tiles import centres_of
from sigmma_sc.tissue.setup import BY_REGION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from sigmma_sc.infer.embed import SlideEmbedding
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.setup import Setup
    from sigmma_sc.tissue.split import SplitJson


NOT_COMPARED = ("n_offsets", "version", "date", "split")
"""Of a run of a model, and not of the model."""


def provenance(split: SplitJson | None) -> dict[str, str]:
    """Version of the package, date in UTC, and split of the model, for ``uns["sigmma"]``."""
    return {
        "version": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "split": split if isinstance(split, str) else json.dumps(split, ensure_ascii=False),
    }


def require_free(sdata: SpatialData, setup: Setup, params: dict[str, Any], overwrite: bool) -> None:
    """Raise :class:`ExistsError` before anything is written over what is not this model's.

    What a model with the same ``params`` wrote is replaced, what another one wrote with ``overwrite``, and what this package
    never writes in no case.
    """
    foreign = [what for what in _foreign(sdata, setup) if what]
    if foreign:
        raise ExistsError(f"{', '.join(foreign)} would be lost and was not written by sigmma-sc. Rename or remove it.")
    if overwrite:
        return
    found = []
    if _keys.TILES in sdata.tables and not _wrote(sdata.tables[_keys.TILES], params):
        found.append(f"tables[{_keys.TILES!r}]")
        found += [f"shapes[{name!r}]" for name in sdata.shapes if name.startswith(_keys.tile_squares(""))]
    if setup.table_key in sdata.tables and not _wrote(sdata.tables[setup.table_key], params):
        table = sdata.tables[setup.table_key]
        found += [f"obsm[{key!r}]" for key in _own_embeddings(table) if key in table.obsm]
        found += [f"obs[{_keys.COVERED!r}]"] * (_keys.COVERED in table.obs)
    if found:
        raise ExistsError(f"{', '.join(found)} exist already. Pass overwrite=True to replace them.")


def _foreign(sdata: SpatialData, setup: Setup) -> Iterator[str]:
    """What of an object has a name that this package writes, and is of a kind that it never writes."""
    for kind, name, _ in sdata.gen_elements():
        if kind not in ("tables", "shapes") and name.startswith(_keys.TILES):
            yield f"{kind}[{name!r}]"
    if _keys.TILES in sdata.shapes:
        yield f"shapes[{_keys.TILES!r}]"
    if _keys.TILES in sdata.tables and not _recorded(sdata.tables[_keys.TILES]):
        yield f"tables[{_keys.TILES!r}]"
    elif _keys.TILES not in sdata.tables:
        yield from (f"shapes[{name!r}]" for name in sdata.shapes if name.startswith(_keys.tile_squares("")))
    if setup.table_key in sdata.tables:
        table = sdata.tables[setup.table_key]
        if not isinstance(table.uns.get(_keys.UNS, {}), Mapping):
            yield f"uns[{_keys.UNS!r}]"
        if _keys.COVERED in table.obs and not _recorded(table):
            yield f"obs[{_keys.COVERED!r}]"
        own = _own_embeddings(table)
        for key in map(_keys.obsm_cells, setup.scales):
            if key in table.obsm and key not in own:
                yield f"obsm[{key!r}]"


def _recorded(table: AnnData) -> bool:
    """Whether a model wrote into a table."""
    return isinstance(table.uns.get(_keys.UNS), Mapping) and _keys.WRITTEN in table.uns[_keys.UNS]


def _own_embeddings(table: AnnData) -> list[str]:
    """Keys of ``obsm`` that a model wrote."""
    if not _recorded(table):
        return []
    return [str(key) for key in table.uns[_keys.UNS].get(_keys.OBSM, ())]


def _wrote(table: AnnData, params: dict[str, Any]) -> bool:
    """Whether a model with these parameters wrote into a table."""
    return _recorded(table) and table.uns[_keys.UNS][_keys.WRITTEN] == _fingerprint(params)


def _fingerprint(params: dict[str, Any]) -> str:
    """Hash of what a model was made with; names of regions aside, of which a subset of an object has fewer."""
    kept = {key: value for key, value in params.items() if key not in (*BY_REGION, *NOT_COMPARED)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def cell_matrices(embeddings: Sequence[SlideEmbedding]) -> dict[str, NDArray[np.float32]]:
    """Cell embeddings of all slides of an object in the order of its table; NaN with a warning off the image."""
    table = embeddings[0].slide.table
    covered = np.zeros(table.n_obs, bool)
    out = {}
    for scale, cells in embeddings[0].cells.items():
        out[scale] = np.full((table.n_obs, cells.shape[1]), np.nan, np.float32)
    for e in embeddings:
        rows = e.slide.rows[e.covered]
        covered[rows] = True
        for scale, matrix in out.items():
            matrix[rows] = e.cells[scale][e.covered]
    if not covered.all():
        warnings.warn(
            f"{(~covered).sum():,} of {table.n_obs:,} cells do not lie under the image and get NaN embeddings. Keep the others "
            f"with adata[adata.obs['{_keys.COVERED}']] after write_embeddings(), before scanpy's neighbours.",
            CoverageWarning,
            stacklevel=3,
        )
    return out


def image_matrices(slides: Sequence[Slide], cells: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Image embeddings ``(n_cells, d)`` of the cells of slides, by object in the order of its table; NaN off the image."""
    out: dict[int, NDArray[np.float32]] = {}
    for slide, values in zip(slides, cells, strict=True):
        empty = np.full((slide.table.n_obs, values.shape[1]), np.nan, np.float32)
        out.setdefault(id(slide.sdata), empty)[slide.rows] = values
    n_off = sum(int(np.isnan(matrix[:, 0]).sum()) for matrix in out.values())
    if n_off:
        warnings.warn(
            f"{n_off:,} cells do not lie under the image and get NaN image embeddings.", CoverageWarning, stacklevel=3
        )
    return list(out.values())


def by_object(embeddings: Sequence[SlideEmbedding]) -> list[list[SlideEmbedding]]:
    """Embeddings of the slides of each object, objects in order."""
    groups: dict[int, list[SlideEmbedding]] = {}
    for e in embeddings:
        groups.setdefault(id(e.slide.sdata), []).append(e)
    return list(groups.values())


def microns_per_unit(embeddings: Sequence[SlideEmbedding]) -> float | None:
    """Length in µm of a unit of ``obsm["spatial"]``; None without such positions, or where slides differ by 1 % or more.

    It is the spread of the cells on the image over their spread in the table, which no turn and no shift changes.
    """
    table = embeddings[0].slide.table
    if _keys.POSITIONS not in table.obsm:
        return None
    positions = np.asarray(table.obsm[_keys.POSITIONS])[:, :2]
    ratios = []
    for e in embeddings:
        spread = np.sqrt(positions[e.slide.rows].var(axis=0).sum())
        on_image = np.sqrt(e.slide.xy.var(axis=0).sum()) * e.slide.microns_per_pixel
        ratios.append(on_image / spread if spread > 0 else np.nan)
    low, high = min(ratios), max(ratios)
    return float(np.mean(ratios)) if np.isfinite(ratios).all() and low > 0 and high < 1.01 * low else None


def write_cells(
    table: AnnData, cells: Mapping[str, NDArray[np.float32]], params: dict[str, Any], microns: float | None
) -> None:
    """Cell embeddings of every scale, rows in the order of the table. What else ``uns`` tells, as of niches, stays."""
    for key in _own_embeddings(table):
        table.obsm.pop(key, None)
    for scale, matrix in cells.items():
        table.obsm[_keys.obsm_cells(scale)] = matrix
    table.obs[_keys.COVERED] = ~np.isnan(next(iter(cells.values()))[:, 0])
    stale = {*params, _keys.MICRONS}
    kept = {key: value for key, value in table.uns.get(_keys.UNS, {}).items() if key not in stale}
    measured = {} if microns is None else {_keys.MICRONS: microns}
    own = {_keys.OBSM: [_keys.obsm_cells(scale) for scale in cells]}
    table.uns[_keys.UNS] = kept | _plain(params) | measured | own


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
    obsm = {"spatial": centres_of(embeddings)}
    for tower in ("image", "transcriptome"):
        for scale in embeddings[0].tower(tower):
            parts = [e.tower(tower)[scale] for e in embeddings]
            if all(len(part) == len(e.tiles) for part, e in zip(parts, embeddings, strict=True)):
                obsm[f"{tower}_{scale}"] = np.concatenate(parts)
    table = AnnData(obs=obs, obsm=obsm, uns={_keys.UNS: _plain(params)})
    if _keys.TILES in sdata.tables:
        del sdata.tables[_keys.TILES]
    # A list even of one: in a plain name spatialdata's get_element_annotators would find the region that is part of it.
    sdata.tables[_keys.TILES] = TableModel.parse(
        table, region=names, region_key=_keys.REGION, instance_key=_keys.INSTANCE
    )


def _squares(e: SlideEmbedding) -> GeoDataFrame:
    from geopandas import GeoDataFrame
    from shapely import box
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    x, y = e.tiles.origins.T
    squares = GeoDataFrame(geometry=box(x, y, x + e.tiles.side, y + e.tiles.side))
    transform = get_transformation(e.slide.sdata.images[e.slide.image_key], e.slide.coordinate_system)
    return ShapesModel.parse(squares, transformations={e.slide.coordinate_system: transform})


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters and their fingerprint, without ``None``, which not every AnnData can write."""
    given = {key: value for key, value in params.items() if value is not None}
    return {**given, _keys.WRITTEN: _fingerprint(params)}
