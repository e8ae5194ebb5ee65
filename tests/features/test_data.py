import warnings

import numpy as np
import pytest
import torch
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

from sigmma_sc import SIGMMA
from sigmma_sc.errors import TissueWarning
from sigmma_sc.tissue.frame import image_levels
from sigmma_sc.tissue.setup import resolve_slides, stored_setup

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


LOW = 512
"""First row and column in px of a part of the slide, a multiple of a tile of 64 µm."""


def with_image(sdata, pixels, table=None):
    """A slide with another image, without a pyramid, and fewer cells."""
    image = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), transformations=get_transformation(sdata["he_image"], get_all=True)
    )
    part = SpatialData(
        images={"he_image": image},
        shapes={"cell_circles": sdata["cell_circles"]},
        tables={} if table is None else {"table": table},
    )
    if table is None:
        SIGMMA.setup_spatialdata(part, table_key=None, microns_per_pixel=0.5, tile_size=64)
    else:
        SIGMMA.setup_spatialdata(part, tile_size=64)
    return part


@pytest.fixture(scope="module")
def flat(tiny):
    """The slide without its pyramid: every part of it is read from the same pixels."""
    return with_image(tiny, image_levels(tiny, "he_image")[0].to_numpy(), tiny["table"].copy())


def image_part(flat, side):
    """A square of the slide's image as an object of its own."""
    return with_image(flat, flat["he_image"].to_numpy()[:, LOW : LOW + side, LOW : LOW + side])


def cells_part(flat, side):
    """The slide with the cells of a square alone, and a white corner that makes it another one."""
    xy = resolve_slides(flat, stored_setup(flat))[0].xy
    table = flat["table"][((xy >= LOW) & (xy < LOW + side)).all(1)].copy()
    pixels = flat["he_image"].to_numpy().copy()
    pixels[:, :200, :200] = 0
    return with_image(flat, pixels, table)


def rows_of(whole, part, shift):
    """Rows of the tiles of the whole that a part's tiles are."""
    where = {tuple(centre): k for k, centre in enumerate(whole.obsm["spatial"])}
    return [where[tuple(centre + shift)] for centre in part.obsm["spatial"]]


def moments_of(model, slide):
    """What a slide's patches are centred and scaled by."""
    return model.data.tensors(slide, slide.tiles, torch.device("cpu"), cells=False).image.moments


@pytest.mark.parametrize("cells", ["graph", "genes"])
def test_a_slide_of_a_few_tiles_is_not_centred_on_itself(flat, encoder, tmp_path, cells):
    """One tile alone would be its own mean, and so look like any other. What is typical of one slide are its own moments."""
    model = SIGMMA(flat, encoder(), n_latent=8, cells=cells)
    model.train(max_epochs=2, split="none", batch_size=32, **QUIET)
    model.save(tmp_path / "model")
    model = SIGMMA.load(tmp_path / "model", flat, encoder())
    whole, own = model.get_tile_representation(), moments_of(model, model._slides[0])
    for side, n in ((128, 1), (256, 4)):
        part = image_part(flat, side)
        with pytest.warns(TissueWarning, match=f"has {n} tiles? of tissue, too few"):
            found = model.get_tile_representation(part)
        # At the edge of the image crops have no surroundings to be resampled with.
        np.testing.assert_allclose(found.X, whole.X[rows_of(whole, found, LOW)], atol=0.2)
        assert whole.X.std(0).max() > 0.4
    moments = moments_of(model, model.resolve(part)[0])
    np.testing.assert_array_equal(moments.mean, own.mean)
    np.testing.assert_allclose(moments.std, own.std, rtol=1e-6)
    with pytest.warns(TissueWarning, match="has 4 tiles of tissue, too few"):
        found = model.get_tile_representation(cells_part(flat, 256), modality="transcriptome")
    whole = model.get_tile_representation(modality="transcriptome")
    kept = (found.obs["n_cells"] >= 5).to_numpy()
    assert kept.sum() == 4
    # Cells at the edge of the part have lost neighbours beyond it: how far the nearest are is another number then.
    atol = 1e-4 if cells == "genes" else 0.3 * whole.X.std()
    np.testing.assert_allclose(found.X[kept], whole.X[kept], atol=atol)


def test_a_slide_of_enough_tiles_is_centred_on_itself(flat, encoder):
    model = SIGMMA(flat, encoder(), n_latent=8)
    model.train(max_epochs=1, split="none", batch_size=32, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TissueWarning)
        model.get_tile_representation(image_part(flat, 384))
