import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sigmma_sc.errors import ExistsError, SetupError
from sigmma_sc.tissue.table import require_own, require_table


@pytest.mark.parametrize("value", [None, "table", {}, pd.DataFrame(), np.ones(3)])
def test_what_is_no_table_is_named_by_its_type(value):
    with pytest.raises(SetupError, match=f"reference is a {type(value).__name__}"):
        require_table(value, "reference")
    require_table(AnnData(np.ones((1, 1))))


def test_columns_are_ours_only_where_the_record_says_so():
    adata = AnnData(np.ones((2, 1)), obs=pd.DataFrame({"mine": [1, 2], "own_share": [1, 2]}, index=["a", "b"]))
    require_own(adata, "niches", ["new"])
    with pytest.raises(ExistsError, match=r"obs\['mine'\] exists, and was not written by this function"):
        require_own(adata, "niches", ["new", "mine"])
    with pytest.raises(ExistsError, match="own_share"):
        require_own(adata, "niches", ["own"], ("", "_share"))
    adata.uns["sigmma"] = {"niches": {"mine": {}}, "transferred": {"own": {}}}
    require_own(adata, "niches", ["mine"])
    require_own(adata, "transferred", ["own"], ("", "_share"))
    adata.uns["sigmma"] = "1.0"
    with pytest.raises(ExistsError, match=r"uns\['sigmma'\] was not written by sigmma-sc"):
        require_own(adata, "niches", ["new"])
