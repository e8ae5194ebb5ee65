import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import spatialdata as sd
from anndata import AnnData

import sigmma_sc as sg
from sigmma_sc import SIGMMA
from sigmma_sc.errors import ExistsError

SCALES = ("micro", "meso", "macro")


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
    table.obsm["X_sigmma_meso"][:] = 0
    model.write_embeddings()  # as when a notebook is run again: its own are replaced
    np.testing.assert_array_equal(table.obsm["X_sigmma_meso"], model.get_latent_representation(scale="meso"))
    record = table.uns["sigmma"]
    assert (record["version"], record["split"]) == (sg.__version__, model.data.roles.split)
    assert abs(datetime.fromisoformat(record["date"]) - datetime.now(UTC)) < timedelta(minutes=10)
    assert table.uns["sigmma"]["obsm"] == [f"X_sigmma_{s}" for s in SCALES]
    table.uns["sigmma"]["niches"] = {"sigmma_niche_meso": {"resolution": 0.5}}
    table.uns["sigmma"]["image_encoder"] = "another"
    model.write_embeddings(overwrite=True)
    # The columns of niches stay in obs, and so does what tells how they were found.
    assert table.uns["sigmma"]["niches"] == {"sigmma_niche_meso": {"resolution": 0.5}}
    assert table.uns["sigmma"]["image_encoder"] == "stain-stats"
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


@pytest.fixture
def small(tiny, saved):
    """A model and a copy of its object without what it writes."""
    _, model = saved
    sdata = sd.SpatialData(
        images=dict(tiny.images),
        shapes=dict(tiny.shapes),
        tables={"table": tiny["table"].copy()},
        attrs=dict(tiny.attrs),
    )
    return sdata, model


FOREIGN = {
    "tables['sigmma_tiles']": lambda s: s.tables.update({"sigmma_tiles": AnnData(np.ones((2, 2)))}),
    "shapes['sigmma_tiles']": lambda s: s.shapes.update({"sigmma_tiles": s["cell_circles"]}),
    "shapes['sigmma_tiles_mine']": lambda s: s.shapes.update({"sigmma_tiles_mine": s["cell_circles"]}),
    "images['sigmma_tiles']": lambda s: s.images.update({"sigmma_tiles": s["he_image"]}),
    "obs['sigmma_covered']": lambda s: s["table"].obs.insert(0, "sigmma_covered", "yes"),
    "obsm['X_sigmma_meso']": lambda s: s["table"].obsm.update({"X_sigmma_meso": np.ones((s["table"].n_obs, 2))}),
    "uns['sigmma']": lambda s: s["table"].uns.update({"sigmma": "mine"}),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_others_call_by_our_names_is_never_overwritten(small, what, overwrite):
    sdata, model = small
    FOREIGN[what](sdata)
    before = {name: set(getattr(sdata["table"], name)) for name in ("obs", "obsm", "uns")}
    elements = [(kind, name) for kind, name, _ in sdata.gen_elements()]
    with pytest.raises(ExistsError, match=re.escape(what)):
        model.write_embeddings(sdata, overwrite=overwrite, n_offsets=1)
    assert {name: set(getattr(sdata["table"], name)) for name in before} == before
    assert [(kind, name) for kind, name, _ in sdata.gen_elements()] == elements


def test_embeddings_of_another_model_are_replaced_only_when_asked(small, encoder, tmp_path):
    sdata, _ = small
    model, other = (SIGMMA(sdata, encoder(), n_latent=width) for width in (8, 4))
    for one in (model, other):
        one.train(max_epochs=1, split="none", batch_size=32, enable_progress_bar=False)
    model.write_embeddings(n_offsets=1)
    sdata.write(tmp_path / "slide.zarr")
    again = sd.read_zarr(tmp_path / "slide.zarr")
    again["table"].obsm["X_sigmma_mine"] = np.ones((again["table"].n_obs, 1))
    again["table"].uns["sigmma"]["obsm"] = [*again["table"].uns["sigmma"]["obsm"], "X_sigmma_old"]
    again["table"].obsm["X_sigmma_old"] = np.ones((again["table"].n_obs, 1))
    model.write_embeddings(again, n_offsets=2)  # its own, also from a store, whatever the number of grids
    assert again["table"].uns["sigmma"]["n_offsets"] == 2
    # What an earlier call wrote and this one does not is gone, and what the user wrote stays.
    assert set(again["table"].obsm) == set(sdata["table"].obsm) | {"X_sigmma_mine"}
    with pytest.raises(ExistsError, match=r"sigmma_tiles.*X_sigmma_micro.*sigmma_covered.*overwrite=True"):
        other.write_embeddings(n_offsets=1)
    assert sdata["table"].obsm["X_sigmma_micro"].shape[1] == 8
    other.write_embeddings(overwrite=True, n_offsets=1)
    assert sdata["table"].obsm["X_sigmma_micro"].shape[1] == 4
