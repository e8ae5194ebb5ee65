import pytest

from sigmma_sc import SIGMMA


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory):
    model = SIGMMA(tiny, n_latent=8)
    model.train(max_epochs=1, split="none", batch_size=32, enable_progress_bar=False)
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save(path)
    return path, model
