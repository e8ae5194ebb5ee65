"""Xenium samples of HEST-1k as true single cells."""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc._checks import require_name, require_package, require_path
from sigmma_sc.errors import CoverageWarning, MissingKeyError, PixelSizeError, SetupError
from sigmma_sc.io.tiff import read_pyramid

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from geopandas import GeoSeries
    from pyarrow.dataset import Expression
    from shapely import MultiPolygon, Polygon
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData

MIN_QV = 20
"""Least quality of a transcript that is counted, as in the cell-by-gene matrix of 10x Genomics."""

NOT_GENES = r"(?i)^(?:NegControl|BLANK|antisense|Unassigned|Deprecated|Intergenic|GenomicControl)"
"""Pattern of the names of control probes and unused codewords, in all versions of the software."""

NO_CELL = ("UNASSIGNED", "-1", "nan")
"""Cell of a transcript outside of cells: where cells are named, numbered, or numbered with gaps."""

UNIT = 0.1
"""µm per unit of ``"global"``: cells in µm then have a scale above 1, which determines the pixel size."""

NAMING = 25
"""Number of transcripts of a cell that vote for its polygon among unnamed ones."""


def hest(folder: str | Path, sample_id: str) -> SpatialData:
    """Read a Xenium sample of HEST-1k as single cells, instead of the bins of 100 µm in the data set.

    The transcripts of each cell are counted (quality of at least 20, genes only). The position of a cell is that of its
    polygon, which HEST has warped onto the H&E, so that no further transform is needed.

    Parameters
    ----------
    folder
        Local copy of the data set, with ``wsis/<id>.tif``, ``metadata/<id>.json``,
        ``transcripts/<id>_transcripts.parquet``, and ``xenium_seg/<id>_xenium_cell_seg.parquet`` or else
        ``xenium_seg/<id>_xenium_cell_seg.geojson.zip``.
    sample_id
        Name of the sample, such as ``"TENX95"``.

    Returns
    -------
    ``images["he_image"]`` (multi-scale, lazy), ``shapes["cell_boundaries"]`` (µm along the axes of the H&E) and
    ``tables["table"]`` (raw counts; ``obs`` names cell, sample and patient), in a system ``"global"`` of 0.1 µm.
    ``sdata.attrs["hest"]`` holds the metadata of the sample. The µm per pixel are ``pixel_size_um_estimated``, which HEST
    derives from the registration, or else ``pixel_size_um_embedded``.

    Raises
    ------
    MissingKeyError
        A file is missing; only Xenium samples have transcripts and cells.
    PixelSizeError
        The metadata hold no pixel size.
    SetupError
        The polygons and the transcripts are of different cells.
    MissingPackageError
        The extra ``io`` is not installed.

    Warns
    -----
    CoverageWarning
        Some cells have transcripts but no polygon, and are left out.
    ImageWarning
        The file of the H&E holds several colour images of about the same size.

    See Also
    --------
    sigmma_sc.io.xenium : Read the output of a Xenium run.

    Notes
    -----
    The layout is that of the `data card <https://huggingface.co/datasets/MahmoodLab/hest>`__ and of the code that wrote
    it (mahmoodlab/HEST: ``utils.copy_processed``, ``readers.XeniumReader``, ``io.seg_readers``). The parquet of polygons
    holds the names of the cells. The GeoJSON does not, so each polygon belongs to the cell with most transcripts in it, and
    cells without transcripts are left out. HEST-1k is licensed CC BY-NC-SA 4.0 (Jaume et al., NeurIPS 2024).

    Examples
    --------
    >>> sdata = sg.io.hest("hest_data", "TENX95")  # doctest: +SKIP
    >>> SIGMMA.setup_spatialdata(sdata, sample_key="sample")  # doctest: +SKIP
    """
    require_package("imagecodecs", "io")
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Scale

    require_path(folder, "folder")
    require_name(sample_id, "sample_id")
    folder = Path(folder)
    metadata = _read_metadata(_required(folder, f"metadata/{sample_id}.json"))
    technology = metadata.get("st_technology") or "Xenium"
    image = _required(folder, f"wsis/{sample_id}.tif", technology)
    transcripts = _required(folder, f"transcripts/{sample_id}_transcripts.parquet", technology)
    segmentation = _required(folder, f"xenium_seg/{sample_id}_xenium_cell_seg.parquet", technology, ".geojson.zip")
    microns = _pixel_size(metadata, sample_id)

    counts = count_transcripts(transcripts)
    polygons = _named_polygons(segmentation, transcripts, counts)
    table = _table(counts, polygons.index, sample_id, metadata)
    cells = polygons.affine_transform([microns, 0, 0, microns, 0, 0]).to_frame("geometry")
    table.obsm["spatial"] = np.column_stack([cells.centroid.x, cells.centroid.y])
    scale = {"global": Scale([1 / UNIT] * 2, ("x", "y"))}
    return SpatialData(
        images={"he_image": read_pyramid(image, Scale([microns / UNIT] * 2, ("x", "y")))},
        shapes={"cell_boundaries": ShapesModel.parse(cells, transformations=scale)},
        tables={"table": TableModel.parse(table, "cell_boundaries", "region", "cell_id")},
        attrs={"hest": metadata},
    )


def count_transcripts(path: Path) -> pd.DataFrame:
    """Count the transcripts of each cell and gene, in one pass that never holds the file in memory.

    The Parquet file has a row for each transcript: ``cell_id``, ``feature_name``, ``qv``, and ``is_gene`` in newer
    versions. Controls, unassigned transcripts and those of low quality are left out. Cells and genes are sorted
    categories of str.
    """
    import pandas as pd
    import pyarrow.dataset as ds
    from pyarrow.acero import AggregateNodeOptions, Declaration, FilterNodeOptions, ScanNodeOptions

    data = ds.dataset(path)
    good = _good(data.schema.names, path)
    names = ["cell_id", "feature_name"]
    used = [column for column in (*names, "qv", "is_gene") if column in data.schema.names]
    plan = Declaration.from_sequence(
        [
            Declaration("scan", ScanNodeOptions(data, columns=used, filter=good)),
            Declaration("filter", FilterNodeOptions(good)),
            Declaration("aggregate", AggregateNodeOptions([([], "hash_count_all", None, "n")], keys=names)),
        ]
    )
    table = plan.to_table()
    counts = pd.DataFrame({"n": table["n"].to_numpy()})
    for name in names:
        # Each name is held once, because strings would need more memory than all the counts.
        codes = table[name].combine_chunks().dictionary_encode()
        categories = _text(pd.Series(codes.dictionary.to_pandas()))
        counts[name] = pd.Categorical.from_codes(codes.indices.to_numpy(), _plain(categories))
    counts = counts[~counts.feature_name.str.contains(NOT_GENES).astype(bool) & ~counts.cell_id.isin(NO_CELL)]
    return counts.assign(**{name: _sorted(counts[name].cat.remove_unused_categories()) for name in names})


def _sorted(names: pd.Series) -> pd.Series:
    return names.cat.reorder_categories(sorted(names.cat.categories))


def _good(columns: list[str], path: Path) -> Expression:
    """Condition for the rows of transcripts that are counted."""
    import pyarrow.dataset as ds

    missing = {"cell_id", "feature_name", "qv"} - set(columns)
    if missing:
        raise MissingKeyError(f"{path} has no column {', '.join(sorted(missing))} (it has {', '.join(columns)}).")
    good = (ds.field("qv") >= MIN_QV) & ds.field("cell_id").is_valid() & ds.field("feature_name").is_valid()
    return good & ds.field("is_gene") if "is_gene" in columns else good


def _text(names: pd.Series) -> pd.Series:
    """Names as str: older software wrote bytes, or numbers for cells, which become floats where some are missing."""
    if len(names) and isinstance(names.iloc[0], bytes):
        return names.str.decode("utf-8")
    if names.dtype.kind == "f":
        return names.map(lambda number: str(int(number)) if float(number).is_integer() else str(number))
    return names.astype(str)


def _plain(names: pd.Series | pd.Index | list[str]) -> pd.Index:
    """Names as plain objects, because older anndata cannot write the strings of pandas 3."""
    import pandas as pd

    return pd.Index(np.asarray(names, dtype=object), dtype=object)


def _named_polygons(path: Path, transcripts: Path, counts: pd.DataFrame) -> GeoSeries:
    """Polygons in H&E px, by the names of their cells."""
    if path.suffix == ".parquet":
        import geopandas

        frame = geopandas.read_parquet(path)
        names = frame["cell_id"] if "cell_id" in frame else frame.index.to_series()
        shapes = frame.geometry.map(_polygon)
        kept = names.notna().to_numpy() & shapes.notna().to_numpy()
        polygons = shapes[kept].set_axis(_plain(_text(names[kept].infer_objects())))
    else:
        polygons = _vote(_read_geojson(path), transcripts)
    if not polygons.index.is_unique:
        twice = polygons.index[polygons.index.duplicated()][0]
        raise SetupError(f"{path} has several polygons of cell {twice!r}. Download it again: a cell has one polygon.")
    cells = counts.cell_id.cat.categories
    lost = cells[polygons.index.get_indexer(cells) < 0]
    if len(lost) == len(cells):
        raise SetupError(
            f"No cell of {transcripts} is in {path}. The cells are {', '.join(map(repr, cells[:3]))}, …, the polygons "
            f"{', '.join(map(repr, polygons.index[:3]))}, …. Download both files again: they are of different samples or versions."
        )
    if len(lost):
        warnings.warn(
            f"{len(lost):,} of {len(cells):,} cells with transcripts have no polygon in {path.name} and are left out.",
            CoverageWarning,
            stacklevel=3,
        )
    return polygons


def _read_geojson(path: Path) -> GeoSeries:
    """Polygons of a zipped GeoJSON as written for QuPath: few features, each of many polygons."""
    import geopandas
    from shapely.geometry import shape

    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".geojson")]
        if len(names) != 1:
            raise SetupError(f"{path} must hold one GeoJSON; it holds {', '.join(archive.namelist()) or 'nothing'}.")
        features = json.loads(archive.read(names[0]))
    features = features["features"] if isinstance(features, dict) else features
    found = [_polygon(shape(feature["geometry"])) for feature in features if feature.get("geometry")]
    return geopandas.GeoSeries([part for part in found if part is not None]).explode(ignore_index=True)


def _polygon(geometry: BaseGeometry | None) -> Polygon | MultiPolygon | None:
    """The polygons of a geometry without the points and lines beside them; ``None`` where it holds no area."""
    from shapely import MultiPolygon, Polygon, get_parts

    if geometry is None or isinstance(geometry, Polygon):
        return None if geometry is None or geometry.is_empty else geometry
    parts = [part for part in get_parts(geometry) if not part.is_empty]
    polygons = [part for whole in parts for part in get_parts(whole) if isinstance(part, Polygon)]
    if not polygons:
        return None
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)


def _vote(polygons: GeoSeries, path: Path) -> GeoSeries:
    """Name the polygon of each cell: the one that holds most of the first transcripts of the cell."""
    import pyarrow.dataset as ds
    import shapely

    data = ds.dataset(path)
    columns = ["cell_id", "he_x", "he_y"]
    points = data.to_table(columns=columns, filter=_good(data.schema.names, path)).to_pandas()
    points["cell_id"] = _text(points.cell_id)
    points = points[~points.cell_id.isin(NO_CELL)].groupby("cell_id").head(NAMING).reset_index(drop=True)
    point, polygon = polygons.sindex.query(shapely.points(points[["he_x", "he_y"]]), predicate="within")
    votes = points.iloc[point].assign(polygon=polygon).groupby(["cell_id", "polygon"]).size()
    best = votes.sort_values(ascending=False, kind="stable").reset_index().drop_duplicates("cell_id")
    best = best.sort_values("polygon")
    return polygons.iloc[best.polygon].set_axis(_plain(best.cell_id))


def _table(counts: pd.DataFrame, cells: pd.Index, sample_id: str, metadata: dict) -> AnnData:
    """Counts of every cell that has a polygon, in the order of the polygons; genes by name."""
    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    named = counts.cell_id.cat
    genes = _plain(counts.feature_name.cat.categories)
    row = cells.get_indexer(named.categories)[named.codes]
    kept = row >= 0
    entries = (counts.n.to_numpy(np.float32)[kept], (row[kept], counts.feature_name.cat.codes[kept]))
    obs = pd.DataFrame({"cell_id": cells}, index=cells, dtype=object)
    for column, value in {"region": "cell_boundaries", "sample": sample_id, "patient": metadata.get("patient")}.items():
        if value is not None:
            obs[column] = pd.Categorical.from_codes(np.zeros(len(obs), int), _plain([str(value)]))
    return AnnData(csr_matrix(entries, shape=(len(cells), len(genes))), obs=obs, var=pd.DataFrame(index=genes))


def _required(folder: Path, name: str, technology: str = "Xenium", otherwise: str | None = None) -> Path:
    """Path of a file that exists, with its suffix or another one."""
    choices = [folder / name] + ([(folder / name).with_suffix(otherwise)] if otherwise else [])
    for path in choices:
        if path.is_file():
            return path
    wrong = (
        ""
        if technology.startswith("Xenium")
        else f" The sample is {technology}: only Xenium samples hold single cells."
    )
    raise MissingKeyError(f"{' or '.join(map(str, choices))} does not exist. Download it from MahmoodLab/hest.{wrong}")


def _read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of a sample; NaN and infinities become ``None``, so that JSON can hold them."""
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SetupError(f"{path} is not JSON: {error}. Download it again.") from error
    if not isinstance(metadata, dict):
        raise SetupError(f"{path} holds {metadata!r}, not the metadata of a sample. Download it again.")
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metadata.items()}


def _pixel_size(metadata: dict[str, Any], sample_id: str) -> float:
    for key in ("pixel_size_um_estimated", "pixel_size_um_embedded"):
        value = metadata.get(key)
        if value is None or value == "":
            continue
        try:
            microns = float(value)
        except (TypeError, ValueError):
            microns = math.nan
        if isinstance(value, bool) or not 0 < microns < math.inf:
            raise PixelSizeError(
                f"metadata/{sample_id}.json: {key} is {value!r}. Write the µm per pixel there, as a number."
            )
        return microns
    raise PixelSizeError(f"metadata/{sample_id}.json holds no pixel_size_um_estimated. Write the µm per pixel there.")
