"""Validate a SpatialData, store the setup with it, and resolve it into slides."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_positive
from sigmma_sc.errors import MissingKeyError, RegistrationWarning, SetupError
from sigmma_sc.tissue.appearance import appearance_of, warn_of_image
from sigmma_sc.tissue.cells import locate_cells
from sigmma_sc.tissue.channels import require_colours
from sigmma_sc.tissue.counts import counts_by_rows, row_totals, take_rows
from sigmma_sc.tissue.frame import Slide, affine_to, apply_affine, axis_scale, image_levels, resolve_pixel_size
from sigmma_sc.tissue.pixel_size import tell_pixel_size

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData
    from xarray import DataArray

    # An alias as a string could be resolved in no other module, by Sphinx or typing.get_type_hints.
    Tissue: TypeAlias = SpatialData | dict[str, SpatialData]
    """One object, or objects by name."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Setup:
    """Arguments of ``setup_spatialdata``, JSON-safe, as stored in ``sdata.attrs["sigmma"]``."""

    image_key: str | dict[str, str]
    table_key: str | None
    coordinate_system: str | dict[str, str]
    layer: str | None
    features_key: str | None
    sample_key: str | None
    microns_per_pixel: float | dict[str, float] | None
    tile_size: float
    grids: tuple[int, ...]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Setup:
        """Setup from the result of :meth:`to_json`, also after a round trip through zarr."""
        values = {name: stored[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "grids": tuple(int(b) for b in values["grids"])})

    def to_json(self) -> dict[str, Any]:
        """Values by name, in plain JSON types."""
        return {**asdict(self), "grids": list(self.grids)}

    @property
    def scales(self) -> tuple[str, ...]:
        """Names of the scales, fine to coarse."""
        return _keys.scale_names(self.grids)


def store_setup(tissue: Tissue, setup: Setup) -> list[Slide]:
    """Check a setup against an object, or objects by name, and store it; an error stores nothing."""
    _check_numbers(setup)
    slides = []
    for prefix, sdata in prefixed(tissue):
        slides += resolve_slides(sdata, setup, prefix)
    for slide in slides:
        warn_of_image(slide, stacklevel=3)
        tell_pixel_size(slide, stacklevel=3)
    for sdata in objects_of(tissue).values():
        sdata.attrs[_keys.SETUP] = setup.to_json()
    return slides


def slides_of(tissue: Tissue, default: Setup | None = None) -> list[Slide]:
    """Slides of an object, or of objects by name, in order; ``default`` is the setup of objects never set up."""
    slides = []
    for prefix, sdata in prefixed(tissue):
        setup = stored_setup(sdata) or default
        if setup is None:
            raise SetupError(f"{prefix or 'The object'} has no setup. Call SIGMMA.setup_spatialdata(sdata) first.")
        slides += resolve_slides(sdata, setup, prefix)
    return slides


def objects_of(tissue: Tissue) -> dict[str, SpatialData]:
    """Objects by name, of one object or several."""
    return tissue if isinstance(tissue, dict) else {"sdata": tissue}


def prefixed(tissue: Tissue) -> list[tuple[str, SpatialData]]:
    """Objects, each with the prefix of the names of its slides."""
    if not isinstance(tissue, dict):
        return [("", tissue)]
    return [(f"{name}/", sdata) for name, sdata in tissue.items()]


def common_setup(tissue: Tissue) -> Setup:
    """The setup of an object, or the first of several that share tile size and grids."""
    setups = {}
    for name, sdata in objects_of(tissue).items():
        setup = stored_setup(sdata)
        if setup is None:
            raise SetupError(f"Object {name!r} has no setup. Call SIGMMA.setup_spatialdata(sdata) first.")
        setups[name] = setup
    first = next(iter(setups.values()))
    for name, setup in setups.items():
        if (setup.tile_size, setup.grids) != (first.tile_size, first.grids):
            raise SetupError(f"Object {name!r} was set up with another tile_size or grids. Set all up together.")
    return first


def stored_setup(sdata: SpatialData) -> Setup | None:
    """The setup stored with an object, if any."""
    stored = sdata.attrs.get(_keys.SETUP)
    return None if stored is None else Setup.from_json(stored)


def resolve_slides(sdata: SpatialData, setup: Setup, prefix: str = "", aligned: bool = True) -> list[Slide]:
    """One :class:`Slide` for each region of the table, or for each image where there is no table.

    Cells need not be under their image if ``aligned=False``.
    """
    if not isinstance(setup.image_key, (str, dict)):
        raise SetupError(f"image_key={setup.image_key!r} must be the name of an image, or a dict by region.")
    if setup.table_key is None:
        images = setup.image_key if isinstance(setup.image_key, dict) else {setup.image_key: setup.image_key}
        _check_regions(setup, list(images), "Name what image_key names.")
        return [_image_slide(sdata, setup, region, image, prefix) for region, image in images.items()]
    table = get_table(sdata, setup)
    regions = table.uns["spatialdata_attrs"]["region"]
    regions = [regions] if isinstance(regions, str) else list(regions)
    _check_regions(setup, regions, "Name the regions that the table annotates.")
    return [_cell_slide(sdata, setup, table, region, prefix, aligned) for region in regions]


def _check_regions(setup: Setup, regions: list[str], fix: str) -> None:
    """Raise :class:`MissingKeyError` if a setting names a region that does not exist."""
    for what in ("image_key", "coordinate_system", "microns_per_pixel"):
        value = getattr(setup, what)
        for region in value if isinstance(value, dict) else ():
            require_key(region, regions, f"region of {what}", fix)


def get_table(sdata: SpatialData, setup: Setup) -> AnnData:
    """The table of cells, with every key of the setup checked."""
    require_key(setup.table_key, sdata.tables, "table_key")
    table = sdata.tables[setup.table_key]
    if "spatialdata_attrs" not in table.uns:
        raise SetupError(
            f"Table {setup.table_key!r} annotates no element, so its cells have no position. Parse it with "
            "TableModel.parse(adata, region=…, region_key=…, instance_key=…)."
        )
    if setup.layer is not None:
        require_key(setup.layer, table.layers, "layer")
    if setup.features_key is not None:
        require_key(setup.features_key, table.obsm, "features_key")
    elif table.n_vars == 0:
        raise SetupError(f"Table {setup.table_key!r} has no genes. Pass features_key=… to use an embedding in obsm.")
    if setup.sample_key is not None:
        require_key(setup.sample_key, table.obs, "sample_key")
    for what, axis, names in (("Cell", "obs", table.obs_names), ("Gene", "var", table.var_names)):
        if not names.is_unique:
            twice = names[names.duplicated()][0]
            raise SetupError(
                f"{what} names of table {setup.table_key!r} repeat, e.g. {twice!r}. Call table.{axis}_names_make_unique() first."
            )
    return table


def obs_of_slide(slide: Slide, column: str) -> pd.Series:
    """A column of ``obs`` for the cells of a slide, as categories."""
    obs = slide.table.obs
    require_key(column, obs, "column")
    return obs[column].iloc[slide.rows].astype("category")


def _check_numbers(setup: Setup) -> None:
    require_positive(setup.tile_size, "tile_size")
    sizes = setup.microns_per_pixel
    if sizes is not None:
        for value in sizes.values() if isinstance(sizes, dict) else (sizes,):
            require_positive(value, "microns_per_pixel")
    grids = setup.grids
    whole = all(isinstance(b, (int, np.integer)) and b >= 1 for b in grids)
    if not grids or not whole or any(a <= b or a % b for a, b in zip(grids, grids[1:], strict=False)):
        raise SetupError(
            f"grids={grids!r} must be whole numbers of blocks per side, fine to coarse, each a multiple of the next, "
            "such as (4, 2, 1)."
        )


def _of(value: Value | Mapping[str, Value], region: str, what: str) -> Value:
    """The value for one region, of a setting given once or by region."""
    if not isinstance(value, Mapping):
        return value
    if region not in value:
        raise MissingKeyError(f"{what} names no entry for region {region!r} (it has {', '.join(map(repr, value))}).")
    return value[region]


def _image_slide(sdata: SpatialData, setup: Setup, region: str, image_key: str, prefix: str) -> Slide:
    level = image_levels(sdata, image_key)[0]
    _check_channels(level, image_key)
    system = _of(setup.coordinate_system, region, "coordinate_system")
    matrix = affine_to(sdata.images[image_key], system, f"image {image_key!r}")
    stated = _of(setup.microns_per_pixel, region, "microns_per_pixel")
    slide = Slide(
        name=prefix + image_key,
        sdata=sdata,
        image_key=image_key,
        coordinate_system=system,
        setup=setup,
        adata=None,
        region=None,
        microns_per_pixel=resolve_pixel_size(matrix, None, stated, image_key),
        width=level.sizes["x"],
        height=level.sizes["y"],
        rows=np.empty(0, np.int64),
        xy=np.empty((0, 2)),
        sample=prefix + image_key,
    )
    appearance_of(slide)
    return slide


def _cell_slide(sdata: SpatialData, setup: Setup, table: AnnData, region: str, prefix: str, aligned: bool) -> Slide:
    image_key = _of(setup.image_key, region, "image_key")
    system = _of(setup.coordinate_system, region, "coordinate_system")
    level = image_levels(sdata, image_key)[0]
    _check_channels(level, image_key)
    region_key = table.uns["spatialdata_attrs"]["region_key"]
    rows = np.flatnonzero((table.obs[region_key] == region).to_numpy())
    if not len(rows):
        raise SetupError(f"The table annotates region {region!r} but no row has obs[{region_key!r}] == {region!r}.")
    stated = _of(setup.microns_per_pixel, region, "microns_per_pixel")
    image_to_cs = affine_to(sdata.images[image_key], system, f"image {image_key!r}")
    unit = None if stated is None else stated / axis_scale(image_to_cs, f"image {image_key!r}")
    xy, cells_to_cs = locate_cells(sdata, table, region, rows, system, unit)
    xy = apply_affine(np.linalg.inv(image_to_cs), xy)
    if not np.isfinite(xy).all():
        bad = table.obs_names[rows][~np.isfinite(xy).all(axis=1)]
        raise SetupError(f"{len(bad):,} cells of {region!r} have no finite position, e.g. {bad[0]!r}. Remove them.")
    sample, cell_samples = _sample_of(table, rows, setup.sample_key, prefix + region)
    slide = Slide(
        name=prefix + region,
        sdata=sdata,
        image_key=image_key,
        coordinate_system=system,
        setup=setup,
        adata=table,
        region=region,
        microns_per_pixel=resolve_pixel_size(image_to_cs, cells_to_cs, stated, image_key),
        width=level.sizes["x"],
        height=level.sizes["y"],
        rows=rows,
        xy=xy,
        sample=sample,
        cell_samples=cell_samples,
        cells_to_system=cells_to_cs,
    )
    appearance_of(slide)
    if aligned:
        _require_under_image(slide)
        _warn_identity(slide, image_to_cs, cells_to_cs)
    return slide


def _require_under_image(slide: Slide) -> None:
    if not slide.under_image.any():
        low, high = slide.xy.min(axis=0), slide.xy.max(axis=0)
        raise SetupError(
            f"No cell of region {slide.region!r} is under image {slide.image_key!r}. In its pixels, cells span x {low[0]:.0f} to "
            f"{high[0]:.0f} and y {low[1]:.0f} to {high[1]:.0f}, the image {slide.width} × {slide.height}. Check the image's "
            f"transformation to {slide.coordinate_system!r} (is the H&E alignment file missing?) and the coordinate_system, or "
            "find where it belongs with sg.pp.register(sdata)."
        )


def _sample_of(
    table: AnnData, rows: np.ndarray, sample_key: str | None, default: str
) -> tuple[str, NDArray[np.str_] | None]:
    """Sample of a slide, and that of each of its cells where these are of several, or of none."""
    if sample_key is None:
        return default, None
    column = table.obs[sample_key].iloc[rows]
    known = column.notna().to_numpy()
    names = np.where(known, column.astype(str), "").astype(str)
    if not known.any():
        raise SetupError(f"obs[{sample_key!r}] names no sample of the cells of {default!r}.")
    if known.all() and len(np.unique(names)) == 1:
        return str(names[0]), None
    return default, names


def _check_channels(level: DataArray, image_key: str) -> None:
    """Raise :class:`SetupError` for a third dimension, or for other channels than those of H&E."""
    if "z" in level.dims:
        raise SetupError(f"Image {image_key!r} has three dimensions. Parse one plane of it with Image2DModel.")
    try:
        require_colours(level)
    except SetupError as error:
        raise SetupError(f"Image {image_key!r}: {error}") from error


def _warn_identity(slide: Slide, image_to_cs: np.ndarray, cells_to_cs: np.ndarray | None) -> None:
    if cells_to_cs is not None and np.allclose(image_to_cs, np.eye(3)) and not np.allclose(cells_to_cs, np.eye(3)):
        warnings.warn(
            f"The H&E {slide.image_key!r} has an identity transform to {slide.coordinate_system!r} while the cells of "
            f"{slide.region!r} do not. Probably the alignment file was missing when the slide was read. Find the alignment with "
            "sg.pp.register(sdata), or set it with spatialdata.transformations.set_transformation.",
            RegistrationWarning,
            stacklevel=5,
        )


def totals_of(slide: Slide) -> Callable[[NDArray[np.int64]], NDArray[np.float64]] | None:
    """Reader of the counts of a slide's cells, given as ascending positions; ``None`` where the table has no genes."""
    if slide.table.n_vars == 0:
        return None
    # Opened at the first call, for a matrix stored by columns is read whole then, and most slides need no counts.
    counts = cache(partial(counts_by_rows, slide.table, slide.setup.layer))
    return lambda cells: row_totals(take_rows(counts(), slide.rows[cells]))
