"""Labels of cells for Xenium Explorer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sigmma_sc._checks import require_key, require_name, require_path
from sigmma_sc._files import fresh_file
from sigmma_sc.errors import ExistsError, SetupError

if TYPE_CHECKING:
    from anndata import AnnData


def to_xenium_explorer(
    adata: AnnData,
    path: str | Path,
    key: str = "sigmma_niche_meso",
    cell_id: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write labels of cells as a CSV of cell groups, which Xenium Explorer reads.

    In Xenium Explorer, open *Cells*, then *Cell groups*, and upload the file. Cells without a label are left out.

    Parameters
    ----------
    adata
        Table of cells with the labels, of one Xenium region.
    path
        File to write, such as ``"niches.csv"``.
    key
        Column of ``obs`` with the labels.
    cell_id
        Column of ``obs`` with Xenium's names of the cells; ``None`` for ``"cell_id"`` if there is one, or the names of the rows.
    overwrite
        Replace the file.

    Raises
    ------
    ExistsError
        The file exists and ``overwrite`` is not set.
    MissingKeyError
        There is no such column.
    SetupError
        No cell has a label, or two cells have the same name, as those of several regions may.

    See Also
    --------
    sigmma_sc.tl.niches : Labels to write.

    Notes
    -----
    The columns are those of 10x Genomics: ``cell_id``, ``group`` and ``color``. Colours are those of
    ``uns[f"{key}_colors"]`` where the table has them, as scanpy's plots and :func:`sigmma_sc.pl.niches` write them. Without
    them there is no third column, and Xenium Explorer chooses.

    Examples
    --------
    >>> sg.io.to_xenium_explorer(adata, "niches.csv")
    >>> open("niches.csv").readline().strip()[:13]
    'cell_id,group'
    """
    _require_cells(adata)
    require_path(path, "path")
    require_name(key, "key")
    require_key(key, adata.obs, "column")
    if cell_id is not None:
        require_key(cell_id, adata.obs, "cell_id")
    file = Path(path).expanduser()
    if file.exists() and not overwrite:
        raise ExistsError(f"{file} exists. Choose another path, or pass overwrite=True to replace it.")
    frame = _groups(adata, key, cell_id)
    file.parent.mkdir(parents=True, exist_ok=True)
    with fresh_file(file) as fresh:
        frame.to_csv(fresh, index=False)


def _require_cells(adata: object) -> None:
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        raise SetupError(f"adata is a {type(adata).__name__}. Pass a table of cells, such as sdata['table'].")


def _groups(adata: AnnData, key: str, cell_id: str | None) -> pd.DataFrame:
    """Name, label and colour of each cell that has a label."""
    from matplotlib.colors import to_hex

    column = "cell_id" if cell_id is None and "cell_id" in adata.obs else cell_id
    names = pd.Index(adata.obs_names if column is None else adata.obs[column]).astype(str)
    labels = adata.obs[key].astype("category")
    known = labels.notna().to_numpy()
    if not known.any():
        raise SetupError(f"obs[{key!r}] labels no cell. Pass another key=….")
    twice = names[known][names[known].duplicated()]
    if len(twice):
        raise SetupError(f"Cell {twice[0]!r} occurs twice. Write each region by itself, or pass cell_id=….")
    frame = pd.DataFrame({"cell_id": names[known], "group": labels[known].astype(str).to_numpy()})
    colours = adata.uns.get(f"{key}_colors", ())
    if len(colours) >= len(labels.cat.categories):
        of_code = [to_hex(colour) for colour in colours]
        frame["color"] = [of_code[code] for code in labels.cat.codes[known]]
    return frame
