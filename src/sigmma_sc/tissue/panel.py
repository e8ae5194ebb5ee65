"""Genes of tables: without control probes, and matched by name between tables of different panels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

CONTROL = (
    r"(?i)^(?:neg(?:ative)?[ _.-]?control|negprb|negative\d|systemcontrol|falsecode|genomic[ _.-]?control|intergenic"
    r"|unassigned|deprecated|antisense[ _.-]|blank(?:[ _.-]|$))"
)
"""Names of control probes in Xenium (``NegControlProbe_00042``, ``BLANK_0006``, ``antisense_BCL2L15``), CosMx and MERSCOPE."""

FEATURE_TYPES = "feature_types"
"""Column of ``var`` in which 10x Genomics names the type of a feature, such as ``Negative Control Probe``."""

CONTROL_TYPE = r"(?i)control|unassigned|deprecated|blank"


def is_control(table: AnnData) -> NDArray[np.bool_]:
    """Which columns of a table are control probes, by name or by ``var["feature_types"]``, ``(n_vars,)``."""
    controls = table.var_names.astype(str).str.contains(CONTROL)
    if FEATURE_TYPES in table.var:
        controls = controls | table.var[FEATURE_TYPES].astype(str).str.contains(CONTROL_TYPE).to_numpy()
    return np.asarray(controls, dtype=bool)


def gene_names(table: AnnData) -> list[str]:
    """Names of a table's genes in order, without control probes."""
    return table.var_names[~is_control(table)].astype(str).tolist()


def find_genes(table: AnnData, genes: Sequence[str]) -> NDArray[np.int64]:
    """Columns of a table that hold ``genes``, -1 for a gene that it lacks, ``(n_genes,)``.

    Genes are matched by ``var_names``, or by a column of ``var`` that holds more of them: ids or symbols. A gene that
    this column names twice, or two columns that match as many genes differently, raise :class:`SetupError`.
    """
    name, labels = _naming(table, genes)
    return _indexer(name, labels, genes)


def union_of_genes(tables: Sequence[AnnData]) -> list[str]:
    """Genes of any of some tables, by the names of the first that has each."""
    union = gene_names(tables[0])
    for table in tables[1:]:
        name, labels = _naming(table, union)
        here = _indexer(name, labels, union)
        new = ~is_control(table)
        new[here[here >= 0]] = False
        union += [label for label in labels[new] if label]
    return list(dict.fromkeys(union))


def common_genes(tables: Sequence[AnnData]) -> list[str]:
    """Genes of all of some tables, in the order of the first, or :class:`SetupError` if there are none."""
    common = gene_names(tables[0])
    for table in tables[1:]:
        where = find_genes(table, common)
        common = [gene for gene, column in zip(common, where, strict=True) if column >= 0]
    if not common:
        raise SetupError(
            f"The {len(tables)} tables have no gene in common; the first has {', '.join(gene_names(tables[0])[:3])} …. Name genes "
            "alike in var_names, or add a column of ids or symbols to var."
        )
    return common


def genes_of(tables: Sequence[AnnData], panel: str | Sequence[str]) -> list[str]:
    """Genes of ``"union"`` or ``"shared"``, or those listed, of some tables; raise :class:`SetupError` for one in no table."""
    if panel == "union":
        return union_of_genes(tables)
    if panel == "shared":
        return common_genes(tables)
    genes = [str(gene) for gene in panel]
    present = np.zeros(len(genes), bool)
    for table in tables:
        present |= find_genes(table, genes) >= 0
    if not present.all():
        absent = [gene for gene, here in zip(genes, present, strict=True) if not here]
        raise SetupError(
            f"{len(absent)} of {len(genes)} genes=… are in no table, e.g. {', '.join(absent[:5])}. Name genes as in var_names or in "
            "a column of var."
        )
    return genes


def _naming(table: AnnData, genes: Sequence[str]) -> tuple[str, NDArray]:
    """Where the names of a table's genes are, and the names, ``(n_vars,)``: those that match most of ``genes``."""
    wanted = set(genes)
    labels = {"var_names": table.var_names.astype(str).to_numpy()}
    for column in table.var:
        values = table.var[column]
        if isinstance(values.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(values.dtype):
            labels[f"var[{column!r}]"] = np.where(values.notna(), values.astype(str), "")
    matched = {}
    for name, values in labels.items():
        matched[name] = len(wanted.intersection(values))
    most = max(matched.values())
    best = [name for name, n in matched.items() if n == most]
    if most and best[0] != "var_names":
        where = [_indexer(name, labels[name], genes) for name in best]
        for other, columns in zip(best[1:], where[1:], strict=True):
            if not np.array_equal(columns, where[0]):
                raise SetupError(
                    f"Genes are ambiguous: {best[0]} and {other} both match {most} genes, in different columns of the table. "
                    "Rename the genes by the right one: table.var_names = table.var[…]."
                )
    return best[0], labels[best[0]]


def _indexer(name: str, labels: NDArray, genes: Sequence[str]) -> NDArray[np.int64]:
    """Column of each gene by its label, -1 for none; a gene that is there twice raises :class:`SetupError`."""
    index = pd.Index(labels)
    twice = set(index[index.duplicated()]).intersection(genes)
    if twice:
        raise SetupError(
            f"{name} names gene {min(twice)!r} twice, so that its column is ambiguous. Remove one of the columns, or call "
            "table.var_names_make_unique()."
        )
    first = ~index.duplicated()
    columns = np.flatnonzero(first)
    found = index[first].get_indexer(pd.Index(genes, dtype=object))
    return np.where(found >= 0, columns[found], -1)
