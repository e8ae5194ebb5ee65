import copy
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from spatialdata import SpatialData

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import EncoderError, ExistsError, NotTrainedError, PixelSizeWarning, SetupError

SCALES = ("micro", "meso", "macro")


def small(n_cells, **options):
    sdata = simulate_tissue(n_cells=n_cells, seed=0)
    SIGMMA.setup_spatialdata(sdata, **options)
    return sdata


def test_training_leaves_chance_behind(trained):
    _, model = trained
    history = model.history
    last = {k: v.iloc[-1, 0] for k, v in history.items()}
    for scale in SCALES:
        assert last[f"train_loss_{scale}"] < 0.6 * last["train_ln_batch"]
    total = sum(history[f"train_loss_{s}"].iloc[-1, 0] for s in SCALES)
    assert total == pytest.approx(last["train_loss_epoch"], rel=1e-4)
    assert history["train_loss_epoch"].dtypes.iloc[0].kind == "f"


def test_retrieval_beats_chance_in_both_directions():
    model = SIGMMA(small(n_cells=2500, grids=(2, 1)), n_latent=32)
    model.train(max_epochs=40, split="none", lr=3e-3, enable_progress_bar=False)
    table = model.evaluate_retrieval(split="train")
    together = table[table.scale == "all"]
    assert set(together.direction) == {"image→transcriptome", "transcriptome→image"}
    assert (together["recall@15%"] > 4 * together["chance@15%"]).all()


@pytest.mark.slow
def test_same_seed_same_weights_and_another_seed_others(encoder):
    states = []
    for seed in (0, 0, 1):
        model = SIGMMA(small(n_cells=600, tile_size=64), encoder(), n_latent=16, seed=seed)
        torch.manual_seed(123 + len(states))  # the global state must not matter
        model.train(max_epochs=2, split="none", enable_progress_bar=False)
        states.append(model.module.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(
        states[0]["cell_tower.graph.layers.0.root.weight"], states[2]["cell_tower.graph.layers.0.root.weight"]
    )


def test_training_on_continues_the_history(tiny, encoder):
    model = SIGMMA(tiny, encoder(), n_latent=16)
    model.train(max_epochs=2, split="none", enable_progress_bar=False)
    model.train(max_epochs=3, enable_progress_bar=False)
    assert len(model.history["train_loss_epoch"]) == 5
    assert model.history["train_loss_epoch"].index.tolist() == list(range(5))
    with pytest.raises(SetupError, match="leak"):
        model.train(max_epochs=1, split="end")


def test_save_and_load_give_identical_embeddings(trained, tmp_path):
    sdata, model = trained
    model.save(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.json", "weights.safetensors"]
    loaded = SIGMMA.load(tmp_path / "model", sdata, cache_dir=model.data.cache_dir)
    np.testing.assert_array_equal(
        model.get_latent_representation(scale="all"), loaded.get_latent_representation(scale="all")
    )
    for modality in ("image", "transcriptome"):
        a, b = (m.get_tile_representation(modality=modality, scale="all") for m in (model, loaded))
        np.testing.assert_array_equal(a.X, b.X)
        pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(model.evaluate_retrieval(), loaded.evaluate_retrieval())
    np.testing.assert_allclose(model.history["validation_loss"], loaded.history["validation_loss"])
    with pytest.raises(ExistsError, match="overwrite=True"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(ExistsError, match="no saved model"):
        model.save(tmp_path / "mine", overwrite=True)


def test_own_encoder_must_come_back_on_load(tiny, encoder, tmp_path):
    model = SIGMMA(tiny, encoder(), n_latent=16)
    model.train(max_epochs=1, split="none", enable_progress_bar=False)
    model.save(tmp_path / "m")
    with pytest.raises(EncoderError, match="image_encoder="):
        SIGMMA.load(tmp_path / "m", tiny)
    with pytest.raises(EncoderError, match="differ"):
        SIGMMA.load(tmp_path / "m", tiny, encoder(gain=2.0))
    loaded = SIGMMA.load(tmp_path / "m", tiny, encoder())
    np.testing.assert_array_equal(loaded.get_tile_representation().X, model.get_tile_representation().X)


def test_refusals_before_any_compute(trained, tiny):
    sdata, model = trained
    with pytest.raises(SetupError, match="setup_spatialdata"):
        SIGMMA(simulate_tissue(n_cells=200))
    fresh = SIGMMA(tiny)
    with pytest.raises(NotTrainedError, match="train"):
        fresh.get_latent_representation()
    for options, words in [
        ({"batch_size": 1}, "batch_size=1"),
        ({"stride": 50.0}, "divide"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"split": "blokcs"}, "blokcs"),
    ]:
        with pytest.raises(SetupError, match=words):
            fresh.train(**options)
    with pytest.raises(SetupError, match="'mirco'"):
        model.get_latent_representation(scale="mirco")
    with pytest.raises(SetupError, match="edges='all'"):
        SIGMMA(sdata, edges="all")


def test_counts_must_be_counts():
    sdata = small(n_cells=300, tile_size=64)
    sdata["table"].X = sdata["table"].X * 0.37
    with pytest.raises(SetupError, match="raw counts"):
        SIGMMA(sdata).train(max_epochs=1)


def test_repr_tells_setup_and_state(trained):
    text = repr(trained[1])
    assert "SIGMMA (trained" in text
    assert "micro 32 µm" in text
    assert "5,000 cells" in text


def test_a_simulated_slide_raises_no_doubt_about_its_pixels(trained):
    """Dense cells that keep a distance are nearly as regular as a lattice of bins."""
    sdata, _ = trained
    with warnings.catch_warnings():
        warnings.simplefilter("error", PixelSizeWarning)
        SIGMMA.setup_spatialdata(
            SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables=dict(sdata.tables))
        )


def test_the_stored_model_is_plain_json(trained, tmp_path):
    trained[1].save(tmp_path / "m")
    described = json.loads((tmp_path / "m" / "model.json").read_text())
    assert described["config"]["n_latent"] == 64
    assert described["setup"] == copy.deepcopy(trained[0].attrs["sigmma"])
