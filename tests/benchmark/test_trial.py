import numpy as np
import pytest

from sigmma_sc.benchmark import METHODS, Case, Frozen, Random, read_config, run
from sigmma_sc.benchmark.sources import load
from sigmma_sc.benchmark.trial import Cell, _roles, run_cell
from sigmma_sc.encoders.encoder import get_encoder
from sigmma_sc.metrics.expression import expression_probe, expression_targets, pearson
from sigmma_sc.tissue.counts import pooled_counts
from sigmma_sc.tissue.setup import slides_of

SECTIONS = {
    "simulate": {"n_cells": 500, "n_slides": 3, "seed": 1},
    "setup": {
        "tile_size": 64,
        "image_key": {f"slide{k}_cell_circles": f"slide{k}_he_image" for k in (1, 2, 3)},
        "coordinate_system": {f"slide{k}_cell_circles": f"slide{k}" for k in (1, 2, 3)},
    },
}


@pytest.mark.parametrize("split", ["blocks", "end", "section"])
def test_methods_train_on_the_tiles_that_the_benchmark_counts(split):
    config = read_config({"datasets": {"a": {**SECTIONS, "splits": [split]}}, "methods": ["genes"], "seeds": [5, 6]})
    data = config.datasets[0]
    tissue = load(data)
    roles = _roles(tissue, data, split, 1, 6)
    case = Case(tissue, get_encoder("stain-stats"), roles.roles.split, 6, {}, None)
    method = METHODS["genes"](case)
    method.fit(max_epochs=1)
    assert method.model.data.roles.by_slide.keys() == roles.roles.by_slide.keys()
    for name, role in roles.roles.by_slide.items():
        np.testing.assert_array_equal(method.model.data.roles.by_slide[name], role)
    if split == "section":
        assert {name for name, role in roles.roles.by_slide.items() if (role == "test").any()} == {
            "slide2_cell_circles"
        }


@pytest.mark.parametrize(("split", "apart"), [("blocks", 2), ("random", 1)])
def test_training_tiles_keep_off_test_tiles(split, apart):
    """One tile of guard band between them; a random split has none, and shows the leak, but no pixel is in both."""
    tissue = {"simulate": {"n_cells": 1500, "seed": 0}, "setup": {"tile_size": 64}, "splits": [split]}
    config = read_config({"datasets": {"a": tissue}, "methods": ["genes"], "seeds": [0]})
    data = config.datasets[0]
    sdata = load(data)
    roles = _roles(sdata, data, split, 0, 0)
    (slide,) = slides_of(sdata)
    tiles, _ = roles.covering(slide)
    test = tiles.origins[roles.roles.of(slide) == "test"]
    method = METHODS["genes"](Case(sdata, get_encoder("stain-stats"), split, 0, {}, None))
    method.fit(max_epochs=1)
    train = method.model.trainer.datamodule.dataset.slides[0].tiles.origins
    nearest = np.abs(train[:, None] - test).max(-1).min() / tiles.side
    assert nearest == pytest.approx(apart, abs=1e-6) if split == "random" else nearest >= apart - 1e-6


def test_variants_are_scored_on_validation_tiles(tmp_path):
    tissue = {"simulate": {"n_cells": 2000, "seed": 0}, "setup": {"tile_size": 64}}
    given = {"datasets": {"a": tissue}, "methods": ["frozen"], "seeds": [3], "encoder": "stain-stats", "score": "val"}
    config = read_config(given)
    data = config.datasets[0]
    cell = run_cell(config, data, "blocks", config.methods[0], 3, None)
    roles = _roles(load(data), data, "blocks", 0, 3)
    (slide,) = slides_of(load(data))
    tiles, _ = roles.covering(slide)
    counts = {}
    for role in ("train", "val", "test"):
        some = tiles.take(np.flatnonzero(roles.roles.of(slide) == role))
        counts[role] = pooled_counts(slide, some, list(load(data)["table"].var_names))
    assert len({len(part.toarray()) for part in counts.values()}) == 3
    _, _, target = expression_targets(counts["train"], counts["val"], list(load(data)["table"].var_names))
    np.testing.assert_allclose(cell.arrays["target|default"], target, rtol=1e-5)
    assert cell.meta["settings"]["score"] == "val"
    run(config, tmp_path)
    assert f"Validation tiles {len(target)} to {len(target)}" in (tmp_path / "report.md").read_text()


def test_a_cell_survives_its_file_and_scores_as_the_probe_does(tmp_path):
    tissue = {"simulate": {"n_cells": 2000, "seed": 0}, "setup": {"tile_size": 64}}
    config = read_config({"datasets": {"a": tissue}, "methods": ["frozen"], "seeds": [3], "encoder": "stain-stats"})
    data = config.datasets[0]
    cell = run_cell(config, data, "blocks", config.methods[0], 3, None)
    cell.save(tmp_path / "deep" / "cell.npz")
    again = Cell.read(tmp_path / "deep" / "cell.npz")
    assert again.meta == cell.meta
    assert again.arrays.keys() == cell.arrays.keys()
    for name, values in cell.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], values)

    sdata = load(data)
    roles = _roles(sdata, data, "blocks", 0, 3)
    (slide,) = slides_of(sdata)
    tiles, _ = roles.covering(slide)
    method = Frozen(Case(sdata, get_encoder("stain-stats"), "blocks", 3, {}, None))
    x, counts = {}, {}
    genes = list(sdata["table"].var_names)
    for part in ("train", "test"):
        some = tiles.take(np.flatnonzero(roles.roles.of(slide) == part))
        x[part] = np.concatenate(list(method.embed(slide, some)[0].values()), axis=1)
        counts[part] = pooled_counts(slide, some, genes)
    for protocol in ("default", "hest"):
        probe = expression_probe(x["train"], counts["train"], x["test"], counts["test"], genes, protocol=protocol)
        assert probe.index.tolist() == cell.arrays[f"genes|{protocol}"].tolist()
        found = pearson(
            cell.arrays[f"target|{protocol}"].astype(float), cell.arrays[f"predicted|{protocol}"].astype(float)
        )
        np.testing.assert_allclose(found, probe.pcc, atol=1e-4)  # kept in single precision
    # A block is a square of neighbouring tiles.
    assert 1 < len(np.unique(cell.arrays["block"])) < len(cell.arrays["block"])


def test_random_embeddings_depend_on_the_place_alone():
    tissue = {"simulate": {"n_cells": 1000, "seed": 0}, "setup": {"tile_size": 64}}
    data = read_config({"datasets": {"a": tissue}, "methods": ["random"]}).datasets[0]
    sdata = load(data)
    roles = _roles(sdata, data, "blocks", 0, 0)
    (slide,) = slides_of(sdata)
    tiles, _ = roles.covering(slide)
    a, b = (Random(Case(sdata, None, "blocks", seed, {}, None)).embed(slide, tiles) for seed in (0, 1))
    some = Random(Case(sdata, None, "blocks", 0, {}, None)).embed(slide, tiles.take(np.array([4, 2])))
    np.testing.assert_array_equal(some[0]["macro"], a[0]["macro"][[4, 2]])
    assert abs(np.corrcoef(a[0]["macro"].ravel(), a[1]["macro"].ravel())[0, 1]) < 0.1
    assert not np.array_equal(a[0]["macro"], b[0]["macro"])
