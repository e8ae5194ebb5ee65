import numpy as np
import pytest
import torch

from sigmma_sc import SIGMMA, ImageEncoder
from sigmma_sc.errors import EncoderError
from sigmma_sc.tissue.pixels import read_crops
from sigmma_sc.tissue.tiling import crops_of_tiles

SIZES = (16, 24, 32)


def by_hand(slide, crops, encoder, size):
    out = np.empty((len(crops), encoder.dim), np.float32)
    for index, pixels in read_crops(slide, np.round(crops, 3), size):
        out[index] = encoder.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    return out


def test_each_grid_has_its_size(tiny, encoder):
    own = encoder()
    model = SIGMMA(tiny, own, n_latent=8, crop_sizes=SIZES)
    slide = model._slides[0]
    tiles = slide.tiles.take(np.array([3, 40]))
    features, index = model.data.patches(slide, tiles, torch.device("cpu"))
    crops, _ = crops_of_tiles(tiles, (4, 2, 1))
    got = features.float().numpy()
    for grid, size in zip((4, 2, 1), SIZES, strict=True):
        mine = np.isclose(crops[:, 2], tiles.side / grid)
        np.testing.assert_allclose(got[mine], by_hand(slide, crops[mine], own, size), rtol=2e-3, atol=1e-3)
    assert index.shape == (2, 21)
    # The same crops at the encoder's own size are other features, beside them and not instead of them.
    plain = model.data.features(slide, crops, torch.device("cpu")).float().numpy()
    assert np.abs(plain - got).max() > 1e-3
    np.testing.assert_array_equal(model.data.patches(slide, tiles, torch.device("cpu"))[0].float().numpy(), got)


def test_the_cache_tells_sizes_apart(tiny, encoder, tmp_path):
    def features(**options):
        model = SIGMMA(tiny, encoder(), n_latent=8, cache_dir=tmp_path, **options)
        tiles = model._slides[0].tiles.take(np.array([3]))
        return model.data.patches(model._slides[0], tiles, torch.device("cpu"))[0]

    first = {sizes: features(crop_sizes=sizes) for sizes in (None, SIZES, (16, 16, 16))}
    assert len(list(tmp_path.iterdir())) == 3  # 16 is the encoder's own
    for sizes, expected in first.items():
        assert torch.equal(features(crop_sizes=sizes), expected)
    assert torch.equal(first[None], first[16, 16, 16])


def test_training_and_saving_with_sizes(tiny, encoder, tmp_path):
    model = SIGMMA(tiny, encoder(), n_latent=8, crop_sizes=SIZES)
    model.train(max_epochs=1, split="none", enable_progress_bar=False)
    model.save(tmp_path / "model")
    loaded = SIGMMA.load(tmp_path / "model", tiny, encoder())
    assert loaded.config.crop_sizes == SIZES
    a, b = (m.get_tile_representation(scale="all").X for m in (model, loaded))
    np.testing.assert_array_equal(a, b)


def vit(**kwargs):
    return ImageEncoder.from_timm(
        "vit_tiny_patch16_224", input_size=32, img_size=32, embed_dim=24, depth=1, num_heads=2, **kwargs
    )


def test_an_encoder_that_cannot_take_the_size_is_named_before_any_work(tiny):
    with pytest.raises(
        EncoderError, match="'vit_tiny_patch16_224' does not take crops of 16 px.*dynamic_img_size=True"
    ):
        SIGMMA(tiny, vit(), crop_sizes=(16, 32, 32))
    with pytest.raises(EncoderError, match="crops of 20 px"):
        SIGMMA(tiny, vit(dynamic_img_size=True), crop_sizes=(20, 32, 32))
    encoder = vit(dynamic_img_size=True)
    SIGMMA(tiny, encoder, crop_sizes=(16, 32, 64))
    assert encoder.encode(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 24)
