import warnings

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from spatialdata import SpatialData
from spatialdata.models import TableModel

import sigmma_sc as sg
from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import CoreWarning, ExistsError, SetupError

CENTRES = np.array([[x, y] for y in (220, 640, 1060) for x in (220, 640, 1060)], float)


def microarray():
    """Nine cores of 340 µm across, cut out of a section, some cells between them, and one core too small."""
    section = simulate_tissue(n_cells=9000, seed=0)
    table = section["table"]
    xy = table.obsm["spatial"] - table.obsm["spatial"].min(axis=0)
    reach = cdist(xy, CENTRES).min(axis=1)
    between = np.flatnonzero(reach > 290)[:3]
    kept = np.sort(np.r_[np.flatnonzero(reach < 170), between])
    cells = table[kept].copy()
    del cells.uns["spatialdata_attrs"]
    cells.obs["truth"] = cdist(xy[kept], CENTRES).argmin(axis=1)
    cells.obs["stray"] = np.isin(kept, between)
    cells = TableModel.parse(cells, "cell_circles", "region", "cell_id")
    return SpatialData(
        images=dict(section.images),
        shapes={"cell_circles": section["cell_circles"].iloc[kept]},
        tables={"table": cells},
    )


@pytest.fixture(scope="module")
def cores():
    sdata = microarray()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SIGMMA.setup_spatialdata(sdata, tile_size=64)
        sg.pp.split_cores(sdata, gap=50)
        SIGMMA.setup_spatialdata(sdata, tile_size=64, sample_key="core")
    return sdata


def test_cells_get_their_core_and_stray_cells_none(cores):
    obs = cores["table"].obs
    assert obs["core"].isna().equals(obs["stray"])
    names = [f"core{k}" for k in range(1, 10)]
    assert list(obs["core"].cat.categories) == names
    inside = obs[~obs["stray"]]
    # The image is turned by 17°, so that the rows of its cores are not those of the cells; the groups are.
    pairs = set(zip(inside["core"], inside["truth"], strict=True))
    assert len(pairs) == 9


def test_refusals_and_the_warning():
    sdata = microarray()
    with pytest.raises(SetupError, match="no setup"):
        sg.pp.split_cores(sdata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SIGMMA.setup_spatialdata(sdata, tile_size=64)
    for arguments, match in (
        ({"gap": 0}, "gap=0"),
        ({"min_cells": 0}, "min_cells=0"),
        ({"min_cells": 10**6}, "has no core"),
    ):
        with pytest.raises(SetupError, match=match):
            sg.pp.split_cores(sdata, **arguments)
    assert "core" not in sdata["table"].obs
    with pytest.warns(CoreWarning, match="3 of .* cells are in no core"):
        sg.pp.split_cores(sdata, gap=50)
    before = sdata["table"].obs["core"].copy()
    with pytest.raises(ExistsError, match="overwrite=True"):
        sg.pp.split_cores(sdata, gap=500)
    assert before.equals(sdata["table"].obs["core"])
    with pytest.warns(CoreWarning):
        sg.pp.split_cores(sdata, gap=50, min_cells=300, overwrite=True)


@pytest.mark.slow
def test_whole_cores_of_one_image_are_held_out(cores, encoder):
    model = SIGMMA(cores, encoder(), n_latent=8)
    model.train(max_epochs=1, batch_size=32, split="sample", stride=64, enable_progress_bar=False)
    held = model.data.roles.split
    (slide,) = model.resolve()
    role = model.data.roles.of(slide)
    sample = slide.sample_of(slide.tiles)
    assert set(slide.samples) == {f"core{k}" for k in range(1, 10)}
    for name in slide.samples:
        expected = "test" if name in held["test"] else "val" if name in held["val"] else "train"
        assert set(role[sample == name]) <= {expected, "unused"}
        assert expected in role[sample == name]
    assert set(role[sample == ""]) == {"unused"}
    for which in ("train", "val", "test"):
        cells = slide.tiles.take(np.flatnonzero(role == which)).cells
        own = set(slide.cell_samples[cells]) - {""}
        assert own == {str(n) for n in np.unique(sample[role == which])}
    model.write_embeddings()
    assert np.isfinite(cores["table"].obsm["X_sigmma_meso"]).all()  # stray cells too
    assert len(model.evaluate_retrieval()) > 0


def test_training_tiles_anywhere_hold_no_cell_of_a_core_held_out(cores):
    from sigmma_sc.train.tiles import _training_tiles

    model = SIGMMA(cores, n_latent=8)
    slides = model.resolve()
    model.data.assign_roles(slides, {"test": ["core2", "core5"], "val": ["core9"]})
    (slide,) = slides
    tiles = _training_tiles(model.data, slide, model.data.roles.of(slide), 16.0)
    assert len(tiles) > 50
    held = np.isin(slide.cell_samples[tiles.cells], ["core2", "core5", "core9"])
    assert not held.any()
