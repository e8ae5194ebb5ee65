import copy
import json
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import torch
from scipy.sparse import csr_matrix

from sigmma_sc import SIGMMA, ImageEncoder, get_encoder
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import EncoderError, ExistsError, NotTrainedError, SetupError, SplitWarning
from sigmma_sc.features.patches import PatchFeatures
from sigmma_sc.metrics import seam_ratio
from sigmma_sc.tissue.graph import spatial_graph

SCALES = ("micro", "meso", "macro")


def small(seed=0, n_cells=2500, **options):
    sdata = simulate_tissue(n_cells=n_cells, seed=seed)
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
    model = SIGMMA(small(n_cells=5000), n_latent=32)
    model.train(max_epochs=60, split="none", lr=3e-3, enable_progress_bar=False)
    table = model.evaluate_retrieval(split="train")
    together = table[table.scale == "all"]
    assert set(together.direction) == {"image→transcriptome", "transcriptome→image"}
    assert (together["recall@15%"] > 4 * together["chance@15%"]).all()


def test_expression_probe_stands_beside_its_baselines(trained):
    table = trained[1].evaluate_expression(split="val")
    assert {"pcc", "mse", "pcc_frozen", "mse_frozen", "mse_gene_mean"} <= set(table.columns)
    assert len(table) == 50


def test_evaluation_is_deterministic(trained):
    _, model = trained
    a, b = (model.get_latent_representation(scale="all") for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert a.dtype == np.float32
    assert np.isfinite(a).all()


@pytest.mark.slow
def test_same_seed_same_weights_and_another_seed_others():
    states = []
    for seed in (0, 0, 1):
        model = SIGMMA(small(), n_latent=16, seed=seed)
        torch.manual_seed(123 + len(states))  # the global state must not matter
        model.train(max_epochs=2, split="none", enable_progress_bar=False)
        states.append(model.module.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(
        states[0]["cell_tower.graph.layers.0.root.weight"], states[2]["cell_tower.graph.layers.0.root.weight"]
    )


def test_training_on_continues_the_history():
    model = SIGMMA(small(), n_latent=16)
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
    loaded = SIGMMA.load(tmp_path / "model", sdata)
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


def test_rows_follow_the_table_whatever_its_order(trained):
    sdata, model = trained
    table = sdata["table"]
    order = np.random.default_rng(0).permutation(table.n_obs)
    other = sd.SpatialData(
        images={"he_image": sdata["he_image"]},
        shapes={"cell_circles": sdata["cell_circles"]},
        tables={"table": table[order].copy()},
    )
    a = model.get_latent_representation(scale="all")
    b = model.get_latent_representation(other, scale="all")
    np.testing.assert_allclose(a[order], b, atol=2e-5)


def test_a_far_cell_changes_nothing_in_other_tiles(trained, monkeypatch):
    sdata, model = trained
    # It moves the slide's mean and spread by a hair, which is another matter.
    monkeypatch.setattr(model.data, "config", replace(model.config, standardise="training"))
    table, keep = sdata["table"], np.ones(sdata["table"].n_obs, bool)
    keep[17] = False
    slide = model._slides[0]
    own = slide.tile_of_cell
    other = sd.SpatialData(
        images={"he_image": sdata["he_image"]},
        shapes={"cell_circles": sdata["cell_circles"]},
        tables={"table": table[keep].copy()},
    )
    a = model.get_latent_representation(scale="all")[keep]
    b = model.get_latent_representation(other, scale="all")
    # Nearest neighbours reach across tiles only through cells that the block cuts off anyway.
    far = np.abs(slide.xy - slide.xy[17]).max(1)[keep] > 3 * slide.side
    np.testing.assert_allclose(a[far], b[far], atol=2e-5)
    assert np.abs(a - b)[own[keep] == own[17]].max() > 1e-3


def test_overlapping_inference_is_the_mean_over_moved_grids(trained):
    _, model = trained
    slide = model._slides[0]
    side = slide.side
    far = {"width": slide.width + 4 * side, "height": slide.height + 4 * side}
    expected = 0
    for x in (0.0, 0.5):
        for y in (0.0, 0.5):
            # Cells moved one way lie in the tiles of a grid moved the other way.
            moved = replace(slide, xy=slide.xy + side * (1 - np.array([x, y])), **far)
            with torch.no_grad():
                (embedded,) = model.embedder.slides([moved], images=False)
                h = embedded.cells
            expected = expected + h["macro"] / 4
    found = model.get_latent_representation(scale="macro", stride=64)
    plain = model.get_latent_representation(scale="macro")
    inside = (slide.xy < side * np.floor(np.array([slide.width, slide.height]) / side)).all(1)  # not in shifted tiles
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)
    assert np.abs(found - plain).max() > 0.01  # a hundred times the tolerance above
    np.testing.assert_array_equal(model.get_latent_representation(scale="macro", stride=128), plain)
    with pytest.raises(SetupError, match="must divide"):
        model.get_latent_representation(stride=50)


def test_overlapping_inference_lowers_seams(trained):
    _, model = trained
    slide = model._slides[0]
    near = spatial_graph(slide.xy * slide.microns_per_pixel, 6, None)
    ratio = {
        stride: seam_ratio(model.get_latent_representation(scale="macro", stride=stride), slide.xy, slide.side, near)[
            "ratio"
        ]
        for stride in (None, 32)
    }
    assert ratio[None] > 1.1
    # What remains is the border of micro blocks, which grids a whole block apart share.
    assert ratio[32] - 1 < 0.7 * (ratio[None] - 1)


def test_write_embeddings(trained, tmp_path):
    sdata, model = trained
    before = set(sdata["table"].obsm) | set(sdata["table"].obs)
    model.write_embeddings()
    table, tiles = sdata["table"], sdata["sigmma_tiles"]
    assert set(table.obsm) | set(table.obs) == before | {f"X_sigmma_{s}" for s in SCALES} | {"sigmma_covered"}
    np.testing.assert_array_equal(table.obsm["X_sigmma_meso"], model.get_latent_representation(scale="meso"))
    assert table.obs["sigmma_covered"].all()
    assert table.uns["sigmma"]["image_encoder"] == "stain-stats"
    assert sd.get_element_annotators(sdata, "cell_circles") == {"table"}
    assert sd.get_element_annotators(sdata, "sigmma_tiles_cell_circles") == {"sigmma_tiles"}
    squares = sdata["sigmma_tiles_cell_circles"]
    assert len(squares) == tiles.n_obs
    side = 128 / model._slides[0].microns_per_pixel
    np.testing.assert_allclose(squares.area, side**2)
    image = model.get_tile_representation(scale="macro")
    np.testing.assert_array_equal(image.X, tiles.obsm["image_macro"])
    with pytest.raises(ExistsError, match="X_sigmma_micro"):
        model.write_embeddings()
    model.write_embeddings(overwrite=True)
    sdata.write(tmp_path / "out.zarr")
    again = sd.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(again["table"].obsm["X_sigmma_micro"], table.obsm["X_sigmma_micro"])
    assert again.attrs["sigmma"]["tile_size"] == 128.0


def test_cells_off_the_image_get_nan_and_a_warning(trained):
    sdata, model = trained
    from sigmma_sc.errors import CoverageWarning

    shapes = sdata["cell_circles"].copy()
    shapes.loc[shapes.index[5], "geometry"] = type(shapes.geometry.iloc[5])(1e5, 1e5)
    other = sd.SpatialData(
        images={"he_image": sdata["he_image"]}, shapes={"cell_circles": shapes}, tables={"table": sdata["table"].copy()}
    )
    with pytest.warns(CoverageWarning, match="1 of 5,000"):
        z = model.get_latent_representation(other)
    assert np.isnan(z[5]).all()
    assert np.isfinite(np.delete(z, 5, axis=0)).all()


def test_a_crop_has_the_same_features_in_any_company():
    slide = SIGMMA(small())._slides[0]
    crops = np.array([[x, y, 60.0] for y in range(0, 300, 60) for x in range(0, 300, 60)])
    every = PatchFeatures(get_encoder("stain-stats"), progress=False)(slide, crops, torch.device("cpu"))
    for some in ([3], [7, 1], range(24, 11, -1)):
        few = PatchFeatures(get_encoder("stain-stats"), progress=False)(slide, crops[some], torch.device("cpu"))
        assert torch.equal(few, every[list(some)])


def test_images_alone_can_be_embedded(trained):
    sdata, model = trained
    alone = sd.SpatialData(images={"he_image": sdata["he_image"]})
    SIGMMA.setup_spatialdata(alone, table_key=None, microns_per_pixel=model._slides[0].microns_per_pixel)
    a = model.get_tile_representation(alone, scale="meso")
    np.testing.assert_allclose(a.X, model.get_tile_representation(scale="meso").X, atol=1e-5)
    assert (a.obs["split"] == "unseen").all()
    with pytest.raises(SetupError, match="table_key=None"):
        model.get_tile_representation(alone, modality="transcriptome")


def test_several_slides_hold_out_donors_and_batches_stay_within_a_slide():
    sdata = simulate_tissue(n_cells=900, n_slides=3, seed=0)
    regions = list(sdata["table"].uns["spatialdata_attrs"]["region"])
    slides = [r.removesuffix("_cell_circles") for r in regions]
    SIGMMA.setup_spatialdata(
        sdata,
        image_key={r: f"{s}_he_image" for r, s in zip(regions, slides, strict=True)},
        coordinate_system=dict(zip(regions, slides, strict=True)),
        sample_key="donor",
    )
    model = SIGMMA(sdata, n_latent=16)
    model.train(max_epochs=2, enable_progress_bar=False)
    roles = {name: set(role) - {"unused"} for name, role in model.data.roles.by_slide.items()}
    assert sorted(map(tuple, roles.values())) == [("test",), ("train",), ("val",)]
    model.write_embeddings()
    assert {f"sigmma_tiles_{r}" for r in regions} <= set(sdata.shapes)
    assert np.isfinite(sdata["table"].obsm["X_sigmma_macro"]).all()
    assert set(model.evaluate_retrieval().slide) == {n for n, r in roles.items() if r == {"test"}}
    model.train(max_epochs=1, split="sample", enable_progress_bar=False)  # the same split: no leak
    with pytest.raises(SetupError, match="leak"):
        model.train(max_epochs=1, split="blocks", enable_progress_bar=False)


def test_an_embedding_of_the_user_replaces_the_counts():
    sdata = simulate_tissue(n_cells=1500, seed=0)
    table = sdata["table"]
    table.obsm["X_mine"] = np.random.default_rng(0).normal(size=(table.n_obs, 7))
    table.X = None
    SIGMMA.setup_spatialdata(sdata, features_key="X_mine")
    model = SIGMMA(sdata, n_latent=16)
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


def test_own_encoder_must_come_back_on_load(tmp_path):
    class Mean(torch.nn.Module):
        def __init__(self, gain):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(gain))

        def forward(self, x):
            return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1) * self.gain

    sdata = small(n_cells=1500)
    model = SIGMMA(sdata, ImageEncoder(Mean(1.0), name="mean", input_size=32), n_latent=16)
    model.train(max_epochs=1, split="none", enable_progress_bar=False)
    model.save(tmp_path / "m")
    with pytest.raises(EncoderError, match="image_encoder="):
        SIGMMA.load(tmp_path / "m", sdata)
    with pytest.raises(EncoderError, match="differ"):
        SIGMMA.load(tmp_path / "m", sdata, ImageEncoder(Mean(2.0), name="mean", input_size=32))
    loaded = SIGMMA.load(tmp_path / "m", sdata, ImageEncoder(Mean(1.0), name="mean", input_size=32))
    np.testing.assert_array_equal(loaded.get_tile_representation().X, model.get_tile_representation().X)


def test_refusals_before_any_compute(trained):
    sdata, model = trained
    with pytest.raises(SetupError, match="setup_spatialdata"):
        SIGMMA(simulate_tissue(n_cells=200))
    fresh = SIGMMA(small(n_cells=1500))
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
    sdata = small(n_cells=1500)
    sdata["table"].X = sdata["table"].X * 0.37
    with pytest.raises(SetupError, match="raw counts"):
        SIGMMA(sdata).train(max_epochs=1)


def test_another_panel_is_refused(trained):
    sdata, model = trained
    other = sd.SpatialData(
        images={"he_image": sdata["he_image"]},
        shapes={"cell_circles": sdata["cell_circles"]},
        tables={"table": sdata["table"][:, 5:].copy()},
    )
    with pytest.raises(SetupError, match="5 of 120 genes"):
        model.get_latent_representation(other)


def test_no_validation_tile_is_told_once_for_all_slides():
    model = SIGMMA(small(n_cells=250, tile_size=64), n_latent=8)
    with pytest.warns(SplitWarning, match=r"split='end' leaves no validation tile"):
        model.data.assign_roles(model._slides, "end")
    assert not (model.data.roles.by_slide["cell_circles"] == "val").any()
    # One slide with validation tiles is enough.
    both = {name: small(n_cells=n, tile_size=64) for name, n in (("small", 250), ("large", 2000))}
    model = SIGMMA(both, n_latent=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SplitWarning)
        model.data.assign_roles(model._slides, "end")
    assert (model.data.roles.by_slide["large/cell_circles"] == "val").any()


def test_repr_tells_setup_and_state(trained):
    text = repr(trained[1])
    assert "SIGMMA (trained" in text
    assert "micro 32 µm" in text
    assert "5,000 cells" in text


def test_the_stored_model_is_plain_json(trained, tmp_path):
    trained[1].save(tmp_path / "m")
    described = json.loads((tmp_path / "m" / "model.json").read_text())
    assert described["config"]["n_latent"] == 64
    assert described["setup"] == copy.deepcopy(trained[0].attrs["sigmma"])
