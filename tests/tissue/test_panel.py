"""Genes of tables of different panels."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.panel import common_genes, find_genes, gene_names, genes_of, is_control, union_of_genes


def table(names, **columns):
    return ad.AnnData(np.ones((2, len(names)), "f4"), var=pd.DataFrame(columns, index=list(names)))


CONTROLS = [
    "NegControlProbe_00042", "NegControlCodeword_0500", "UnassignedCodeword_0001", "DeprecatedCodeword_0007", "BLANK_0006",
    "antisense_PROKR2", "Negative Control 3", "Negative1", "NegPrb12", "SystemControl4", "Blank-11", "Intergenic_Region_2",
]  # fmt: skip
GENES = ["NEGR1", "BLNK", "ANTXR1", "NELFB", "EPCAM", "ENSG00000119888", "UNC5B", "DEPDC1", "SYSTEMIN"]


def test_control_probes_are_told_from_genes():
    assert is_control(table(CONTROLS)).all()
    assert not is_control(table(GENES)).any()
    assert gene_names(table([*CONTROLS[:3], *GENES, *CONTROLS[3:]])) == GENES


def test_control_probes_are_known_by_the_type_of_10x():
    types = [
        "Gene Expression",
        "Negative Control Codeword",
        "Gene Expression",
        "Unassigned Codeword",
        "Genomic Control",
    ]
    assert gene_names(table("abcde", feature_types=types)) == ["a", "c"]


IDS = ["ENSG1", "ENSG2", "ENSG3", "ENSG4"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, [-1, -1, -1]),
        ({"gene_symbol": ["A", "B", "C", "D"]}, [2, -1, 0]),
        ({"gene_symbol": pd.Categorical(["A", "B", None, "D"])}, [-1, -1, 0]),
        ({"n": [1, 2, 3, 4], "name": ["A", "B", "C", "D"], "again": ["A", "B", "C", "D"]}, [2, -1, 0]),
        ({"few": ["A", "x", "y", "z"], "many": ["B", "x", "C", "A"]}, [2, -1, 3]),  # the column that holds more
        ({"name": ["A", "B", "C", "B"]}, [2, -1, 0]),  # B is there twice, but not asked for
    ],
)
def test_symbols_are_found_in_a_column_where_names_are_ids(columns, expected):
    assert find_genes(table(IDS, **columns), ["C", "Z", "A"]).tolist() == expected


def test_names_come_before_columns():
    both = table(["A", "B"], other=["B", "A"])
    assert find_genes(both, ["B", "A"]).tolist() == [1, 0]


def test_ambiguous_genes_are_refused():
    with pytest.raises(SetupError, match=r"var\['name'\] names gene 'A' twice"):
        find_genes(table(IDS, name=["A", "B", "C", "A"]), ["A", "B"])
    with pytest.raises(SetupError, match=r"var\['one'\] and var\['two'\] both match 2 genes, in different columns"):
        find_genes(table(IDS, one=["A", "B", "x", "y"], two=["x", "y", "A", "B"]), ["A", "B"])


def test_panels_of_several_tables():
    first = table(["A", "B", "NegControlProbe_1", "C"])
    ids = table(IDS, symbol=["C", "D", "A", "BLANK_3"])
    third = table(["E", "A", "BLANK_1"])
    # The fourth id is no control by its name, and D has no other name in the first table.
    assert union_of_genes([first, third]) == ["A", "B", "C", "E"]
    assert union_of_genes([first, ids])[:4] == ["A", "B", "C", "D"]
    assert common_genes([first, ids, third]) == ["A"]
    assert genes_of([first, third], "shared") == ["A"]
    assert genes_of([first, third], ("E", "B", "NegControlProbe_1")) == ["E", "B", "NegControlProbe_1"]
    with pytest.raises(SetupError, match=r"1 of 2 genes=… are in no table, e\.g\. Z"):
        genes_of([first, third], ["A", "Z"])
    with pytest.raises(SetupError, match="2 tables have no gene in common; the first has A, B, C"):
        common_genes([first, table(["X", "Y"])])
