"""Checks of a table that a tool reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from anndata import AnnData

from sigmma_sc import _keys
from sigmma_sc.errors import ExistsError, SetupError


def require_table(value: object, what: str = "adata") -> None:
    """Raise :class:`SetupError` unless ``value`` is an AnnData."""
    from anndata import AnnData

    if not isinstance(value, AnnData):
        raise SetupError(
            f"{what} is a {type(value).__name__}. Pass a table of cells, an AnnData such as sdata['table']."
        )


def require_own(adata: AnnData, what: str, columns: Iterable[str], endings: Iterable[str] = ("",)) -> None:
    """Raise :class:`ExistsError` for columns of ``obs`` that exist, unless ``uns["sigmma"][what]`` says that we wrote them."""
    record = adata.uns.get(_keys.UNS, {})
    if not isinstance(record, Mapping):
        raise ExistsError(f"uns[{_keys.UNS!r}] was not written by sigmma-sc and would be lost. Rename it.")
    for column in columns:
        if column in record.get(what, {}):
            continue
        for ending in endings:
            if f"{column}{ending}" in adata.obs:
                raise ExistsError(
                    f"obs[{f'{column}{ending}'!r}] exists, and was not written by this function. Pass another key_added=…, or "
                    "remove the column."
                )
