"""Landmarks of a registration in a table of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

COLUMNS = ("image_x", "image_y", "cell_x", "cell_y")
"""Place on the image in px of level 0, and the same place among the cells in units of their element, µm in most."""

SLIDE = "slide"
"""Column that names the slide of each pair, needed where there are several."""


def read_landmarks(file: Path) -> NDArray | dict[str, NDArray]:
    """Pairs ``(n, 2, 2)`` of a CSV file, as :func:`sigmma_sc.pp.register` takes them; by slide if it has that column.

    Raises
    ------
    SetupError
        The file cannot be read, lacks a column, or holds something that is no number.
    """
    wanted = (
        f"Its first line must name the columns {','.join(COLUMNS)}; a column {SLIDE!r} is needed for several slides."
    )
    try:
        table = pd.read_csv(file, skipinitialspace=True, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise SetupError(f"--landmarks {file} cannot be read: {error}. {wanted}") from error
    table.columns = table.columns.str.strip()
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise SetupError(f"--landmarks {file} lacks {', '.join(missing)}: it has {', '.join(table.columns)}. {wanted}")
    values = table[list(COLUMNS)].apply(pd.to_numeric, errors="coerce")
    wrong = values.isna().to_numpy()
    if wrong.any():
        row, column = (int(axis[0]) for axis in wrong.nonzero())
        name = COLUMNS[column]
        raise SetupError(
            f"--landmarks {file}: pair {row} (from 0) has {name} {table[name].iloc[row]!r}, which is no number. Mark it again, or "
            "remove the pair."
        )
    pairs = values.to_numpy(float).reshape(-1, 2, 2)
    if SLIDE not in table:
        return pairs
    names = table[SLIDE].str.strip()
    return {str(name): pairs[(names == name).to_numpy()] for name in names.unique()}
