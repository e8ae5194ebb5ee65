import numpy as np
import pytest

from sigmma_sc import SIGMMA
from sigmma_sc.errors import SetupError

QUIET = {"enable_progress_bar": False, "split": "none", "batch_size": 64}


def fitted(sdata, encoder, epochs=1, **options):
    model = SIGMMA(sdata, encoder, n_latent=16, **options)
    model.train(max_epochs=epochs, lr=3e-3, **QUIET)
    return model


def test_gene_vectors_in_the_place_of_the_cell_graph(tiny, encoder, tmp_path):
    model = fitted(tiny, encoder(), 20, cells="genes")
    last = {k: v.iloc[-1, 0] for k, v in model.history.items()}
    assert last["train_loss_macro"] < 0.8 * last["train_ln_batch"]
    with pytest.raises(SetupError, match="embeds tiles, not cells"):
        model.get_latent_representation()
    # The vector is what scanpy makes of the tile's summed counts.
    slide = model.resolve()[0]
    tiles = slide.tiles
    vectors = model.data.node_features(slide, tiles).toarray()
    busy = int(tiles.n_cells.argmax())
    counts = np.asarray(tiny["table"].X[slide.rows[tiles.take(np.array([busy])).cells]].sum(axis=0)).ravel()
    logs = np.log1p(counts / counts.sum() * model.data.node_features.target_sum)
    beside = np.log1p([counts.sum(), tiles.n_cells[busy]])
    np.testing.assert_allclose(vectors[busy], np.concatenate([logs, beside]), rtol=1e-5)
    model.save(tmp_path / "model")
    loaded = SIGMMA.load(tmp_path / "model", tiny, encoder())
    for modality in ("image", "transcriptome"):
        a, b = (m.get_tile_representation(modality=modality, scale="all").X for m in (model, loaded))
        np.testing.assert_array_equal(a, b)
