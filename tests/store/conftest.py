import pytest

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue


@pytest.fixture(scope="session")
def tiny():
    """A slide smaller still, because a saved model has the default encoder, which takes its time for each crop."""
    sdata = simulate_tissue(n_cells=400, seed=0)
    SIGMMA.setup_spatialdata(sdata, tile_size=64)
    return sdata


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory):
    model = SIGMMA(tiny, n_latent=8)
    model.train(max_epochs=1, split="none", batch_size=32, enable_progress_bar=False)
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save(path)
    return path, model


@pytest.fixture(scope="session")
def aligned():
    """A small model with test tiles."""
    sdata = simulate_tissue(n_cells=900, seed=0)
    SIGMMA.setup_spatialdata(sdata, tile_size=64)
    model = SIGMMA(sdata, n_latent=8)
    model.train(max_epochs=2, split="blocks", batch_size=32, enable_progress_bar=False)
    return model
