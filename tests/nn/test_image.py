import numpy as np
import torch

from sigmma_sc.nn.image import ImageTower, Standardise


def test_image_tower_takes_the_mean_of_each_grid(rng):
    patches = torch.from_numpy(rng.normal(size=(3, 21, 4))).float()
    micro, meso, macro = ImageTower(4, (4, 2, 1))(patches)
    torch.testing.assert_close(micro, patches[:, :16].mean(1))
    torch.testing.assert_close(meso, patches[:, 16:20].mean(1))
    torch.testing.assert_close(macro, patches[:, 20])


def test_standardise(rng):
    x = torch.from_numpy(rng.normal(3, 5, size=(200, 4))).float()
    x[:, 2] = 7.0
    layer = Standardise(4)
    layer.fit(x)
    out = layer(x)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(out[:, [0, 1, 3]].std(0, correction=0), 1, rtol=1e-5)
    assert (out[:, 2] == 0).all()
