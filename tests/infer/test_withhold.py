import warnings

import numpy as np
import pandas as pd
import pytest

from sigmma_sc.errors import UnlikeWarning
from sigmma_sc.infer.withhold import sentence, unlike, warn_unlike


def tiles(alike, least, tissue):
    return pd.DataFrame({"sigmma_alike": alike, "sigmma_least_alike": least, "tissue": tissue})


STAINED = tiles([0.0, 0.3, 0.01, np.nan, 0.0], ["stain", "stain", "image features", None, "stain"], [1, 1, 1, 1, 0.01])


def test_level_and_sentence_by_hand():
    which = unlike(STAINED, 0.01)
    np.testing.assert_array_equal(which, [True, False, True, False, True])
    # The last one is glass.
    told = sentence(STAINED, which)
    assert told == "50% of the tiles with tissue are unlike the training tissue: stain (25%) and image features (25%)."
    assert (
        sentence(STAINED, unlike(STAINED, 0)) == "25% of the tiles with tissue are unlike the training tissue: stain."
    )
    assert sentence(STAINED, np.arange(5) == 4) == ""


def test_the_sentence_is_warned_of():
    with pytest.warns(
        UnlikeWarning, match=r"unlike it\. Their predictions are withheld \(NaN\)\. withhold=None keeps them"
    ):
        warn_unlike("5% are unlike it.", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unlike("", 1)


def test_tiles_of_new_slides_are_judged_when_they_are_written(fitted, alone, loaded):
    loaded.write_embeddings(overwrite=True)
    written = alone["sigmma_tiles"].obs
    found = fitted.predict_expression(alone, withhold=0.3)
    np.testing.assert_allclose(written["sigmma_alike"], found.obs["sigmma_alike"])
    assert (written["sigmma_least_alike"] == found.obs["sigmma_least_alike"]).all()
    assert found.uns["sigmma"]["unlike"] == sentence(found.obs, unlike(found.obs, 0.3))
