import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData

import sigmma_sc as sg
from sigmma_sc import SIGMMA
from sigmma_sc.errors import MissingKeyError, SetupError
from sigmma_sc.infer.tiles import tile_by_name
from sigmma_sc.pl._cells import MISSING, PALETTE

mpl.use("agg")


@pytest.fixture
def adata(rng):
    n = 40
    adata = AnnData(rng.poisson(1.0, (n, 3)).astype(np.float32), obs=pd.DataFrame(index=[f"c{k}" for k in range(n)]))
    adata.var_names = ["CXCL2", "CXCL6", "flat"]
    adata.X[:, 2] = 2
    adata.obsm["spatial"] = rng.uniform(0, 100, (n, 2))
    adata.obs["cell_type"] = ["T cell", "tumor"] * (n // 2)
    adata.obs["sigmma_niche_meso"] = pd.Categorical(["0"] * 10 + ["1"] * 29 + [None])
    return adata


def test_composition_shows_shares_of_each_niche(adata, tmp_path):
    (ax,) = sg.pl.composition(adata, "cell_type", scales=["meso"], save=tmp_path / "f.png", show=False)
    share = np.asarray(ax.images[0].get_array())
    # Niche 1 is larger, and T cells have their largest share there.
    np.testing.assert_allclose(share, [[15 / 29, 14 / 29], [0.5, 0.5]])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["1 (29)", "0 (10)"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["T cell", "tumor"]
    assert (tmp_path / "f.png").stat().st_size > 3000
    with pytest.raises(MissingKeyError, match=r"sg\.tl\.niches"):
        sg.pl.composition(adata, "cell_type", show=False)


def test_types_follow_their_niches_and_missing_text_is_no_type(adata, tmp_path):
    adata.obs["sigmma_niche_meso"] = pd.Categorical(["0"] * 20 + ["1"] * 15 + ["2"] * 5)
    adata.obs["cell_type"] = ["z"] * 18 + ["<NA>", "nan"] + ["a"] * 10 + ["m"] * 5 + ["b"] * 4 + [None]
    (ax,) = sg.pl.composition(adata, "cell_type", scales=["meso"], save=tmp_path / "f.png", show=False)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["z", "a", "m", "b"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0 (18)", "1 (15)", "2 (4)"]
    expected = [[1, 0, 0, 0], [0, 10 / 15, 5 / 15, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), expected)
    adata.obs["cell_type"] = "<NA>"
    with pytest.raises(SetupError, match="No cell has both"):
        sg.pl.composition(adata, "cell_type", scales=["meso"])


@pytest.mark.parametrize("height", [100, 20])
def test_signature_shows_means_over_niches_and_values_on_the_tissue(adata, tmp_path, height):
    adata.obsm["spatial"][:, 1] *= height / 100
    pairs = sg.pl.signature(adata, ["CXCL2", "flat"], save=tmp_path / "f.png", show=False)
    for (violins, tissue), gene in zip(pairs, ["CXCL2", "flat"], strict=True):
        values = adata[:, gene].X.ravel()
        means = [line.get_ydata()[0] for line in violins.lines if line.get_marker() == "o"]
        np.testing.assert_allclose(means, [values[:10].mean(), values[10:39].mean()], rtol=1e-6)
        drawn = tissue.collections[0]
        order = np.argsort(values, kind="stable")
        np.testing.assert_array_equal(drawn.get_array(), values[order])
        np.testing.assert_allclose(drawn.get_offsets(), adata.obsm["spatial"][order])
        share = [(one != 0).mean() for one in (values[:10], values[10:39])]
        ticks = [text.get_text() for text in violins.get_xticklabels()]
        assert ticks == [f"0\n{share[0]:.0%}", f"1\n{share[1]:.0%}"]
    expressed = adata.X[:10, 0][adata.X[:10, 0] != 0]
    drawn = pairs[0][0].collections[0].get_paths()[0].vertices[:, 1]
    assert (drawn.min(), drawn.max()) == (expressed.min(), expressed.max())
    assert len(pairs[1][0].collections) == 0  # what is constant has no density
    with pytest.raises(SetupError, match="INS not among the 3 genes"):
        sg.pl.signature(adata, "INS")
    adata.obs["sigmma_niche_meso"] = pd.Categorical([None] * 40)
    with pytest.raises(SetupError, match="No cell has a label"):
        sg.pl.signature(adata, "CXCL2")


@pytest.mark.parametrize("height", [100, 20])
def test_close_ups_show_the_cells_of_their_window_in_the_colours_of_the_whole(adata, tmp_path, height):
    adata.obsm["spatial"][:, 1] *= height / 100
    xy, window = adata.obsm["spatial"], (10, 5, 60)
    axes = sg.pl.niches(adata, ["meso"], "cell_type", windows=[window, (0, 0, 30)], save=tmp_path / "f.png", show=False)
    assert len(axes) == 2 + 2 * 2
    inside = ((xy >= window[:2]) & (xy <= (70, 65))).all(axis=1)
    niche = adata.obs["sigmma_niche_meso"].astype(object)
    missing, drawn = axes[3].collections
    np.testing.assert_allclose(missing.get_offsets().data, xy[inside & niche.isna().to_numpy()])
    np.testing.assert_allclose(drawn.get_offsets().data, xy[inside & niche.notna().to_numpy()])
    assert axes[3].get_xlim() == (10, 70)
    assert axes[3].get_ylim() == (65, 5)
    of_map = dict(
        zip(map(tuple, axes[1].collections[1].get_offsets().data), axes[1].collections[1].get_facecolors(), strict=True)
    )
    for place, colour in zip(drawn.get_offsets().data, drawn.get_facecolors(), strict=True):
        np.testing.assert_array_equal(of_map[tuple(place)], colour)
    assert [tuple(p.get_bbox().bounds) for p in axes[0].patches] == [(10, 5, 60, 60), (0, 0, 30, 30)]
    with pytest.raises(SetupError, match="holds no cell"):
        sg.pl.niches(adata, ["meso"], windows=[(500, 500, 10)])


def test_confidence_is_mapped_where_it_is_asked_for(adata, tmp_path):
    with pytest.raises(MissingKeyError, match="sigmma_niche_meso_confidence"):
        sg.pl.niches(adata, ["meso"], confidence=True, show=False)
    shares = np.linspace(0, 1, 40, dtype=np.float32)
    shares[-1] = np.nan
    adata.obs["sigmma_niche_meso_confidence"] = shares
    drawn = {"show": False, "save": tmp_path / "f.png", "confidence": True}
    axes = sg.pl.niches(adata, ["meso"], windows=[(0, 0, 50)], **drawn)
    assert [ax.get_title() for ax in axes] == ["meso", "meso confidence", "", ""]
    missing, known = axes[1].collections
    np.testing.assert_array_equal(known.get_array(), shares[:-1])
    assert known.get_clim() == (0, 1)
    np.testing.assert_allclose(missing.get_offsets().data, adata.obsm["spatial"][-1:])
    inside = (adata.obsm["spatial"] <= 50).all(axis=1) & np.isfinite(shares)
    np.testing.assert_array_equal(axes[3].collections[1].get_array(), shares[inside])


@pytest.mark.parametrize("high", ["micro", "macro"])
def test_the_limits_of_the_panels_hold_every_curve(high, tmp_path):
    history = {"train_ln_batch": pd.DataFrame({"x": [3.0, 3.0]})}
    for scale in ("micro", "meso", "macro"):
        history[f"train_loss_{scale}"] = pd.DataFrame({"x": [9.0, 8.0] if scale == high else [1.0, 0.5]})
    for ax in sg.pl.training(history, show=False, save=tmp_path / "f.png"):
        low, top = ax.get_ylim()
        assert low == 0
        assert top >= 9


@pytest.mark.parametrize("colours", [["#123456", "#fedcba"], ["red", "blue", "green"]])
def test_labels_have_the_colours_that_the_table_keeps(adata, tmp_path, colours):
    adata.uns["cell_type_colors"] = list(colours)
    axes = sg.pl.niches(adata, scales=["meso"], reference="cell_type", show=False, save=tmp_path / "f.png")
    drawn = {mpl.colors.to_hex(colour) for part in axes[0].collections for colour in part.get_facecolors()}
    assert drawn - {MISSING.lower()} == {mpl.colors.to_hex(colour) for colour in colours[:2]}
    assert adata.uns["cell_type_colors"] == colours
    kept = adata.uns["sigmma_niche_meso_colors"]
    assert kept == list(PALETTE[:2])
    adata.uns["sigmma_niche_meso_colors"] = ["#000001", "#000002"]
    axes = sg.pl.niches(adata, scales=["meso"], show=False, save=tmp_path / "f.png")
    again = {mpl.colors.to_hex(colour) for part in axes[0].collections for colour in part.get_facecolors()}
    assert {"#000001", "#000002"} <= again


@pytest.mark.parametrize("kept", [["#123456"], ["no colour", "#123456"], []])
def test_colours_that_do_not_fit_are_made_anew(adata, tmp_path, kept):
    adata.uns["sigmma_niche_meso_colors"] = kept
    sg.pl.niches(adata, scales=["meso"], show=False, save=tmp_path / "f.png")
    assert adata.uns["sigmma_niche_meso_colors"] == list(PALETTE[:2])


def test_losses_stand_beside_the_logarithm_of_the_batch(tmp_path):
    def series(*values):
        return pd.DataFrame({"x": values})

    history = {
        "train_loss_epoch": series(6, 4), "train_loss_micro": series(4, 3), "train_loss_macro": series(2, 1),
        "train_ln_batch": series(4.5, 4.5), "validation_loss": series(5, 5), "validation_loss_micro": series(3, 3),
        "validation_loss_macro": series(2, 2), "validation_ln_batch": series(3.9, 3.9),
    }  # fmt: skip
    axes = sg.pl.training(history, save=tmp_path / "f.png", show=False)
    assert [ax.get_title() for ax in axes] == ["micro", "macro"]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in axes[1].lines}
    assert drawn == {
        "training": [2, 1], "ln(batch), training": [4.5, 4.5], "validation": [2, 2], "ln(batch), validation": [3.9, 3.9],
    }  # fmt: skip
    without = {name: frame for name, frame in history.items() if not name.startswith("validation")}
    assert len(sg.pl.training(without, show=False, save=tmp_path / "g.png")[0].lines) == 2
    with pytest.raises(SetupError, match=r"model\.history"):
        sg.pl.training({})


class TestRetrieval:
    def test_hits_are_the_most_similar_tiles_and_partners_are_framed(self, trained):
        _, model = trained
        table = model.evaluate_retrieval(split="train").query("scale == 'macro'").set_index("direction")
        for direction, row in table.iterrows():
            figure = sg.pl.retrieval(model, int(row.pool), direction, "macro", 4, split="train", show=False)
            axes = np.array(figure.axes).reshape(2 * int(row.pool), 5)
            framed = [[ax.spines["left"].get_linewidth() > 2 for ax in line] for line in axes[::2]]
            assert all(line[0] for line in framed)
            for line in axes[::2]:
                cosines = [float(ax.get_title().split(": ")[1]) for ax in line[1:]]
                assert cosines == sorted(cosines, reverse=True)
                assert -1 <= min(cosines) <= max(cosines) <= 1
            words = [line[0].get_ylabel().split("ranks ")[1].split(" of ") for line in axes[::2]]
            ranks = np.array([int(rank) for rank, _ in words])
            assert {int(pool) for _, pool in words} == {row.pool}
            # A partner that is the first hit is as similar as the caption of the query says.
            for line, rank in zip(axes[::2], ranks, strict=True):
                if rank == 1:
                    assert line[1].get_title() == f"hit 1: {line[0].get_ylabel().split('partner: ')[1].split(',')[0]}"
            # The partner stands among the hits where its rank says, and nowhere else.
            for line, rank in zip(framed, ranks, strict=True):
                assert line[1:] == [place == rank for place in range(1, 5)]
            assert np.median(ranks) == row.median_rank
            assert (np.diff(ranks) >= 0).all()

    def test_cells_and_pixels_are_the_tiles_own(self, trained, tmp_path):
        sdata, model = trained
        tiles = model.get_tile_representation()
        name = tiles.obs_names[(tiles.obs.split == "train").to_numpy()][3]
        figure = sg.pl.retrieval(model, [name], groupby="cell_type", split="train", show=False, save=tmp_path / "f.png")
        image, cells = figure.axes[0], figure.axes[len(figure.axes) // 2]
        assert image.get_ylabel().startswith(f"{name}\n")
        assert len(cells.collections[0].get_offsets()) == tiles.obs.n_cells[name]
        slide = model._slides[0]
        x, y = tiles.obs.loc[name, ["x", "y"]].astype(float)
        side = int(128 / slide.microns_per_pixel)
        full = sdata["he_image"]["scale0"].image if hasattr(sdata["he_image"], "keys") else sdata["he_image"]
        own = full.values[:, int(y) : int(y) + side, int(x) : int(x) + side].mean((1, 2))
        np.testing.assert_allclose(image.images[0].get_array().mean((0, 1)), own, atol=2)

    def test_labels_come_from_the_objects_own_table(self, trained, tmp_path):
        sdata, model = trained
        other = sd.SpatialData(
            images={"he_image": sdata["he_image"]},
            shapes={"cell_circles": sdata["cell_circles"]},
            tables={"cells": sdata["table"].copy()},
        )
        SIGMMA.setup_spatialdata(other, table_key="cells")
        drawn = {"show": False, "save": tmp_path / "f.png", "groupby": "cell_type", "sdata": other}
        assert len(sg.pl.retrieval(model, 1, split="all", **drawn).axes) == 12
        tiles = model.get_tile_representation(other).obs
        assert len(sg.pl.edges(model, tiles.n_cells.idxmax(), **drawn)) == 3

    def test_refusals(self, trained):
        _, model = trained
        with pytest.raises(SetupError, match="'t1' among them|t1 among them"):
            sg.pl.retrieval(model, ["t1"], split="train")
        with pytest.raises(MissingKeyError, match="celltype"):
            sg.pl.retrieval(model, 1, groupby="celltype", split="train")
        with pytest.raises(SetupError, match="scale='nano'"):
            sg.pl.retrieval(model, 1, scale="nano", split="train")
        with pytest.raises(SetupError, match="tiles=0"):
            sg.pl.retrieval(model, 0, split="train")
        with pytest.raises(SetupError, match="t1 among them"):
            sg.pl.retrieval(model, "t1", split="train")
        with pytest.raises(SetupError, match="direction="):
            sg.pl.retrieval(model, 1, "image→image")


class TestEdges:
    def test_lines_are_the_pairs_that_the_model_links(self, trained, tmp_path):
        _, model = trained
        tiles = model.get_tile_representation()
        name = tiles.obs.n_cells.idxmax()
        axes = sg.pl.edges(model, name, "cell_type", threshold=0.6, show=False, save=tmp_path / "f.png")
        slide, tile = tile_by_name(model.resolve(), name)
        xy = (slide.xy[tile.cells] - tile.origins[0]) * slide.microns_per_pixel
        side = tile.side * slide.microns_per_pixel
        block = {
            scale: np.floor(xy / side * b).astype(int)
            for scale, b in zip(("micro", "meso", "macro"), (4, 2, 1), strict=True)
        }
        near = {tuple(map(tuple, pair)) for pair in np.round(axes[0].collections[0].get_segments(), 3)}
        graph = np.zeros((len(xy), len(xy)), bool)
        place = {tuple(at): k for k, at in enumerate(np.round(xy, 3))}
        for a, b in near:
            graph[place[a], place[b]] = graph[place[b], place[a]] = True
        assert near
        for ax, (scale, blocks) in zip(axes, block.items(), strict=True):
            together = (blocks[:, None] == blocks).all(axis=2) & ~np.eye(len(xy), dtype=bool)
            assert not (graph & ~together).any() or scale == "micro"
            # Spatial edges stand in every panel, added ones join cells of one block that had no edge.
            assert len(ax.collections[0].get_segments()) == len(near)
            for a, b in np.round(ax.collections[1].get_segments(), 3):
                u, v = place[tuple(a)], place[tuple(b)]
                assert together[u, v]
                assert not graph[u, v]
            drawn, of = ax.get_title().removeprefix(f"{scale}: ").removesuffix(" pairs").replace(",", "").split(" of ")
            assert len(ax.collections[1].get_segments()) == int(drawn) <= int(of)
            expected = 0 if scale == "micro" else (np.triu(together) & ~graph).sum()
            assert int(of) == expected
            if int(drawn):
                assert ax.collections[1].get_array().min() >= 0.6

    def test_refusals(self, trained):
        _, model = trained
        with pytest.raises(MissingKeyError, match="cell_circles_99999"):
            sg.pl.edges(model, "cell_circles_99999")
        with pytest.raises(SetupError, match="threshold=2"):
            sg.pl.edges(model, "cell_circles_0", threshold=2)
        tiles = model.get_tile_representation().obs
        with pytest.raises(SetupError, match="holds [01] cells"):
            sg.pl.edges(model, tiles.index[(tiles.n_cells < 2).to_numpy()][0])


class TestSlides:
    def test_each_slide_has_its_own_panel(self, adata, tmp_path):
        adata.obs["section"] = pd.Categorical(["b"] * 15 + ["a"] * 25)
        drawn = {"library_key": "section", "show": False, "save": tmp_path / "f.png", "microns_per_unit": 1.0}
        axes = sg.pl.niches(adata, ["meso"], "cell_type", **drawn)
        assert [ax.get_title() for ax in axes] == ["cell_type, a", "cell_type, b", "meso, a", "meso, b"]
        np.testing.assert_allclose(axes[1].collections[1].get_offsets().data, adata.obsm["spatial"][:15])
        np.testing.assert_allclose(axes[2].collections[1].get_offsets().data, adata.obsm["spatial"][15:39])
        with pytest.raises(SetupError, match="need one slide; there are 2"):
            sg.pl.niches(adata, ["meso"], windows=[(0, 0, 50)], library_key="section")
        with pytest.raises(MissingKeyError, match="library_key"):
            sg.pl.niches(adata, ["meso"], library_key="slide")

    def test_regions_of_the_table_are_slides(self, adata, tmp_path):
        adata.obs["region"] = pd.Categorical(["x"] * 20 + ["y"] * 20)
        adata.uns["spatialdata_attrs"] = {"region_key": "region"}
        axes = sg.pl.niches(adata, ["meso"], show=False, save=tmp_path / "f.png")
        assert [ax.get_title() for ax in axes] == ["meso, x", "meso, y"]


def test_a_palette_goes_before_the_colours_of_the_table(adata, tmp_path):
    adata.uns["sigmma_niche_meso_colors"] = ["#000001", "#000002"]
    sg.pl.niches(adata, ["meso"], palette={"1": "red", "0": "#00ff00"}, show=False, save=tmp_path / "f.png")
    assert adata.uns["sigmma_niche_meso_colors"] == ["#00ff00", "#ff0000"]
    for wrong, words in ((["red"], "no colour for 1"), (["red", "reddish"], "reddish"), ("tab10", "must be a list")):
        with pytest.raises(SetupError, match=words):
            sg.pl.niches(adata, ["meso"], palette=wrong)


def test_beyond_ten_labels_have_their_names_on_the_map(adata, tmp_path):
    places = np.repeat(np.arange(11) * 100.0, 4)[:40]
    adata.obsm["spatial"] = np.column_stack([places, np.zeros(40)])
    adata.obsm["spatial"][::4, 1] = 40  # one cell of each label aside
    adata.obs["sigmma_niche_meso"] = pd.Categorical([str(k // 4) for k in range(40)], [str(k) for k in range(11)])
    (ax,) = sg.pl.niches(adata, ["meso"], show=False, save=tmp_path / "f.png")
    assert [text.get_text() for text in ax.texts] == [str(k) for k in range(10)]
    assert [text.xy[0] for text in ax.texts] == [100.0 * k for k in range(10)]
