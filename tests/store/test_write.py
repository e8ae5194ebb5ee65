import numpy as np
import pytest
import spatialdata as sd

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
    with pytest.raises(ExistsError, match="X_sigmma_micro"):
        model.write_embeddings()
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
