import numpy as np
import torch

from sigmma_sc.encoders.stain import unmixing_matrix
from sigmma_sc.features.tile_stain import stain_of, tile_stain


def test_by_hand():
    """Pure haematoxylin in two amounts on half of a crop, glass on the rest."""
    vector = torch.linalg.inv(unmixing_matrix().T)[0]
    pixels = np.full((1, 4, 4, 3), 255, np.uint8)
    for row, amount in ((0, 0.4), (1, 0.8)):
        pixels[0, row] = np.round(255 * 10 ** (-amount * vector.numpy()))
    found = stain_of(torch.from_numpy(pixels))[0].numpy()
    np.testing.assert_allclose(found, [0.6, 0, 0, 0.2, 0, 0], atol=0.01)
    assert (stain_of(torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)) == 0).all()


def test_a_tile_of_a_slide(tiny):
    from sigmma_sc.tissue.setup import slides_of

    (slide,) = slides_of(tiny)
    some = slide.tiles.take(np.arange(3, 8))
    found = tile_stain(slide, some)
    assert found.shape == (5, 6)
    np.testing.assert_array_equal(found[2:3], tile_stain(slide, some.take(np.array([2]))))
    x, y = np.floor(some.origins[2]).astype(int)
    side = int(some.side)
    crop = tiny["he_image"]["scale0"]["image"].data[:, y : y + side, x : x + side].compute()
    whole = stain_of(torch.from_numpy(crop.transpose(1, 2, 0).copy()[None]))[0].numpy()
    np.testing.assert_allclose(found[2, :3], whole[:3], atol=0.05)  # of the crop at full resolution
