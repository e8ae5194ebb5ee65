"""Validate a SpatialData, store the setup with it, and resolve it into slides."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from sigmma_sc import _keys
from sigmma_sc._checks import require_key, require_name, require_name_by_region, require_positive
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

ANNOTATION = {"region", "region_key", "instance_key"}
"""What spatialdata keeps with a table that annotates elements."""

BY_REGION = ("image_key", "coordinate_system", "microns_per_pixel")
"""Settings that may differ from region to region."""

MOST_BLOCKS = 64
"""Most blocks per side of a tile (our choice): 4,096 patches, of 2 µm in a tile of 128 µm."""

LARGEST_TILE = 10
"""A tile larger than this many images is a mistake of units."""

MISSING_NAMES = {"", "nan", "none", "<na>", "nat", "null"}
"""Names of samples, in lower case, that are missing values turned into text."""


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
    def of(cls, **values: Any) -> Setup:
        """Setup from a user's arguments, with NumPy's numbers as Python's, or :class:`SetupError` for what is no setting."""
        plain = {name: _plain(value) for name, value in values.items()}
        for name in ("image_key", "coordinate_system"):
            require_name_by_region(plain[name], name)
        for name in ("table_key", "layer", "features_key", "sample_key"):
            if plain[name] is not None:
                require_name(plain[name], name)
        require_positive(plain["tile_size"], "tile_size")
        sizes = plain["microns_per_pixel"]
        if isinstance(sizes, dict) and not sizes:
            raise SetupError("microns_per_pixel={} names no region. Pass one number, or one for each region.")
        for value in sizes.values() if isinstance(sizes, dict) else () if sizes is None else (sizes,):
            require_positive(value, "microns_per_pixel")
        return cls(**{**plain, "grids": _grids(plain["grids"])})

    @classmethod
    def from_json(cls, stored: object, where: str = f"attrs[{_keys.SETUP!r}]") -> Setup:
        """Setup from the result of :meth:`to_json`, also after a round trip through zarr.

        Anything else, as from another version or another tool, raises :class:`SetupError`, which names ``where`` it is.
        """
        again = "Call SIGMMA.setup_spatialdata(sdata) to set the object up again."
        if not isinstance(stored, Mapping):
            raise SetupError(f"{where} is {stored!r}, which is no setup of sigmma-sc. {again}")
        wrong = sorted(map(str, set(stored) ^ set(cls.__dataclass_fields__)))
        if wrong:
            what = "lacks" if wrong[0] in cls.__dataclass_fields__ else "has an unknown setting"
            raise SetupError(f"{where} is no setup of this version of sigmma-sc: it {what} {wrong[0]!r}. {again}")
        try:
            return cls.of(**stored)
        except SetupError as error:
            raise SetupError(f"{where} is no setup of this version of sigmma-sc. {error} {again}") from error

    def to_json(self) -> dict[str, Any]:
        """Values by name, in plain JSON types."""
        return {**asdict(self), "grids": list(self.grids)}

    @property
    def scales(self) -> tuple[str, ...]:
        """Names of the scales, fine to coarse."""
        return _keys.scale_names(self.grids)

    def changed(self, given: Mapping[str, Any]) -> Setup:
        """The same setup with other values for some settings, checked."""
        return Setup.of(**{**asdict(self), **given})

    def within(self, regions: Collection[str]) -> Setup:
        """The same setup without what it names for other regions."""
        kept: dict[str, Any] = {}
        for name in BY_REGION:
            value = getattr(self, name)
            if isinstance(value, dict):
                kept[name] = {region: entry for region, entry in value.items() if region in regions}
        return replace(self, **kept)


def checked_setup(tissue: Tissue, setup: Setup) -> dict[str, tuple[Setup, list[Slide]]]:
    """Setup and slides of each object, for :func:`store_setup`; nothing is stored.

    What the setup names by region goes to the object that has the region; a region that no object has is an error.
    """
    objects = objects_of(tissue)
    regions = {name: _regions_of(sdata, setup) for name, sdata in objects.items()}
    every = [region for own in regions.values() for region in own]
    _check_regions(setup, every, "Name the regions that the table annotates.")
    found = {}
    for (prefix, sdata), (name, own) in zip(prefixed(tissue), regions.items(), strict=True):
        mine = setup.within(own)
        found[name] = mine, resolve_slides(sdata, mine, prefix)
        for slide in found[name][1]:
            _require_tile(slide)
    for _, slides in found.values():
        for slide in slides:
            warn_of_image(slide, stacklevel=3)
            tell_pixel_size(slide, stacklevel=3)
    return found


def _require_tile(slide: Slide) -> None:
    """Raise :class:`SetupError` unless a tile is smaller than :data:`LARGEST_TILE` images, and its finest block than a pixel."""
    setup = slide.setup
    image = max(slide.width, slide.height) * slide.microns_per_pixel
    if setup.tile_size > LARGEST_TILE * image or setup.tile_size / setup.grids[0] < slide.microns_per_pixel:
        raise SetupError(
            f"tile_size={setup.tile_size!r} µm does not fit image {slide.image_key!r}, which is {image:.4g} µm long with pixels of "
            f"{slide.microns_per_pixel:g} µm. A block of grids={setup.grids} must be larger than a pixel; 128 is usual."
        )


def store_setup(tissue: Tissue, setups: Mapping[str, Setup]) -> None:
    """Store the setup of each object with it."""
    for name, sdata in objects_of(tissue).items():
        # A new dict, because subsets of an object share the one that it has.
        sdata.attrs = {**sdata.attrs, _keys.SETUP: setups[name].to_json()}


def slides_of(tissue: Tissue, default: Setup | None = None) -> list[Slide]:
    """Slides of an object, or of objects by name, in order; ``default`` is the setup of objects never set up."""
    slides = []
    for prefix, sdata in prefixed(tissue):
        setup = stored_setup(sdata) or default
        if setup is None:
            raise SetupError(f"{prefix or 'The object'} has no setup. Call SIGMMA.setup_spatialdata(sdata) first.")
        # A subset of an object has its setup, and not all of its regions.
        try:
            slides += resolve_slides(sdata, setup.within(_regions_of(sdata, setup)), prefix)
        except MissingKeyError as error:
            raise MissingKeyError(
                f"{error} The object no longer holds what it was set up with. Call SIGMMA.setup_spatialdata(sdata) to set it up again."
            ) from error
    return slides


def objects_of(tissue: Tissue) -> dict[str, SpatialData]:
    """Objects by name, of one object or several; :class:`SetupError` for anything else."""
    from spatialdata import SpatialData

    objects = tissue if isinstance(tissue, dict) else {"sdata": tissue}
    if not objects:
        raise SetupError("sdata={} holds no object. Pass a SpatialData, or a dict of them by name.")
    names: dict[int, str] = {}
    for name, sdata in objects.items():
        if not isinstance(sdata, SpatialData):
            what = f"sdata[{name!r}]" if isinstance(tissue, dict) else "sdata"
            raise SetupError(
                f"{what} is a {type(sdata).__name__}. Pass a SpatialData, or a dict of them by name; spatialdata.read_zarr(path) reads one."
            )
        if not isinstance(name, str) or not name:
            raise SetupError(f"sdata[{name!r}]: name each object by a text, such as 'patient1'.")
        if id(sdata) in names:
            raise SetupError(f"sdata[{names[id(sdata)]!r}] and sdata[{name!r}] are the same object. Pass each once.")
        names[id(sdata)] = name
    return objects


def prefixed(tissue: Tissue) -> list[tuple[str, SpatialData]]:
    """Objects, each with the prefix of the names of its slides."""
    objects = objects_of(tissue)
    if not isinstance(tissue, dict):
        return [("", tissue)]
    return [(f"{name}/", sdata) for name, sdata in objects.items()]


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
    regions = _regions_of(sdata, setup)
    if setup.table_key is None:
        _check_regions(setup, regions, "Name what image_key names.")
        return [_image_slide(sdata, setup, region, image, prefix) for region, image in _images_of(setup).items()]
    table = get_table(sdata, setup)
    _check_regions(setup, regions, "Name the regions that the table annotates.")
    return [_cell_slide(sdata, setup, table, region, prefix, aligned) for region in regions]


def _images_of(setup: Setup) -> dict[str, str]:
    """Images of a setup without a table, by region."""
    return setup.image_key if isinstance(setup.image_key, dict) else {setup.image_key: setup.image_key}


def _regions_of(sdata: SpatialData, setup: Setup) -> list[str]:
    """Regions of an object: those that its table annotates, or those that the setup names for its images."""
    if setup.table_key is None:
        images = _images_of(setup)
        here = [region for region, image in images.items() if image in sdata.images]
        return here or list(images)
    require_key(setup.table_key, sdata.tables, "table_key")
    table = sdata.tables[setup.table_key]
    annotation = table.uns.get("spatialdata_attrs")
    if not isinstance(annotation, Mapping) or not set(annotation) >= ANNOTATION:
        raise SetupError(
            f"Table {setup.table_key!r} annotates no element, so its cells have no position. Parse it with "
            "TableModel.parse(adata, region=…, region_key=…, instance_key=…)."
        )
    for key in ("region_key", "instance_key"):
        require_key(annotation[key], table.obs, key, "Parse the table again with TableModel.parse.")
    named = annotation["region"]
    regions = [named] if isinstance(named, str) else [str(region) for region in named]
    column = table.obs[annotation["region_key"]]
    stray = ~column.isin(regions).to_numpy()
    if stray.any():
        raise SetupError(
            f"{int(stray.sum()):,} rows of table {setup.table_key!r} are of no region, e.g. {table.obs_names[stray][0]!r} with "
            f"obs[{column.name!r}] = {column[stray].iloc[0]!r}. Give them one of {', '.join(map(repr, regions))}, or remove them."
        )
    return regions


def _check_regions(setup: Setup, regions: list[str], fix: str) -> None:
    """Raise :class:`MissingKeyError` if a setting names a region that does not exist."""
    for what in BY_REGION:
        value = getattr(setup, what)
        for region in value if isinstance(value, dict) else ():
            require_key(region, regions, f"region of {what}", fix)


def get_table(sdata: SpatialData, setup: Setup) -> AnnData:
    """The table of cells, with every key of the setup checked."""
    require_key(setup.table_key, sdata.tables, "table_key")
    table = sdata.tables[setup.table_key]
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


def _plain(value: object) -> Any:  # noqa: ANN401 - any setting
    """A setting in Python's own types, which JSON can hold."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return value


def _grids(value: object) -> tuple[int, ...]:
    """Blocks per side as a tuple, or :class:`SetupError`."""
    grids = tuple(map(_plain, value)) if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)) else ()
    whole = all(isinstance(b, int) and not isinstance(b, bool) and 1 <= b <= MOST_BLOCKS for b in grids)
    if not grids or not whole or any(a <= b or a % b for a, b in zip(grids, grids[1:], strict=False)):
        raise SetupError(
            f"grids={value!r} must be a list of whole numbers of blocks per side, at most {MOST_BLOCKS}, fine to coarse, each a "
            "multiple of the next, such as (4, 2, 1)."
        )
    return grids


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
    # By plain objects: text columns of pandas 3 keep a missing value as NaN when they are turned into text.
    names = np.where(known, column.astype(object).map(str), "").astype(str)
    for name in np.unique(names[known]):
        if name.strip().lower() in MISSING_NAMES:
            raise SetupError(
                f"obs[{sample_key!r}] names {int((names[known] == name).sum()):,} cells of {default!r} by {name!r}, a missing value "
                "turned into text. Replace it by NaN, or by the name of the sample."
            )
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
    if slide.table.n_vars == 0 or (slide.setup.layer is None and slide.table.X is None):
        return None
    # Opened at the first call, for a matrix stored by columns is read whole then, and most slides need no counts.
    counts = cache(partial(counts_by_rows, slide.table, slide.setup.layer))
    return lambda cells: row_totals(take_rows(counts(), slide.rows[cells]))
