import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from safetensors.numpy import save_file

from sigmma_sc import NichePrototypes
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError
from sigmma_sc.niches.prototypes import ScalePrototypes, fit_prototypes, require_prototypes
from sigmma_sc.niches.standardise import standardise

BY_HAND = NichePrototypes(
    {
        "meso": ScalePrototypes(
            ("a", "b"), np.array([[0, 0], [4, 0], [10, 0]], np.float32), np.array([0, 0, 1]), np.array([2.0, 3.0])
        )
    }
)


@pytest.fixture
def blobs(rng):
    """Two blobs of 400 cells, and a niche that is two blobs of 200 cells around the first."""
    middle = np.repeat([[0, 0], [8, 0], [0, 8], [0, -8]], [400, 400, 200, 200], axis=0)
    x = middle + rng.normal(size=middle.shape)
    niche = np.repeat(["round", "other", "split"], [400, 400, 400])
    return x, pd.Categorical(niche, categories=["split", "round", "other"])


def equal(one, other):
    assert one.quantile == other.quantile
    assert one.by_sample == other.by_sample
    assert list(one.scales) == list(other.scales)
    for name, own in one.scales.items():
        assert own.names == other.scales[name].names
        for part in ("centres", "niche", "limits"):
            np.testing.assert_array_equal(getattr(own, part), getattr(other.scales[name], part))


def test_a_cell_gets_the_niche_of_the_nearest_centre_within_its_limit():
    x = [[1, 0], [4, 1], [9, 0], [6.5, 0], [13.5, 0], [np.nan, 0], [0, 1000]]
    niche, score = BY_HAND.assign("meso", x)
    assert list(niche.categories) == ["a", "b", "unlike any"]
    assert niche.tolist()[:5] == ["a", "a", "b", "unlike any", "unlike any"]
    assert pd.isna(niche[5])
    assert niche[6] == "unlike any"
    # (1, 0) is 1 from a and 9 from b; (4, 1) is 1 and √37; (9, 0) is 1 from b and 5 from a.
    np.testing.assert_allclose(score[:3], [1 - 1 / 9, 1 - 1 / np.sqrt(37), 1 - 1 / 5])
    assert np.isnan(score[3:]).all()


def test_new_cells_of_the_same_blobs_get_their_niche(blobs, rng):
    x, niche = blobs
    found = NichePrototypes.fit({"meso": x}, {"meso": niche})
    new = x + rng.normal(0, 0.1, x.shape)
    given, score = found.assign("meso", new)
    assert list(given.categories) == ["split", "round", "other", "unlike any"]
    assert (np.asarray(given) == np.asarray(niche)).mean() > 0.95
    # One centre cannot stand for a niche that lies around another one.
    assert (np.asarray(given)[800:] == "split").mean() > 0.95
    assert ((score > 0) & (score <= 1))[np.asarray(given) != "unlike any"].all()


def test_the_quantile_is_the_share_of_cells_within_their_limit(blobs):
    x, niche = blobs
    for quantile in (0.5, 0.9, 1.0):
        own = NichePrototypes.fit({"meso": x}, {"meso": niche}, quantile=quantile).scales["meso"]
        within = own.distances(x)[np.arange(len(x)), niche.codes] <= own.limits[niche.codes]
        for k in range(3):
            assert abs(within[niche.codes == k].mean() - quantile) < 0.01


def test_cells_far_away_are_unlike_any(blobs):
    x, niche = blobs
    found = NichePrototypes.fit({"meso": x}, {"meso": niche}, quantile=1.0)
    far = np.array([[40, 40], [-30, 0], [4, 4.1]])
    given, score = found.assign("meso", far)
    assert given.tolist() == ["unlike any"] * 3
    assert np.isnan(score).all()
    given, _ = found.assign("meso", x)
    assert "unlike any" not in given.tolist()


def test_a_category_without_cells_stays_and_is_given_to_none(blobs):
    x, niche = blobs
    wider = niche.add_categories(["empty"])
    given, _ = NichePrototypes.fit({"meso": x}, {"meso": wider}).assign("meso", x)
    assert list(given.categories) == ["split", "round", "other", "empty", "unlike any"]
    assert "empty" not in given.tolist()


def test_a_niche_of_one_cell_and_cells_at_one_place():
    x = np.array([[0.0, 0], [5, 5], [5, 5], [5, 5]])
    given, score = NichePrototypes.fit({"meso": x}, {"meso": ["a", "b", "b", "b"]}).assign("meso", x)
    assert given.tolist() == ["a", "b", "b", "b"]
    np.testing.assert_array_equal(score, 1)
    given, _ = NichePrototypes.fit({"meso": x}, {"meso": ["a", "a", "a", "a"]}, quantile=1.0).assign("meso", x)
    assert set(given) == {"a"}


def test_samples_that_are_moved_and_stretched_get_the_same_niches(blobs):
    x, niche = blobs
    moved = x * [3, 2] + [50, -20]
    table = AnnData(
        obs=pd.DataFrame({"slide": ["s1"] * len(x), "n_meso": niche}, index=np.arange(len(x)).astype(str)),
        obsm={"X_sigmma_meso": x},
        uns={"sigmma": {"n_offsets": 16}},
    )
    found = fit_prototypes(table, {"meso": standardise(x, table.obs["slide"])}, "n", by_sample=True)
    expected, _ = found.assign("meso", x, ["s1"] * len(x))
    given, _ = found.assign("meso", np.r_[x, moved], ["a"] * len(x) + ["b"] * len(x))
    assert given.tolist() == expected.tolist() * 2
    assert table.uns["sigmma"]["n_offsets"] == 16
    equal(NichePrototypes.from_dict(table.uns["sigmma"]["n_prototypes"]), found)
    with pytest.raises(SetupError, match="Pass the samples: sample_key=…"):
        found.assign("meso", x)
    with pytest.raises(SetupError, match="Leave sample_key out"):
        BY_HAND.assign("meso", x, ["s1"] * len(x))


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_they_come_back_from_a_table_on_disk(blobs, tmp_path, kind):
    x, niche = blobs
    found = NichePrototypes.fit({"meso": x, "macro": x}, {"meso": niche, "macro": niche}, by_sample=True, quantile=0.9)
    table = AnnData(np.zeros((2, 1), np.float32), uns={"sigmma": {"sigmma_niche_prototypes": found.to_dict()}})
    path = tmp_path / f"table.{kind}"
    if kind == "h5ad":
        table.write_h5ad(path)
        again = anndata.read_h5ad(path)
    else:
        table.write_zarr(path)
        again = anndata.read_zarr(path)
    equal(NichePrototypes.from_dict(again.uns["sigmma"]["sigmma_niche_prototypes"]), found)


def test_they_come_back_from_a_file_also_from_arrays_that_are_not_contiguous(blobs, tmp_path):
    own = NichePrototypes.fit({"meso": blobs[0]}, {"meso": blobs[1]}).scales["meso"]
    turned = ScalePrototypes(own.names, np.asfortranarray(own.centres), own.niche, own.limits[::-1])
    assert not turned.centres.flags.c_contiguous
    found = NichePrototypes({"meso": turned}, quantile=0.9)
    found.save(tmp_path / "deep" / "niches.safetensors")
    equal(NichePrototypes.load(tmp_path / "deep" / "niches.safetensors"), found)
    with pytest.raises(ExistsError, match="overwrite=True"):
        found.save(tmp_path / "deep" / "niches.safetensors")
    BY_HAND.save(tmp_path / "deep" / "niches.safetensors", overwrite=True)
    equal(NichePrototypes.load(tmp_path / "deep" / "niches.safetensors"), BY_HAND)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["niches.safetensors"]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(MissingKeyError, match="does not exist"):
        NichePrototypes.load(tmp_path / "none")
    (tmp_path / "text").write_text("nothing")
    save_file({"meso.centres": np.zeros((2, 2))}, tmp_path / "tensors")
    save_file({"x": np.zeros(2)}, tmp_path / "lacking", metadata={"sigmma_sc": '{"scales": {"meso": {"names": []}}}'})
    for name in ("text", "tensors", "lacking"):
        with pytest.raises(SetupError, match="was not written by"):
            NichePrototypes.load(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"quantile": 0}, "quantile=0 must"),
        ({"quantile": 1.1}, "quantile=1.1 must"),
        ({"seed": -1}, "seed=-1"),
        ({"labels": {"meso": ["a"]}}, "must name the same cells"),
        ({"labels": {"meso": ["a", "unlike any"]}}, "a name of its own"),
        ({"labels": {"meso": [None, None]}}, "both an embedding and a niche"),
        ({"embeddings": {"meso": [[np.nan], [np.nan]]}}, "both an embedding and a niche"),
        ({"embeddings": {"meso": [1.0, 2.0]}}, "must name the same cells"),
    ],
)
def test_refusals(change, match):
    arguments = {"embeddings": {"meso": [[0.0], [1.0]]}, "labels": {"meso": ["a", "b"]}, **change}
    with pytest.raises(SetupError, match=match):
        NichePrototypes.fit(**arguments)


def test_other_embeddings_are_refused():
    with pytest.raises(MissingKeyError, match="scale='macro'"):
        BY_HAND.assign("macro", [[0, 0]])
    with pytest.raises(SetupError, match="the prototypes have 2 columns"):
        BY_HAND.assign("meso", [[0, 0, 0]])
    require_prototypes(BY_HAND, ("meso",), 2)
    for scales, width in ((("micro",), 2), (("meso",), 3)):
        with pytest.raises(SetupError, match="Find them on the embeddings of this model"):
            require_prototypes(BY_HAND, scales, width)
    with pytest.raises(SetupError, match="niches is a dict"):
        require_prototypes({}, ("meso",), 2)
