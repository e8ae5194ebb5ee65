import json
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from sigmma_sc import SIGMMA
from sigmma_sc.errors import ExpressionWarning, SetupError
from sigmma_sc.infer import predict as predict_module
from sigmma_sc.infer.evaluate import chosen_counts
from sigmma_sc.infer.predict import (
    Prediction,
    Query,
    predict,
    predict_best,
    predict_held_out,
    predict_parts,
    reliability_of,
    require_enough,
    retrieve,
    ridge,
)
from sigmma_sc.infer.reference import Reference, encoder_features
from sigmma_sc.metrics.expression import ALPHAS, log_expression, pearson

SCALES = ("micro", "meso", "macro")


def made_up(n=40, g=6, d=5, n_slides=1, seed=0):
    """A reference whose first genes follow the embeddings; three quarters of its tiles train."""
    rng = np.random.default_rng(seed)
    image, transcriptome = ({s: rng.normal(size=(n, d)).astype(np.float32) for s in SCALES} for _ in range(2))
    expression = 2 + image["micro"] @ rng.normal(size=(d, g)) + 0.3 * rng.normal(size=(n, g))
    slide, train = np.arange(n) % n_slides, np.arange(n) < 3 * n // 4
    genes = [f"g{k}" for k in range(g)]
    encoder = np.concatenate([image[s] for s in SCALES], axis=1).astype(np.float16)
    block = np.arange(n) // 5
    position, stain = np.zeros((n, 2), np.float32), np.zeros((n, 6), np.float32)
    tiles = (slide, block, train, position, stain)
    return Reference(genes, 500.0, expression.astype(np.float16), image, transcriptome, encoder, *tiles)


def reliability(reference, how):
    return reliability_of(reference, predict_held_out(reference, how))


class TestRetrieval:
    @pytest.mark.parametrize("scale", [*SCALES, "all"])
    def test_equals_a_loop_over_tiles(self, scale, monkeypatch, rng):
        monkeypatch.setattr(predict_module, "QUERIES", 7)  # 20 queries in parts
        reference = made_up()
        image = {s: rng.normal(size=(20, 5)).astype(np.float32) for s in SCALES}
        found = predict(image, reference, Prediction("retrieval", scale, 4, 0.2))
        scales = SCALES if scale == "all" else (scale,)
        for i in range(20):
            cosine = np.zeros(30)
            for j in range(30):
                for s in scales:
                    a, b = image[s][i].astype(float), reference.transcriptome[s][j].astype(float)
                    cosine[j] += a @ b / np.linalg.norm(a) / np.linalg.norm(b) / len(scales)
            nearest = np.argsort(cosine)[-4:]
            weights = np.exp(cosine[nearest] / 0.2)
            expected = weights @ reference.expression[nearest].astype(float) / weights.sum()
            np.testing.assert_allclose(found[i], expected, rtol=1e-4)

    def test_one_neighbour_is_copied_and_more_than_there_are_is_all(self):
        keys, expression = np.eye(3, dtype=np.float32), np.array([[1.0, 2], [3, 4], [5, 7]], np.float32)
        np.testing.assert_array_equal(retrieve(keys[[2, 0]], keys, expression, 1, 0.07), expression[[2, 0]])
        weights = softmax(np.array([1, 0, 0]) / 0.5)
        np.testing.assert_allclose(
            retrieve(keys[:1] * 9, keys, expression, 50, 0.5)[0], weights @ expression, rtol=1e-6
        )

    def test_lies_between_the_lowest_and_the_highest_training_tile(self, rng):
        reference = made_up()
        found = predict(
            {s: rng.normal(size=(9, 5)) for s in SCALES}, reference, Prediction("retrieval", "all", 10, 0.07)
        )
        train = reference.expression[reference.train].astype(np.float32)
        assert (found >= train.min(0) - 1e-5).all()
        assert (found <= train.max(0) + 1e-5).all()


class TestRidge:
    @pytest.mark.parametrize("genes", [2, 1000])
    def test_equals_scaler_pca_and_the_penalty_of_least_leave_one_out_error(self, genes, monkeypatch, rng):
        monkeypatch.setattr(predict_module, "GENES", genes)
        x, query, y = rng.normal(size=(30, 5)), rng.normal(size=(7, 5)), rng.normal(2, 1, size=(30, 5))
        y[:, 0] += x[:, 1]
        scaler = StandardScaler().fit(x)
        pca = PCA().fit(scaler.transform(x))
        z, z_query = (pca.transform(scaler.transform(part)) for part in (x, query))
        found = ridge(query, x, y)
        for gene in range(5):
            errors = []
            for alpha in ALPHAS:
                left_out = [
                    Ridge(alpha).fit(np.delete(z, i, 0), np.delete(y[:, gene], i)).predict(z[[i]])[0] for i in range(30)
                ]
                errors.append(((left_out - y[:, gene]) ** 2).mean())
            expected = Ridge(ALPHAS[np.argmin(errors)]).fit(z, y[:, gene]).predict(z_query)
            np.testing.assert_allclose(found[:, gene], expected, rtol=1e-5)

    def test_a_single_gene(self, rng):
        x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 2))
        np.testing.assert_allclose(ridge(x, x, y[:, :1]), ridge(x, x, y)[:, :1], rtol=1e-5)

    def test_its_reliability_is_the_score_of_the_probe(self, fitted):
        """Against evaluate_expression, which reads the counts of the slide."""
        model = fitted
        probe = model.evaluate_expression(split="val")["pcc"]
        var = model.predict_expression(method="ridge").var
        np.testing.assert_allclose(var["reliability"][probe.index], probe, atol=5e-3)  # counts here at half precision
        assert set(var["reliability_n_tiles"]) == {(model.data.roles.by_slide["b/cell_circles"] == "val").sum()}


class TestReliability:
    def test_by_hand(self):
        """Three validation tiles whose nearest training tile is known."""
        eye = np.eye(3, dtype=np.float32)
        keys = {s: np.concatenate([eye, eye]) for s in SCALES}
        train, held = [[1, 1, 5], [2, 3, 5], [4, 2, 5]], [[1, 3, 1], [2, 2, 2], [3, 1, 3]]
        reference = Reference(
            ["a", "b", "constant"],
            1.0,
            np.array(train + held, np.float16),
            keys,
            keys,
            np.zeros((6, 1), np.float16),
            np.zeros(6, int),
            np.zeros(6, int),
            np.arange(6) < 3,
            np.zeros((6, 2), np.float32),
            np.zeros((6, 6), np.float32),
        )
        with pytest.warns(ExpressionWarning, match="reliability of 1 of 3 genes is not known.* constant .*: constant"):
            found = reliability(reference, Prediction("retrieval", "all", 1, 0.07))
        # a: predicted 1, 2, 4 for 1, 2, 3; b: predicted 1, 3, 2 for 3, 2, 1.
        np.testing.assert_allclose(found["reliability"], [3 / np.sqrt(2 * 14 / 3), -0.5, np.nan])
        assert found.index.tolist() == ["a", "b", "constant"]
        assert found["reliability_n_tiles"].tolist() == [3, 3, 3]

    def test_is_the_mean_over_slides_within_each(self):
        reference = made_up(n=80, n_slides=2)
        shifted = reference.expression + (4 * reference.slide)[:, None].astype(
            np.float16
        )  # no credit for telling slides
        reference = replace(reference, expression=shifted)
        found = reliability(reference, Prediction("retrieval", "micro", 5, 0.1))
        expected = []
        for s in (0, 1):
            here = ~reference.train & (reference.slide == s)
            image = {name: values[here] for name, values in reference.image.items()}
            expected.append(
                pearson(
                    shifted[here].astype(float), predict(image, reference, Prediction("retrieval", "micro", 5, 0.1))
                )
            )
        np.testing.assert_allclose(found["reliability"], np.mean(expected, axis=0), rtol=1e-5)

    def test_tells_what_can_be_predicted_from_what_cannot(self, rng):
        reference = made_up(n=200, g=4)
        expression = reference.expression.copy()
        expression[:, 2:] = rng.normal(size=(200, 2))
        found = reliability(replace(reference, expression=expression), Prediction("ridge", "all", 0, 0.07))[
            "reliability"
        ]
        assert (found[:2] > 0.8).all()
        assert (found[2:].abs() < 0.4).all()

    @pytest.mark.parametrize("n_held", [0, 2])
    def test_too_few_validation_tiles_give_nan_and_a_reason(self, n_held):
        reference = replace(made_up(), train=np.arange(40) < 40 - n_held)
        with pytest.warns(ExpressionWarning, match=rf"No slide has 3 validation tiles \({n_held} in all\)"):
            found = reliability(reference, Prediction("retrieval", "all", 5, 0.07))
        assert found["reliability"].isna().all()
        assert (found["reliability_n_tiles"] == 0).all()


class TestHeOnly:
    @pytest.mark.parametrize("method", ["retrieval", "ridge"])
    def test_an_unseen_slide_is_predicted_better_than_by_the_gene_mean(self, fitted, unseen, alone, method):
        model = fitted
        found = model.predict_expression(alone, method, withhold=None)
        (embedded, which), *_ = chosen = model.embed_split(unseen, "all")
        counts = chosen_counts(chosen, list(found.var_names))
        truth = log_expression(counts, found.uns["sigmma"]["library"]).toarray()
        np.testing.assert_allclose(found.obsm["spatial"], embedded.tiles.origins + embedded.tiles.side / 2)
        predicted = found.X[which].astype(float)
        pcc = pearson(truth, predicted)
        assert pcc.mean() > 0.25  # of the gene mean it is undefined
        # Reliability, measured on one slide, orders the genes of another.
        assert np.corrcoef(found.var["reliability"], pcc)[0, 1] > 0.5
        if method == "retrieval":
            # The donor's stain and batch move whole genes; apart from that the error is below the gene mean's.
            p, t = predicted - predicted.mean(0), truth - truth.mean(0)
            assert (((p - t) ** 2).mean(0) < (t**2).mean(0)).mean() > 0.6

    def test_saved_and_loaded_without_any_table(self, fitted, alone, loaded):
        model = fitted
        for options in ({}, {"method": "ridge", "scale": "meso"}, {"scale": "macro", "withhold": None}):
            a, b = model.predict_expression(alone, **options), loaded.predict_expression(**options)
            np.testing.assert_array_equal(a.X, b.X)
            assert a.var.equals(b.var)
            assert a.obs.equals(b.obs)
            assert a.X.dtype == np.float32
            kept = np.full(a.n_obs, True) if "withhold" in options else (a.obs["sigmma_alike"] > 0.01).to_numpy()
            assert np.isfinite(a.X[kept]).all()
            assert np.isnan(a.X[~kept]).all()
        assert set(b.obs["split"]) == {"unseen"}

    def test_a_model_loaded_on_an_image_is_saved_as_it_was(self, fitted, unseen, saved, loaded, tmp_path):
        loaded.save(tmp_path / "again")
        first, again = (json.loads((path / "model.json").read_text()) for path in (saved, tmp_path / "again"))
        assert first == again
        assert first["setup"]["table_key"] == "table"
        assert (tmp_path / "again" / "weights.safetensors").read_bytes() == (saved / "weights.safetensors").read_bytes()
        # It still embeds cells of another object.
        a, b = (m.get_latent_representation(unseen) for m in (fitted, loaded))
        np.testing.assert_array_equal(a, b)

    def test_embeddings_of_every_scale(self, fitted, unseen, alone, loaded, tmp_path):
        for scale in (*SCALES, "all"):
            found = loaded.get_tile_representation(scale=scale)
            expected = fitted.get_tile_representation(unseen, scale=scale)
            np.testing.assert_allclose(found.X, expected.X, atol=1e-5)
            assert found.n_vars == 32 * (3 if scale == "all" else 1)
        with pytest.raises(SetupError, match="no cells to embed"):
            loaded.get_latent_representation()
        loaded.write_embeddings()
        tiles = alone["sigmma_tiles"]
        assert set(tiles.obsm) == {"spatial", *(f"image_{s}" for s in SCALES)}
        for scale in SCALES:
            np.testing.assert_array_equal(tiles.obsm[f"image_{scale}"], loaded.get_tile_representation(scale=scale).X)
        assert len(alone["sigmma_tiles_he_image"]) == tiles.n_obs
        assert tiles.uns["sigmma"]["microns_per_pixel"] == 0.5
        assert "table_key" not in tiles.uns["sigmma"]
        alone.write(tmp_path / "alone.zarr")
        again = sd.read_zarr(tmp_path / "alone.zarr")
        np.testing.assert_array_equal(again["sigmma_tiles"].obsm["image_meso"], tiles.obsm["image_meso"])

    def test_an_image_that_was_never_set_up_is_refused_with_the_call_to_make(self, fitted, unseen, saved, encoder):
        bare = sd.SpatialData(images={"he_image": unseen["he_image"]})
        words = r"holds no table and was never set up.*table_key=None, microns_per_pixel=…, tile_size=64\S*, grids=\(4, 2, 1\)"
        with pytest.raises(SetupError, match=words):
            SIGMMA.load(saved, bare, encoder(input_size=32))
        with pytest.raises(SetupError, match=words):
            fitted.predict_expression(bare)
        assert not bare.attrs.get("sigmma")


def test_what_is_returned(fitted, tmp_path):
    model = fitted
    found = model.predict_expression(n_neighbors=7)
    tiles = model.get_tile_representation()
    assert found.obs[tiles.obs.columns].equals(tiles.obs)
    assert set(found.obs) - set(tiles.obs) == {"sigmma_alike", "sigmma_least_alike"}
    np.testing.assert_array_equal(found.obsm["spatial"], tiles.obsm["spatial"])
    assert found.var_names.tolist() == model.sdata["a"]["table"].var_names.tolist()
    told = found.uns["sigmma"]
    assert (told["method"], told["scale"], told["n_neighbors"]) == ("retrieval", "all", 7)
    # The library is the median total of the training tiles.
    totals = np.array(
        [counts.sum() for counts in chosen_counts(model.embed_split(split="train"), list(found.var_names))]
    )
    assert told["library"] == np.median(totals)
    assert told["n_train"] == len(totals)
    found.write_h5ad(tmp_path / "expression.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "expression.h5ad").X, found.X)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "knn"}, "method='knn' is not one of 'retrieval', 'ridge'"),
        ({"scale": "mirco"}, "scale='mirco'"),
        ({"n_neighbors": 0}, "n_neighbors=0"),
        ({"interval": 1.0}, "interval=1.0 must be a number between 0 and 1"),
        ({"interval": 0.999}, r"interval=0.999 needs 999 spatial blocks of validation tiles, the model has \d+\."),
        ({"withhold": -0.1}, "withhold=-0.1 must be a number from 0 to 1"),
    ],
)
def test_refusals_before_any_compute(fitted, options, words):
    with pytest.raises(SetupError, match=words):
        fitted.predict_expression(**options)


def test_a_reference_of_too_few_tiles_has_no_ridge(loaded, monkeypatch):
    few = replace(loaded._reference, train=np.arange(len(loaded._reference.train)) < 2)
    monkeypatch.setattr(loaded, "_reference", few)
    with pytest.raises(SetupError, match="Ridge needs 3 training tiles or more, the model has 2"):
        loaded.predict_expression(method="ridge")
    with pytest.warns(ExpressionWarning, match="genes is not known"):  # two tiles share their zeros
        assert loaded.predict_expression().n_vars == 120


class TestAuto:
    def test_each_gene_is_that_of_its_method(self, fitted, alone):
        found = fitted.predict_expression(alone, "auto")
        methods = found.var["method"]
        assert set(methods) <= {"retrieval", "ridge", "encoder", "blend", "mean"}
        assert found.uns["sigmma"]["method"] == "auto"
        for method in ("retrieval", "ridge"):
            part = fitted.predict_expression(alone, method)
            assert (part.var["method"] == method).all()
            same = (methods == method).to_numpy()
            np.testing.assert_allclose(found.X[:, same], part.X[:, same], atol=1e-5)

    def test_is_not_worse_than_its_best_part_on_an_unseen_slide(self, fitted, unseen, alone):
        model = fitted
        found = model.predict_expression(alone, "auto", withhold=None)
        ((embedded, which),) = chosen = model.embed_split(unseen, "all")
        counts = chosen_counts(chosen, list(found.var_names))
        truth = log_expression(counts, found.uns["sigmma"]["library"]).toarray()
        reference = model._reference
        query = Query(embedded.image, encoder_features(model.embedder, embedded))
        parts = predict_parts(query, reference, Prediction("auto", "all", 50, 0.07))
        best = max(np.nanmean(pearson(truth, values[which].astype(float))) for values in parts.values())
        assert np.nanmean(pearson(truth, found.X[which].astype(float))) > best - 0.01

    def test_its_reliability_is_of_choices_made_without_the_tile(self):
        """Genes of noise: the best of three methods on the tiles it is chosen by would look reliable."""
        rng = np.random.default_rng(1)
        reference = made_up(n=200, g=60)
        noise = replace(reference, expression=(3 + rng.normal(size=(200, 60))).astype(np.float16))
        query = Query({s: rng.normal(size=(4, 5)).astype(np.float32) for s in SCALES}, np.zeros((4, 15), np.float16))
        how = Prediction("auto", "all", 5, 0.07)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExpressionWarning)  # genes predicted by their mean
            values, held_out, method = predict_best(query, noise, how)
            var = reliability_of(noise, held_out)
        assert values.shape == (4, 60)
        assert abs(var["reliability"].mean()) < 0.06
        mean = method == "mean"
        train = noise.expression[noise.train].astype(np.float32)
        np.testing.assert_allclose(values[:, mean], np.tile(train.mean(axis=0)[mean], (4, 1)))

    def test_without_validation_tiles_there_is_nothing_to_choose_by(self):
        reference = replace(made_up(), train=np.arange(40) < 35)
        with pytest.raises(SetupError, match=r"method='auto' .* needs 10, the model has 5\. Train with a split"):
            require_enough(reference, Prediction("auto", "all", 5, 0.07))


class TestInterval:
    def test_layers_hold_the_expression_of_another_slide(self, fitted, unseen, alone):
        """A new donor with another stain: coverage is that of blocks, so about what was asked for."""
        found = fitted.predict_expression(alone, interval=0.8, withhold=None)
        ((_, which),) = chosen = fitted.embed_split(unseen, "all")
        truth = log_expression(chosen_counts(chosen, list(found.var_names)), found.uns["sigmma"]["library"]).toarray()
        lower, upper = found.layers["lower"], found.layers["upper"]
        inside = (lower[which] <= truth) & (truth <= upper[which])
        assert 0.7 < inside.mean() < 0.95
        assert (lower >= 0).all()
        assert found.uns["sigmma"]["interval"] == 0.8
        # The same width on all tiles, where it does not end at 0.
        free = (lower > 0).all(axis=0)
        np.testing.assert_allclose(np.ptp((upper - lower)[:, free], axis=0), 0, atol=1e-4)

    def test_withheld_tiles_have_none(self, fitted, alone):
        found = fitted.predict_expression(alone, interval=0.5, withhold=0.01)
        withheld = (found.obs["sigmma_alike"] <= 0.01).to_numpy()
        assert 0 < withheld.sum() < len(withheld)
        for values in (found.X, found.layers["lower"], found.layers["upper"]):
            assert np.isnan(values[withheld]).all()
            assert np.isfinite(values[~withheld]).all()
