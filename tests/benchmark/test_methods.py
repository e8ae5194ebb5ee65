import numpy as np
import pytest

from sigmma_sc import SIGMMA
from sigmma_sc.benchmark import METHODS, Alignment, Case, Frozen, Method, Random
from sigmma_sc.errors import NotTrainedError
from sigmma_sc.tissue.setup import slides_of


@pytest.fixture(scope="module")
def case(tiny, encoder):
    return Case(tiny, encoder(), "blocks", 0, {"n_latent": 8}, None)


@pytest.fixture(scope="module")
def place(tiny, case):
    """A slide, and the tiles that cover it."""
    (slide,) = slides_of(tiny)
    return slide, slide.tiles


def test_random_embeddings_depend_on_the_place_alone(tiny, place):
    slide, tiles = place
    first, second = [Random(Case(tiny, None, "blocks", seed, {}, None)) for seed in (0, 1)]
    image, cells = first.embed(slide, tiles)
    assert image["macro"].shape == cells["macro"].shape == (len(tiles), 64)
    some, _ = first.embed(slide, tiles.take(np.array([4, 2])))
    np.testing.assert_array_equal(some["macro"], image["macro"][[4, 2]])
    assert abs(np.corrcoef(image["macro"].ravel(), cells["macro"].ravel())[0, 1]) < 0.1
    other, _ = second.embed(slide, tiles)
    assert not np.array_equal(image["macro"], other["macro"])


def test_frozen_is_the_mean_of_each_grids_features(case, place):
    slide, tiles = place
    method = Frozen(case)
    image, transcriptome = method.embed(slide, tiles)
    assert transcriptome is None
    assert {scale: z.shape for scale, z in image.items()} == {
        scale: (len(tiles), 6) for scale in ("micro", "meso", "macro")
    }
    macro, _ = Frozen(case, macro=True).embed(slide, tiles)
    assert set(macro) == {"macro"}
    np.testing.assert_array_equal(macro["macro"], image["macro"])
    # The mean colour of a tile is that of its sixteen crops.
    np.testing.assert_allclose(image["micro"][:, :3], image["macro"][:, :3], atol=0.1)


def test_an_alignment_is_given_data_options_and_its_own_arguments(case):
    method = Alignment(SIGMMA, case, macro=True, edges="none")
    assert method.model.config.n_latent == 8
    assert method.model.config.edges == "none"
    assert method.model.config.loss_weights == (0.0, 0.0, 1.0)
    with pytest.raises(NotTrainedError, match="has not been trained"):
        method.embed_cells()


def test_an_alignment_trains_and_embeds(case, place, tiny):
    slide, tiles = place
    method = METHODS["sigmma-none"](case)
    fit = method.fit(max_epochs=1)
    assert fit["epochs"] == 1
    assert fit["train_ln_batch"] > 0
    image, transcriptome = method.embed(slide, tiles)
    assert image["macro"].shape == transcriptome["macro"].shape == (len(tiles), 8)
    cells = method.embed_cells()
    assert {scale: len(z) for scale, z in cells.items()} == dict.fromkeys(
        ("micro", "meso", "macro"), tiny["table"].n_obs
    )
    np.testing.assert_array_equal(np.isfinite(cells["micro"]).all(axis=1), slide.under_image)


def test_genes_embed_no_cells_and_the_plain_method_nothing(case, place):
    method = METHODS["genes"](case)
    method.fit(max_epochs=1)
    assert method.embed_cells() is None
    assert Method(case).embed(*place) == (None, None)
    assert Method(case).fit(max_epochs=1) == {}
    assert Method(case).embed_cells() is None
