"""Attention maps of tiles of a slide, through the model."""

import numpy as np
import pytest
import spatialdata as sd
import timm
import torch

from sigmma_sc import SIGMMA, ImageEncoder
from sigmma_sc.encoders.attention import cls_attention
from sigmma_sc.errors import EncoderError, MissingKeyError, NotTrainedError, SetupError
from sigmma_sc.tissue.pixels import read_crops


@pytest.fixture(scope="module")
def seen(tiny):
    """A model of a transformer so small that it encodes every crop of the slide in a second or two."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=0, reg_tokens=2
        )
    model = SIGMMA(tiny, ImageEncoder(network, "small", 32, (0.5,) * 3, (0.5,) * 3), n_latent=8)
    model.train(max_epochs=1, split="none", batch_size=64, enable_progress_bar=False)
    return model


def test_maps_are_of_the_tiles_that_were_named(seen):
    tiles = seen.get_tile_representation()
    names = tiles.obs_names[[30, 2, 77]]
    found = seen.get_attention(names)
    assert found["tile"].values.tolist() == list(names)
    assert found["attention"].dims == ("tile", "head", "row", "column")
    assert found["attention"].shape == (3, 2, 4, 4)
    np.testing.assert_array_equal(found["x0"], tiles.obs.loc[names, "x"])
    np.testing.assert_array_equal(found["y0"], tiles.obs.loc[names, "y"])
    np.testing.assert_allclose(found["side"], 64 / found["microns_per_pixel"])
    np.testing.assert_allclose(np.stack([found["x0"], found["y0"]], 1) + 64, tiles[names].obsm["spatial"])  # 0.5 µm/px
    crops = np.stack([found["x0"], found["y0"], found["side"]], axis=1)
    for index, pixels in read_crops(seen._slides[0], crops, 32):
        np.testing.assert_array_equal(found["image"].values[index], pixels)
    expected = cls_attention(seen.image_encoder, torch.from_numpy(found["image"].values).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found["attention"], expected, rtol=1e-5)
    assert found.attrs == {"image_encoder": "small", "when": "after"}


def test_maps_are_of_crops_of_the_size_of_their_grid(tiny):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=0, dynamic_img_size=True
        )
    encoder = ImageEncoder(network, "small", 32, (0.5,) * 3, (0.5,) * 3)
    model = SIGMMA(tiny, encoder, n_latent=8, crop_sizes=(16, 32, 48))
    model.train(max_epochs=1, split="none", batch_size=64, enable_progress_bar=False)
    found = model.get_attention(["cell_circles_3", "cell_circles_40"])
    assert found["attention"].shape == (2, 2, 6, 6)
    crops = np.stack([found["x0"], found["y0"], found["side"]], axis=1)
    for index, pixels in read_crops(model._slides[0], crops, 48):
        np.testing.assert_array_equal(found["image"].values[index], pixels)
    expected = cls_attention(encoder, torch.from_numpy(found["image"].values).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found["attention"], expected, rtol=1e-5)


def test_many_tiles_are_each_what_they_are_alone(seen):
    names = seen.get_tile_representation().obs_names[:20]
    together = seen.get_attention(names)
    for name in names[[0, 7, 8, 19]]:
        alone = seen.get_attention(name)
        np.testing.assert_allclose(together["attention"].sel(tile=[name]), alone["attention"], rtol=1e-5)
        np.testing.assert_array_equal(together["image"].sel(tile=[name]), alone["image"])


def test_a_frozen_encoder_attends_alike_before_and_after(seen):
    before, after = (seen.get_attention("cell_circles_5", when=when) for when in ("before", "after"))
    np.testing.assert_array_equal(before["attention"], after["attention"])
    assert before.attrs["when"] == "before"


def test_slides_of_images_alone_and_several_objects(seen, tiny):
    def image(name):
        sdata = sd.SpatialData(images={name: tiny["he_image"]})
        SIGMMA.setup_spatialdata(sdata, image_key=name, table_key=None, microns_per_pixel=0.5, tile_size=64)
        return sdata

    two = {"a": image("one"), "b": image("two_2")}
    found = seen.get_attention(["b/two_2_31", "a/one_31", "b/two_2_0"], two)
    assert found["slide"].values.tolist() == ["b/two_2", "a/one", "b/two_2"]
    assert found["image_key"].values.tolist() == ["two_2", "one", "two_2"]
    np.testing.assert_array_equal(found["attention"][0], found["attention"][1])
    expected = seen.get_attention(["cell_circles_31", "cell_circles_0"])
    np.testing.assert_allclose(found["attention"][[0, 2]], expected["attention"], rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["cell_circles_999999", "cell_circles", "cell_circles_x", "cell_circles_-1", "other_3"]
)
def test_a_tile_that_does_not_exist_is_named(seen, name):
    with pytest.raises(MissingKeyError, match=rf"Tile '{name}' does not exist.*from cell_circles_0 on"):
        seen.get_attention(["cell_circles_0", name])


def test_refusals(seen, tiny, encoder):
    with pytest.raises(SetupError, match=r"tiles=\[\]: name rows"):
        seen.get_attention([])
    with pytest.raises(SetupError, match="when='during'"):
        seen.get_attention("cell_circles_0", when="during")
    fresh = SIGMMA(tiny, encoder(), n_latent=8)
    with pytest.raises(NotTrainedError, match="train"):
        fresh.get_attention("cell_circles_0")
    fresh.train(max_epochs=1, split="none", batch_size=64, enable_progress_bar=False)
    with pytest.raises(EncoderError, match=r"'mean' \(MeanAndSpread\) has no attention of a class token"):
        fresh.get_attention("cell_circles_0")
