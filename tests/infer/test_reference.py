from dataclasses import asdict

import numpy as np
import pytest
import spatialdata as sd

from sigmma_sc import SIGMMA
from sigmma_sc.errors import ExpressionWarning, SetupError


def test_reference_holds_the_embeddings_and_counts_of_its_tiles(fitted):
    model = fitted
    model.predict_expression()
    reference = model._reference
    role = np.concatenate([model.data.roles.by_slide[f"{name}/cell_circles"] for name in "ab"])
    kept = np.flatnonzero(np.isin(role, ("train", "val")))
    np.testing.assert_array_equal(reference.train, role[kept] == "train")
    np.testing.assert_array_equal(reference.slide, (role[kept] == "val").astype(int))
    for modality in ("image", "transcriptome"):
        expected = model.get_tile_representation(modality=modality, scale="meso").X[kept]
        np.testing.assert_allclose(getattr(reference, modality)["meso"], expected, atol=1e-5)


def test_training_on_makes_a_new_reference(tiny, encoder):
    model = SIGMMA(tiny, encoder(input_size=32), n_latent=8)
    for _ in range(2):
        model.train(max_epochs=1, split="none", batch_size=32, enable_progress_bar=False)
        assert model._reference is None
        with pytest.warns(ExpressionWarning, match="No slide has 3 validation tiles"):
            model.predict_expression()
        now = model.get_tile_representation(scale="micro").X[model.data.roles.by_slide["cell_circles"] == "train"]
        np.testing.assert_allclose(model._reference.image["micro"], now, atol=1e-5)


def test_without_counts_a_model_is_saved_with_a_warning(tiny, encoder, tmp_path):
    table = tiny["table"].copy()
    table.obsm["X_mine"] = np.random.default_rng(0).normal(size=(table.n_obs, 3))
    table.X = None
    sdata = sd.SpatialData(
        images={"he_image": tiny["he_image"]}, shapes={"cell_circles": tiny["cell_circles"]}, tables={"table": table}
    )
    SIGMMA.setup_spatialdata(sdata, features_key="X_mine", tile_size=64)
    model = SIGMMA(sdata, encoder(input_size=32), n_latent=8)
    model.train(max_epochs=1, split="none", batch_size=16, enable_progress_bar=False)
    with pytest.raises(SetupError, match="raw counts"):
        model.predict_expression()
    with pytest.warns(ExpressionWarning, match="saved without expression to predict from: The table has no X"):
        model.save(tmp_path / "model")
    image = sd.SpatialData(images={"he_image": tiny["he_image"]})
    SIGMMA.setup_spatialdata(image, table_key=None, microns_per_pixel=0.5, tile_size=64)
    bare = SIGMMA.load(tmp_path / "model", image, encoder(input_size=32))
    assert bare.get_tile_representation().n_vars == 8
    with pytest.raises(SetupError, match="carries no expression to predict from"):
        bare.predict_expression()


def test_a_reference_costs_no_more_than_is_said(fitted, saved):
    reference = fitted._reference
    n = len(reference.train)
    with_it = (saved / "weights.safetensors").stat().st_size
    weights = sum(v.numel() * v.element_size() for v in fitted.module.state_dict().values())
    nodes = fitted.data.node_features
    others = weights + sum(array.nbytes for array in (nodes.shares, *asdict(nodes.basis).values()))
    assert with_it - others == pytest.approx(n * (2 * 120 + 24 * 32 + 6 * 6), rel=0.25)  # and a header of some kB
    assert reference.expression.dtype == np.float16
