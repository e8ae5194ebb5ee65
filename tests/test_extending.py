"""The examples of docs/extending.md, in order, and what comes of each."""

import re
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest

from sigmma_sc import SIGMMA
from sigmma_sc.benchmark import METHODS, Case
from sigmma_sc.encoders import registry
from sigmma_sc.errors import RegistrationWarning, SetupError
from sigmma_sc.features.registry import NODE_FEATURES
from sigmma_sc.nn.objectives import OBJECTIVES, info_nce
from sigmma_sc.tissue.frame import image_levels
from sigmma_sc.tissue.setup import slides_of
from sigmma_sc.tissue.split import SPLITS

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def blocks():
    """Code of each section of the page by its heading."""
    sections = re.split(r"^#+ (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    out = {}
    for heading, text in zip(sections[::2], sections[1::2], strict=True):
        out[heading] = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    return out


@pytest.fixture
def registries(monkeypatch):
    """Registries that are as before when the test has ended."""
    for known in (NODE_FEATURES, OBJECTIVES, SPLITS, METHODS, registry._registered):
        for name in ("variable", "sigmoid", "columns", "depth", "colour"):
            monkeypatch.delitem(known, name, raising=False)
            monkeypatch.setitem(known, name, None)
            del known[name]


def test_every_section_has_an_example(blocks):
    assert all(blocks.values())
    longest = max(len(code.strip().splitlines()) for code in blocks.values())
    assert longest <= 26  # with imports and blank lines


def test_examples(blocks, registries, tmp_path):
    names = {}

    def section(heading):
        exec(compile(blocks[heading], f"{PAGE.name}: {heading}", "exec"), names)

    section("Extending")
    sdata = names["sdata"]
    section("An image encoder")
    assert names["model"].image_encoder.dim == 12

    section("Node features")
    variable = names["model"]
    assert variable.module.n_node_features == 21  # 20 genes, and the distance to the nearest cells
    variable.save(tmp_path / "model")
    again = SIGMMA.load(tmp_path / "model", sdata)
    assert again.data.node_features.genes == variable.data.node_features.genes
    cells = variable.get_latent_representation()
    np.testing.assert_array_equal(again.get_latent_representation(), cells)
    del NODE_FEATURES["variable"]
    with pytest.raises(SetupError, match="node_features='variable' is not one of 'auto', 'pca'.*--import"):
        SIGMMA.load(tmp_path / "model", sdata)

    section("An objective")
    sigmoid = names["other"].history["train_loss_macro"].iloc[-1, 0]
    assert np.isfinite(sigmoid)
    # Before anything is learned, a pair costs ln 2 in the one, and a row ln n in the other.
    same = names["torch"].ones(8, 3)
    assert OBJECTIVES["sigmoid"](same, same, 1e6).item() == pytest.approx(8 * np.log(2), rel=1e-4)
    assert info_nce(same, same, 1e6).item() == pytest.approx(np.log(8), rel=1e-4)
    assert names["other"].module.objective is names["sigmoid_loss"]

    section("A split")
    model = names["model"]
    obs = model.get_tile_representation().obs
    assert {"train", "val", "guard", "test"} <= set(obs["split"])
    x = obs.groupby("split", observed=True)["x"]
    assert x.min()["test"] > x.max()["val"] > x.max()["train"]
    assert model.data.roles.split == "columns"

    section("A reader")
    table = sdata["table"].copy()
    table.obsm["spatial"] = 0.5 * model.resolve()[0].xy
    ad.AnnData(table.X, table.obs[["niche"]], table.var, obsm=dict(table.obsm)).write_h5ad(tmp_path / "cells.h5ad")
    image = image_levels(sdata, "he_image")[0]
    np.save(tmp_path / "he.npy", image.transpose("y", "x", "c").to_numpy())
    read = names["read_arrays"](tmp_path, microns_per_pixel=0.5)
    with pytest.warns(RegistrationWarning, match="identity transform"):
        SIGMMA.setup_spatialdata(read, tile_size=64)
    (slide,) = slides_of(read)
    assert slide.microns_per_pixel == pytest.approx(0.5)
    np.testing.assert_allclose(slide.xy, model.resolve()[0].xy, atol=1e-6)

    section("A plot")
    scores = model.evaluate_retrieval()
    ax = names["recall"](scores, plt.figure().subplots())
    macro = scores[scores["scale"] == "macro"].groupby("direction")["recall@10%"].mean()
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(macro.tolist())
    plt.close(ax.figure)

    section("A method of the benchmark")
    assert names["spec"].label == "depth"
    case = Case(sdata, encoder=None, split="blocks", seed=0, options={}, cache_dir=None)
    (slide,) = model.resolve()
    image, transcriptome = METHODS["depth"](case).embed(slide, slide.tiles)
    assert image is None
    counts = np.asarray(sdata["table"].X[slide.rows].sum(axis=1)).ravel()
    under = slide.tile_of_cell >= 0
    totals = np.bincount(slide.tile_of_cell[under], counts[under], len(slide.tiles))
    regular = np.isclose(slide.tiles.origins % slide.side, 0, atol=1e-3).all(axis=1)  # a shifted one shares cells
    np.testing.assert_allclose(transcriptome["macro"][regular, 0], np.log1p(totals[regular]), rtol=1e-5)
