"""Every switch of the method, trained for real on a small slide."""

import numpy as np

from sigmma_sc import SIGMMA

QUIET = {"enable_progress_bar": False, "split": "none", "batch_size": 64}


def fitted(sdata, encoder, epochs=1, **options):
    model = SIGMMA(sdata, encoder, n_latent=16, **options)
    model.train(max_epochs=epochs, lr=3e-3, **QUIET)
    return model


def edges_of(model, scale):
    """Weights among the cells of the busiest tile, row v the sources of v."""
    slide = model._slides[0]
    tiles = slide.tiles
    tiles = tiles.take(np.array([int(tiles.n_cells.argmax())]))
    source, target, weight = model.embedder.edges(slide, tiles)[scale]
    out = np.zeros((len(tiles.cells),) * 2)
    out[target, source] = weight
    return out, slide.xy[tiles.cells] * slide.microns_per_pixel


def test_edge_switches_reach_the_graph(tiny, encoder):
    drawn, _ = edges_of(fitted(tiny, encoder()), 2)
    both, _ = edges_of(fitted(tiny, encoder(), symmetric_edges=True, radius=9.0), 2)
    assert np.abs(drawn - drawn.T).max() > 1e-3
    np.testing.assert_allclose(both, both.T, atol=1e-6)
    every, _ = edges_of(fitted(tiny, encoder(), edges="full"), 2)
    np.testing.assert_array_equal(every, 1 - np.eye(len(every)))
    near, xy = edges_of(fitted(tiny, encoder(), edges="none", radius=9.0), 2)
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    block = (edges_of(fitted(tiny, encoder(), edges="full", radius=1e4), 0)[0] > 0) | np.eye(len(xy), dtype=bool)
    np.testing.assert_array_equal(near > 0, (apart <= 9) & block & ~np.eye(len(xy), dtype=bool))
    assert 10 < (near > 0).sum() < 0.5 * len(xy) ** 2
