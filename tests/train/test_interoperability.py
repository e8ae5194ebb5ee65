"""What a model writes, used by other packages as README and tutorials show it."""

import copy

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
import spatialdata as sd
import spatialdata_plot  # noqa: F401, gives objects their .pl
from sklearn.neighbors import kneighbors_graph

from sigmma_sc import SIGMMA

mpl.use("agg")


@pytest.fixture(scope="module")
def written(tiny, encoder):
    """A slide with the embeddings of a model that was trained for one epoch."""
    own = sd.SpatialData(
        images=dict(tiny.images),
        shapes=dict(tiny.shapes),
        tables={name: table.copy() for name, table in tiny.tables.items()},
        attrs=copy.deepcopy(dict(tiny.attrs)),
    )
    model = SIGMMA(own, encoder(), n_latent=8)
    model.train(1, 64, "none", enable_progress_bar=False)
    model.write_embeddings()
    return own


def test_leiden_of_scanpy_clusters_an_embedding(written):
    """Two groups of cells are moved apart, and no cluster has cells of both."""
    cells = written["table"].copy()
    group = np.arange(cells.n_obs) % 2
    moved = cells.obsm["X_sigmma_meso"] + 100 * group[:, None]
    sc.tl.leiden(cells, adjacency=kneighbors_graph(moved, 5), flavor="igraph", directed=False, n_iterations=2)
    assert cells.obs["leiden"].nunique() > 1
    assert (cells.obs.assign(group=group).groupby("leiden", observed=True)["group"].nunique() == 1).all()


def test_spatialdata_plot_draws_tiles_in_the_colours_of_their_table(written):
    tiles = written["sigmma_tiles"]
    tiles.obs["parity"] = np.arange(tiles.n_obs) % 2.0
    (squares,) = tiles.obs[tiles.uns["spatialdata_attrs"]["region_key"]].unique()
    figure, ax = plt.subplots()
    shown = written.pl.render_images("he_image").pl.render_shapes(squares, color="parity", method="matplotlib")
    shown.pl.show(ax=ax)
    (drawn,) = ax.collections
    _, n = np.unique(drawn.get_facecolor(), axis=0, return_counts=True)
    assert len(ax.images) == 1
    assert sorted(n) == [tiles.n_obs // 2, -(-tiles.n_obs // 2)]
    plt.close(figure)
