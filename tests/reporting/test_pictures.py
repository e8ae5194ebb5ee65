import base64
import io

import numpy as np
from PIL import Image

from sigmma_sc.reporting.pictures import MOST_PIXELS, TILE, figure_picture, slide_picture, tile_pictures
from sigmma_sc.tissue.frame import image_levels


def image_of(address):
    head, text = address.split(",")
    return head, Image.open(io.BytesIO(base64.b64decode(text)))


def test_a_slide_is_reduced_to_its_part_of_the_pixels(run, monkeypatch):
    slide = run[1].resolve()[0]
    head, whole = image_of(slide_picture(slide, 1))
    assert head == "data:image/jpeg;base64"
    assert whole.width * whole.height <= MOST_PIXELS
    monkeypatch.setattr("sigmma_sc.reporting.pictures.MOST_PIXELS", 20_000)
    _, half = image_of(slide_picture(slide, 2))
    assert 9_000 < half.width * half.height <= 10_000
    assert abs(half.width / half.height - slide.width / slide.height) < 0.02


def test_tiles_are_what_the_image_shows(run):
    sdata, model = run
    slide = model.resolve()[0]
    found = tile_pictures(slide, np.array([7, 3, 7]))
    assert set(found) == {3, 7}
    x, y = np.round(slide.tiles.origins[7]).astype(int)
    side = round(slide.side)
    truth = image_levels(sdata, "he_image")[0].data[:, y : y + side, x : x + side].compute()
    shown = image_of(found[7])[1]
    assert shown.size == (TILE, TILE)
    np.testing.assert_allclose(np.asarray(shown).mean((0, 1)), truth.mean((1, 2)), atol=3)
    assert tile_pictures(slide, np.array([], int)) == {}


def test_a_figure_is_closed():
    import matplotlib.pyplot as plt

    figure = plt.figure()
    assert image_of(figure_picture(figure))[1].format == "PNG"
    assert not plt.fignum_exists(figure.number)
