import numpy as np
import torch

from sigmma_sc.nn.image import ImageTower, Standardise
from sigmma_sc.nn.objectives import info_nce


def test_info_nce_equals_the_formula_in_float64(rng):
    image, transcriptome = rng.normal(size=(2, 7, 5))
    unit_i, unit_s = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (image, transcriptome))
    loss = 0.0
    for i in range(7):
        for a, b in ((unit_i, unit_s), (unit_s, unit_i)):
            similar = np.exp(a[i] @ b.T / 0.07)
            loss -= 0.5 * np.log(similar[i] / similar.sum()) / 7
    got = info_nce(torch.from_numpy(image), torch.from_numpy(transcriptome), 0.07)
    np.testing.assert_allclose(got.item(), loss, rtol=1e-12)


def test_info_nce_of_what_cannot_be_told_apart_is_ln_batch():
    same = torch.ones(16, 4)
    assert abs(info_nce(same, same, 0.07).item() - np.log(16)) < 1e-5


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
