"""One trial, from tissue to what is kept of it."""

import numpy as np
import pytest

from sigmma_sc.benchmark import METHODS, Case, Frozen, Method, read_config
from sigmma_sc.benchmark.evaluation import divide, embed, fit_best, run_trial
from sigmma_sc.benchmark.sources import load
from sigmma_sc.encoders.encoder import get_encoder
from sigmma_sc.errors import SetupError
from sigmma_sc.metrics.expression import expression_probe, expression_targets, pearson
from sigmma_sc.tissue.counts import pooled_counts

ONE = {"simulate": {"n_cells": 1500, "seed": 0}, "setup": {"tile_size": 64}}
SECTIONS = {
    "simulate": {"n_cells": 500, "n_slides": 3, "seed": 1},
    "setup": {
        "tile_size": 64,
        "image_key": {f"slide{k}_cell_circles": f"slide{k}_he_image" for k in (1, 2, 3)},
        "coordinate_system": {f"slide{k}_cell_circles": f"slide{k}" for k in (1, 2, 3)},
    },
}


def plan_of(data, methods=("random",), **more):
    return read_config({"datasets": {"a": data}, "methods": list(methods), "seeds": [3], **more})


def counts_of(sdata, slide, tiles):
    genes = list(sdata["table"].var_names)
    return pooled_counts(slide, tiles, genes), genes


@pytest.mark.parametrize("split", ["blocks", "section"])
def test_methods_train_on_the_tiles_that_the_benchmark_counts(split, encoder):
    data = plan_of({**SECTIONS, "splits": [split]}).datasets[0]
    tissue = load(data)
    division = divide(tissue, data, split, 1, 6)
    method = METHODS["genes"](Case(tissue, encoder(), division.split, 6, {}, None))
    method.fit(max_epochs=1)
    roles = division.data.roles.by_slide
    trained = method.model.data.roles.by_slide
    assert trained.keys() == roles.keys()
    for name, role in roles.items():
        np.testing.assert_array_equal(trained[name], role)
    if split == "section":
        assert {slide.name for slide, _ in division.tiles("test")} == {"slide2_cell_circles"}


@pytest.mark.parametrize(("split", "apart"), [("blocks", 2), ("random", 1)])
def test_training_tiles_keep_off_test_tiles(split, apart, encoder):
    """One tile of guard band between them; a random split has none, and shows the leak, but no pixel is in both."""
    data = plan_of({**ONE, "splits": [split]}).datasets[0]
    sdata = load(data)
    ((_, test),) = divide(sdata, data, split, 0, 0).tiles("test")
    method = METHODS["genes"](Case(sdata, encoder(), split, 0, {}, None))
    method.fit(max_epochs=1)
    train = method.model.trainer.datamodule.dataset.slides[0].tiles.origins
    nearest = np.abs(train[:, None] - test.origins).max(-1).min() / test.side
    assert nearest == pytest.approx(apart, abs=1e-6) if split == "random" else nearest >= apart - 1e-6


def test_a_block_is_a_square_of_neighbouring_tiles():
    data = plan_of(ONE).datasets[0]
    division = divide(load(data), data, "blocks", 0, 3)
    ((slide, tiles),) = division.tiles("test")
    block = division.blocks(slide, tiles)
    assert 1 < len(np.unique(block)) < len(block)
    for name in np.unique(block):
        assert np.ptp(tiles.origins[block == name], axis=0).max() < 2 * tiles.side + 1e-6


def test_variants_are_scored_on_validation_tiles():
    config = plan_of(ONE, score="val")
    trial = run_trial(config, config.trials()[0], None)
    data = config.datasets[0]
    sdata = load(data)
    division = divide(sdata, data, "blocks", 0, 3)
    counts = {}
    for role in ("train", "val", "test"):
        ((slide, tiles),) = division.tiles(role)
        counts[role], genes = counts_of(sdata, slide, tiles)
    assert counts["val"].shape[0] not in (counts["train"].shape[0], counts["test"].shape[0])
    _, _, target = expression_targets(counts["train"], counts["val"], genes)
    np.testing.assert_allclose(trial.expression["default"].target, target, rtol=1e-5)
    assert trial.meta.settings["score"] == "val"
    assert trial.meta.n_train == counts["train"].shape[0]


def test_a_trial_scores_as_the_probe_does(encoder, monkeypatch):
    monkeypatch.setattr("sigmma_sc.benchmark.evaluation.encoder_of", lambda _: encoder())
    config = plan_of(ONE, ["frozen-macro"], encoder="mean")
    trial = run_trial(config, config.trials()[0], None)
    assert not trial.ranks
    data = config.datasets[0]
    sdata = load(data)
    division = divide(sdata, data, "blocks", 0, 3)
    method = Frozen(Case(sdata, encoder(), "blocks", 3, {}, None), macro=True)
    x, counts = {}, {}
    for role in ("train", "test"):
        ((slide, tiles),) = division.tiles(role)
        image, _ = method.embed(slide, tiles)
        x[role] = image["macro"]
        counts[role], genes = counts_of(sdata, slide, tiles)
    for protocol in ("default", "hest"):
        probe = expression_probe(x["train"], counts["train"], x["test"], counts["test"], genes, protocol=protocol)
        kept = trial.expression[protocol]
        assert probe.index.tolist() == kept.genes.tolist()
        target, predicted = kept.target.astype(float), kept.predicted[protocol].astype(float)
        np.testing.assert_allclose(((predicted - target) ** 2).mean(axis=0), probe.mse, rtol=1e-4)
        # Kept in single precision, a nearly constant prediction has no correlation to speak of.
        varies = predicted.std(axis=0) > 0.01
        assert varies.sum() > 10
        np.testing.assert_allclose(pearson(target, predicted)[varies], probe.pcc[varies], atol=1e-3)
        assert set(kept.predicted) == {protocol}  # the lookup needs a transcriptome


def test_lookup_of_few_training_tiles_is_their_mean():
    """BLEEP's inference averages the 50 nearest; of fewer tiles, all."""
    config = plan_of({**ONE, "splits": ["blocks"]})
    trial = run_trial(config, config.trials()[0], None)
    assert trial.meta.n_train <= 50
    default = trial.expression["default"]
    np.testing.assert_allclose(default.predicted["lookup"], np.tile(default.mean, (len(default.target), 1)), rtol=1e-5)
    assert {key.scale for key in trial.ranks} == {"macro"}


def test_the_best_for_each_gene_is_that_of_the_product(encoder, monkeypatch):
    monkeypatch.setattr("sigmma_sc.benchmark.evaluation.encoder_of", lambda _: encoder())
    config = plan_of({**ONE, "setup": {"tile_size": 32}}, ["genes"], encoder="mean", train={"max_epochs": 1})
    trial = run_trial(config, config.trials()[0], None)
    data = config.datasets[0]
    sdata = load(data)
    division = divide(sdata, data, "blocks", 0, 3)
    ((slide, tiles),) = division.tiles("test")
    method = METHODS["genes"](Case(sdata, encoder(), division.split, 3, {}, None))
    method.fit(max_epochs=1)
    expected = method.model.predict_expression(method="auto", withhold=None)
    rows = [f"{slide.name}_{k}" for k in np.flatnonzero(division.data.roles.of(slide) == "test")]
    kept = trial.expression["default"]
    np.testing.assert_allclose(kept.predicted["auto"], expected[rows, kept.genes].X, rtol=1e-4, atol=1e-5)
    assert set(kept.predicted) == {"default", "lookup", "auto"}
    # Of fewer than ten validation tiles nothing is chosen, and none where they are scored themselves.
    assert method.predict_best([(slide, tiles.take(np.arange(3)))]).shape == (3, len(sdata["table"].var_names))
    scored = run_trial(plan := plan_of(ONE, ["genes"], train={"max_epochs": 1}, score="val"), plan.trials()[0], None)
    assert "auto" not in scored.expression["default"].predicted


class Tuned(Method):
    """Aligned by the better the closer its learning rate is to 1; remembers what it was trained with."""

    trains = True

    def fit(self, **training):
        self.training = training
        return {"epochs": 1}

    def embed(self, slide, tiles):
        rng = np.random.default_rng(len(tiles))
        image = rng.normal(size=(len(tiles), 8))
        noise = abs(np.log10(self.training["lr"])) * rng.normal(size=image.shape)
        return {"macro": image.astype(np.float32)}, {"macro": (image + noise).astype(np.float32)}


def test_a_budget_is_spent_on_validation_tiles(monkeypatch):
    monkeypatch.setitem(METHODS, "tuned", Tuned)
    train = {"max_epochs": 5, "lr": 7}
    config = plan_of(ONE, ["tuned", "random"], train=train, tune={"lr": [1e-3, 1.0, 1e4]})
    fits = [run_trial(config, trial, None).meta.fit for trial in config.trials()]
    assert fits == [{"epochs": 1, "tuned": {"lr": 1.0}, "validation_score": 1.0}, {}]
    # A budget of one value is that value.
    config = plan_of(ONE, ["tuned"], train=train, tune={"lr": [0.1]})
    spec, sdata = config.trials()[0], load(config.datasets[0])
    method, _ = fit_best(config, spec, Case(sdata, None, "blocks", 3, {}, None), None)
    assert method.training == {"max_epochs": 5, "lr": 0.1}


def test_what_leaves_no_tile_is_named(monkeypatch):
    monkeypatch.setitem(METHODS, "tuned", Tuned)
    config = plan_of({**SECTIONS, "splits": ["section"]}, ["tuned"], tune={"lr": [1, 2]})
    monkeypatch.setattr("sigmma_sc.benchmark.evaluation.Division.tiles", lambda self, role: [])
    with pytest.raises(SetupError, match="needs validation tiles, and the split leaves none"):
        run_trial(config, config.trials()[0], None)
    config = plan_of({**SECTIONS, "splits": ["section"]})
    with pytest.raises(SetupError, match="a: split='section' with seed 3 leaves no train tile"):
        run_trial(config, config.trials()[0], None)


def test_tiles_are_embedded_slide_by_slide():
    data = plan_of({**SECTIONS, "splits": ["blocks"]}).datasets[0]
    tissue = load(data)
    chosen = divide(tissue, data, "none", 0, 3).tiles("train")
    embedded = embed(METHODS["random"](Case(tissue, None, "blocks", 3, {}, None)), chosen)
    slide, tiles = chosen[1]
    alone, _ = METHODS["random"](Case(tissue, None, "blocks", 3, {}, None)).embed(slide, tiles)
    np.testing.assert_array_equal(embedded.image["macro"][embedded.slide == slide.name], alone["macro"])
    assert len(embedded.image["macro"]) == sum(len(tiles) for _, tiles in chosen)
    assert embed(Method(None), chosen).image is None


def test_encoders_of_a_trial_are_named(monkeypatch):
    monkeypatch.setitem(METHODS, "nothing", Method)
    config = plan_of(ONE, ["nothing", {"method": "nothing", "label": "own", "encoder": "stain-stats"}])
    trials = [run_trial(config, trial, None) for trial in config.trials()]
    assert [trial.meta.encoder for trial in trials] == [None, get_encoder("stain-stats").name]
    assert {trial.meta.method for trial in trials} == {"nothing", "own"}
    np.testing.assert_array_equal(trials[0].expression["hest"].predicted["hest"][0], trials[0].expression["hest"].mean)
