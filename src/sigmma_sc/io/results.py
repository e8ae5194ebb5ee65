"""Results into the store that an object was read from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigmma_sc import _keys
from sigmma_sc._files import fresh_folder
from sigmma_sc._notices import silenced
from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from spatialdata import SpatialData

METADATA = "zarr.json"
"""Name of the file of each zarr group that is written in place."""


def write_results(sdata: SpatialData) -> None:
    """Write embeddings, niches and tiles into the store that an object was read from; images are not copied.

    The table of cells, ``tables["sigmma_tiles"]``, the squares of tiles and the package's part of ``attrs`` replace those of
    the store. Everything else of the store stays as it is. The store is replaced in one step: after an error or a kill it
    is the old one or the new one, whole.

    Parameters
    ----------
    sdata
        Object read from a store, with results of :meth:`sigmma_sc.SIGMMA.write_embeddings`.

    Raises
    ------
    SetupError
        The object was read from no local store, holds no results, or its cells, genes or counts are not those of the store,
        as in a subset or after ``sc.pp.normalize_total``. The message names what differs.
    WriteError
        The store cannot be written; it is as before.

    See Also
    --------
    sigmma_sc.SIGMMA.write_embeddings : Write results into the object.

    Notes
    -----
    A second folder is made beside the store, whose unchanged files are hard links to those of the store, and the two are
    exchanged. On a disk without hard links they are copied. The step is a single one on Linux. On other systems a store that was
    killed between two renames is restored by the next call.

    Examples
    --------
    >>> model.write_embeddings(overwrite=True)
    >>> sdata.write("slide.zarr")
    >>> prototypes = sg.tl.niches(adata, ["meso"], resolution=0.5)
    >>> sg.io.write_results(sdata)
    >>> import spatialdata
    >>> "sigmma_niche_meso" in spatialdata.read_zarr("slide.zarr")["table"].obs
    True
    """
    from spatialdata import SpatialData

    if not isinstance(sdata, SpatialData):
        raise SetupError(f"sdata is a {type(sdata).__name__}. Pass a SpatialData object that was read from a store.")
    store = _store_of(sdata)
    names = list(_results(sdata))
    if not names:
        raise SetupError("The object holds no results. Call model.write_embeddings() first.")
    table = _cells(sdata)
    if table is not None:
        _require_same_rows(sdata.tables[table], store / "tables" / table)
        _require_same_counts(sdata.tables[table], store / "tables" / table, sdata.attrs[_keys.SETUP].get("layer"))
    with silenced(), fresh_folder(store) as fresh:
        _link(store, fresh, {f"{kind}/{name}" for kind, name in [*names, *_stale(store)]})
        # A shell around the new folder: the object itself stays backed by the store.
        results = SpatialData(
            tables={name: sdata.tables[name] for kind, name in names if kind == "tables"},
            shapes=dict(sdata.shapes),
            points=dict(sdata.points),
            labels=dict(sdata.labels),
        )
        results.path = fresh
        results.write_element([name for _, name in names])
        _write_attributes(fresh, sdata.attrs)
        if results.has_consolidated_metadata():
            results.write_consolidated_metadata()


def _store_of(sdata: SpatialData) -> Path:
    """Folder that an object was read from."""
    if sdata.path is None:
        raise SetupError("The object is in no store. Write it first: sdata.write('slide.zarr').")
    store = Path(str(sdata.path)).absolute()
    if not store.is_dir():
        raise SetupError(f"{sdata.path} is no local folder. Write the object elsewhere with sdata.write(path).")
    if not (store / METADATA).exists():
        raise SetupError(f"{store} is in the format of spatialdata before 0.5. Write it anew with sdata.write(path).")
    return store


def _cells(sdata: SpatialData) -> str | None:
    """Name of the table of cells that results were written into."""
    setup = sdata.attrs.get(_keys.SETUP)
    name = setup.get("table_key") if isinstance(setup, Mapping) else None
    table = sdata.tables.get(name) if name is not None else None
    return name if table is not None and _keys.UNS in table.uns else None


def _results(sdata: SpatialData) -> Iterator[tuple[str, str]]:
    """Kind and name of each element that holds results."""
    for name in sdata.shapes:
        if name.startswith(_keys.tile_squares("")):
            yield "shapes", name
    if _keys.TILES in sdata.tables:
        yield "tables", _keys.TILES
    if (name := _cells(sdata)) is not None:
        yield "tables", name


def _stale(store: Path) -> Iterator[tuple[str, str]]:
    """Tiles that an earlier model left in a store."""
    if (store / "shapes").is_dir():
        for folder in (store / "shapes").iterdir():
            if folder.name.startswith(_keys.tile_squares("")):
                yield "shapes", folder.name
    yield "tables", _keys.TILES


def _require_same_rows(table: AnnData, stored: Path) -> None:
    """Raise :class:`SetupError` unless a stored table has the same cells and genes in the same order."""
    from anndata.io import read_elem
    from zarr import open_group

    if not stored.is_dir():
        raise SetupError(f"The store holds no table {stored.name!r}. Write the object with sdata.write(path).")
    group: Any = open_group(stored, mode="r", use_consolidated=False)
    for axis, names, what in (("obs", table.obs_names, "cells"), ("var", table.var_names, "genes")):
        frame = group[axis]
        index = [str(name) for name in read_elem(frame[frame.attrs["_index"]])]
        if index != [str(name) for name in names]:
            raise SetupError(
                f"The table {stored.name!r} has {len(names):,} {what}, and the store {len(index):,} or others in another order: "
                "what is left out would be lost. Write the object to another store with sdata.write(path)."
            )


def _require_same_counts(table: AnnData, stored: Path, layer: str | None) -> None:
    """Raise :class:`SetupError` where the totals of the cells differ from those of the stored counts."""
    import numpy as np
    from anndata import AnnData
    from anndata.io import read_elem
    from zarr import open_group

    from sigmma_sc.tissue.counts import counts_by_rows, row_totals, take_rows

    group: Any = open_group(stored, mode="r", use_consolidated=False)
    place = "X" if layer is None else f"layers/{layer}"
    if place not in group or (layer is None and table.X is None):
        return  # the store has no such counts to lose, or the object no others
    rows = np.arange(table.n_obs)
    before = row_totals(take_rows(counts_by_rows(AnnData(read_elem(group[place])), None), rows))
    now = row_totals(take_rows(counts_by_rows(table, layer), rows))
    # Totals of float32 depend on the order of the genes' values.
    if not np.allclose(before, now, rtol=1e-4, equal_nan=True):
        raise SetupError(
            f"{place} of the table {stored.name!r} holds other values than the store, as after sc.pp.normalize_total: the "
            "counts of the store would be lost. Put them back, or write the object to another store with sdata.write(path)."
        )


def _link(store: Path, fresh: Path, without: set[str]) -> None:
    """Fill a new folder with the files of a store, but for some elements; metadata of groups are copies."""
    for folder, folders, files in os.walk(store):
        place = Path(folder).relative_to(store)
        folders[:] = [name for name in folders if (place / name).as_posix() not in without]
        (fresh / place).mkdir(exist_ok=True)
        for name in files:
            source, target = Path(folder) / name, fresh / place / name
            if name == METADATA and place.as_posix() in (".", "tables", "shapes"):
                shutil.copy2(source, target)  # it is written in place
                continue
            try:
                os.link(source, target)
            except OSError:
                shutil.copy2(source, target)


def _write_attributes(store: Path, attrs: Mapping[str, Any]) -> None:
    """The package's part of the attributes of an object."""
    from zarr import open_group

    group = open_group(store, mode="r+", use_consolidated=False)
    group.attrs.update({key: attrs[key] for key in (_keys.SETUP, _keys.REGISTRATION) if key in attrs})
