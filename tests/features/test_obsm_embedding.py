import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError


def test_an_embedding_of_the_user_replaces_the_counts(encoder):
    sdata = simulate_tissue(n_cells=600, seed=0)
    table = sdata["table"]
    table.obsm["X_mine"] = np.random.default_rng(0).normal(size=(table.n_obs, 7))
    table.X = None
    SIGMMA.setup_spatialdata(sdata, features_key="X_mine", tile_size=64)
    model = SIGMMA(sdata, encoder(), n_latent=16)
    model.train(max_epochs=1, split="none", enable_progress_bar=False)
    assert model.module.cell_tower.standardise.mean.shape == (8,)  # and how far the nearest cells are
    expected, kept = model.get_latent_representation(), table.obsm["X_mine"]
    for other in (pd.DataFrame(kept, index=table.obs_names), csr_matrix(kept)):
        table.obsm["X_mine"] = other
        np.testing.assert_array_equal(model.get_latent_representation(), expected)
    table.obsm["X_mine"] = kept
    table.obsm["X_mine"][3, 2] = np.nan
    with pytest.raises(SetupError, match="X_mine.*1 rows"):
        model.get_latent_representation()
