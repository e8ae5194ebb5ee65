import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import sigmma_sc as sg
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError
from sigmma_sc.metrics import niche_agreement
from sigmma_sc.niches.consensus import consensus
from sigmma_sc.niches.leiden import WeightedGraph
from sigmma_sc.niches.neighbours import neighbour_graph

FRESH = """
import sys
import numpy as np
import pandas as pd
from anndata import AnnData
import sigmma_sc as sg
from numba.core import event

compiled = event.RecordingListener()
event.register("numba:compile", compiled)
rng = np.random.default_rng(0)
adata = AnnData(obs=pd.DataFrame(index=np.arange(9000).astype(str)))
adata.obsm["X_sigmma_meso"] = (rng.normal(size=(9000, 16)) + 9 * np.eye(16)[np.arange(9000) % 3]).astype(np.float32)
sg.tl.niches(adata, ["meso"], resolution=0.05)
print(adata.obs["sigmma_niche_meso"].nunique(), len(compiled.buffer))
print(*[name for name in ("pynndescent", "umap") if name in sys.modules])
"""


def table(embedding):
    adata = AnnData(obs=pd.DataFrame(index=[f"c{k}" for k in range(len(embedding))]))
    adata.obsm["X_sigmma_meso"] = np.asarray(embedding, np.float32)
    return adata


@pytest.fixture
def three(rng):
    """Three groups far apart, 80 cells each, and a cell without an embedding in front."""
    cells = rng.normal(size=(240, 8)) + 20 * np.eye(8)[np.repeat([0, 1, 2], 80)]
    return table(np.concatenate([np.full((1, 8), np.nan), cells]))


def test_groups_far_apart_are_niches(three):
    sg.tl.niches(three, ["meso"], resolution=0.1)
    labels = three.obs["sigmma_niche_meso"]
    assert pd.isna(labels.iloc[0])
    confidence = three.obs["sigmma_niche_meso_confidence"]
    np.testing.assert_array_equal(confidence, [np.nan] + [1] * 240)
    assert list(labels.cat.categories) == ["0", "1", "2"]
    truth = pd.Series(np.repeat([0, 1, 2], 80), index=three.obs_names[1:])
    assert (pd.crosstab(labels.iloc[1:], truth) > 0).sum(axis=1).tolist() == [1, 1, 1]


def test_the_graph_is_kept_for_scanpy_where_asked(three):
    import scanpy as sc

    sg.tl.niches(three, ["meso"], resolution=0.1)
    assert not three.obsp
    sg.tl.niches(three, ["meso"], resolution=0.1, keep_graph=True)
    assert set(three.obsp) == {"sigmma_niche_meso_neighbors_distances", "sigmma_niche_meso_neighbors_connectivities"}
    graph = neighbour_graph(three.obsm["X_sigmma_meso"][1:])
    for name in ("distances", "connectivities"):
        kept = three.obsp[f"sigmma_niche_meso_neighbors_{name}"]
        np.testing.assert_array_equal(kept[1:, 1:].toarray(), getattr(graph, name).toarray())
        assert kept[0].nnz == kept[:, 0].nnz == 0  # the cell without an embedding
    assert three.uns["sigmma_niche_meso_neighbors"]["params"]["use_rep"] == "X_sigmma_meso"
    own = three[1:].copy()
    key = "sigmma_niche_meso_neighbors"
    sc.tl.leiden(own, 0.1, neighbors_key=key, flavor="igraph", n_iterations=2, directed=False)
    pairs = set(zip(own.obs["leiden"], own.obs["sigmma_niche_meso"], strict=True))
    assert len(pairs) == 3
    sg.tl.niches(three, ["meso"], resolution=0.1, keep_graph=True)  # its own are replaced
    three.uns["mine_meso_neighbors"] = {}
    with pytest.raises(ExistsError, match="uns.'mine_meso_neighbors'. exists"):
        sg.tl.niches(three, ["meso"], key_added="mine", keep_graph=True)
    assert "mine_meso" not in three.obs


@pytest.mark.slow
def test_umap_of_the_kept_graph(three):
    import scanpy as sc

    sg.tl.niches(three, ["meso"], resolution=0.1, keep_graph=True)
    own = three[1:].copy()
    sc.tl.umap(own, neighbors_key="sigmma_niche_meso_neighbors")
    placed = own.obsm["X_umap"]
    groups = own.obs["sigmma_niche_meso"].cat.codes.to_numpy()
    centres = np.stack([placed[groups == k].mean(axis=0) for k in range(3)])
    nearest = ((placed[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, groups)


def test_own_neighbour_graph_and_key_are_left_alone(three):
    three.uns["neighbors"] = {"mine": 1}
    sg.tl.niches(three, ["meso"], key_added="mine")
    assert three.uns["neighbors"] == {"mine": 1}
    assert not three.obsp
    assert list(three.obs) == ["mine_meso", "mine_meso_confidence"]


def test_prototypes_give_the_same_cells_the_same_niches(three):
    found = sg.tl.niches(three, ["meso"])
    labels, _ = found.assign("meso", three.obsm["X_sigmma_meso"])
    niche = three.obs["sigmma_niche_meso"].to_numpy()[1:]
    assigned = np.asarray(labels)[1:]
    given = assigned != "unlike any"
    assert given.mean() > 0.9
    np.testing.assert_array_equal(assigned[given], niche[given])
    stored = sg.NichePrototypes.from_dict(three.uns["sigmma"]["sigmma_niche_prototypes"])
    np.testing.assert_array_equal(stored.scales["meso"].centres, found.scales["meso"].centres)


def test_samples_are_standardised_before_clustering(three):
    """The same tissue twice, the second time moved and stretched: without samples each niche is found twice."""
    x = np.asarray(three.obsm["X_sigmma_meso"])
    both = table(np.concatenate([x, 5 * x + 1000]))
    both.obs["slide"] = np.repeat(["a", "b"], len(x))
    found = sg.tl.niches(both, ["meso"], resolution=0.1, sample_key="slide")
    first, second = np.split(both.obs["sigmma_niche_meso"].to_numpy(), 2)
    np.testing.assert_array_equal(first.astype(str), second.astype(str))
    assert found.by_sample
    sg.tl.niches(both, ["meso"], resolution=0.1, key_added="apart")
    assert both.obs["apart_meso"].nunique() == 2 * both.obs["sigmma_niche_meso"].nunique()
    with pytest.raises(MissingKeyError, match="slice"):
        sg.tl.niches(both, ["meso"], sample_key="slice")


def test_what_is_recorded_survives_a_file(three, tmp_path):
    three.uns["sigmma"] = {"encoder": "own"}
    sg.tl.niches(three, ["meso"], resolution=0.1)
    sg.tl.niches(three, ["meso"], resolution="auto", key_added="mine", n_runs=3)
    three.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert read.uns["sigmma"]["encoder"] == "own"
    records = read.uns["sigmma"]["niches"]
    assert set(records) == {"sigmma_niche_meso", "mine_meso"}
    assert records["sigmma_niche_meso"]["resolution"] == 0.1
    assert records["sigmma_niche_meso"]["table"]["n_niches"].tolist() == [3]
    assert records["mine_meso"]["n_runs"] == 3
    pd.testing.assert_frame_equal(
        records["mine_meso"]["table"], three.uns["sigmma"]["niches"]["mine_meso"]["table"], check_dtype=False
    )
    assert read.obs["mine_meso_confidence"].dtype == np.float32


def test_auto_finds_the_groups_and_says_so(three, caplog):
    sg.tl.niches(three, ["meso"], resolution="auto", n_runs=3)
    assert three.obs["sigmma_niche_meso"].nunique() == 3
    record = three.uns["sigmma"]["niches"]["sigmma_niche_meso"]
    chosen = record["table"].query("chosen")
    assert chosen["resolution"].tolist() == [record["resolution"]]
    assert chosen["n_niches"].tolist() == [3]
    assert f"meso: resolution {record['resolution']} chosen by stability 1.00, 3 niches" in caplog.text


def test_cells_at_a_border_keep_their_niche_less_often(rng):
    """A strip without groups: Leiden cuts it in other places each time."""
    strip = table(np.column_stack([np.linspace(0, 30, 600), rng.normal(size=600)]))
    sg.tl.niches(strip, ["meso"], n_runs=8)
    niche = strip.obs["sigmma_niche_meso"].cat.codes.to_numpy()
    confidence = strip.obs["sigmma_niche_meso_confidence"].to_numpy()
    assert set(np.round(8 * confidence, 5)) <= set(range(9))
    near = [len(set(niche[max(0, k - 15) : k + 15])) > 1 for k in range(600)]
    assert confidence[near].mean() < confidence[np.logical_not(near)].mean()


@pytest.fixture
def hierarchy(rng):
    """Embeddings of three scales without any structure in common, and two cells without."""
    adata = table(np.zeros((302, 4)))
    for scale in ("micro", "meso", "macro"):
        matrix = rng.normal(size=(302, 4)).astype(np.float32)
        matrix[:2] = np.nan
        adata.obsm[f"X_sigmma_{scale}"] = matrix
    return adata


@pytest.mark.parametrize("resolution", [1.5, "auto"])
def test_nested_niches_hold_whole_finer_ones(hierarchy, resolution):
    sg.tl.niches(hierarchy, resolution=resolution, nested=True, n_runs=2, min_size=25)
    obs = hierarchy.obs
    for finer, coarser in (("micro", "meso"), ("meso", "macro")):
        shared = pd.crosstab(obs[f"sigmma_niche_{finer}"], obs[f"sigmma_niche_{coarser}"])
        assert (shared > 0).sum(axis=1).tolist() == [1] * len(shared)
        assert obs[f"sigmma_niche_{coarser}"].value_counts().min() >= 25
        assert obs[f"sigmma_niche_{coarser}"].isna().tolist() == [True] * 2 + [False] * 300
    sg.tl.niches(hierarchy, ["micro", "meso"], resolution=1.5, n_runs=2)
    apart = pd.crosstab(obs["sigmma_niche_micro"], obs["sigmma_niche_meso"])
    assert (apart > 0).sum(axis=1).min() > 1


def test_niches_are_numbered_by_size_and_small_ones_joined(rng):
    cells = rng.normal(size=(140, 5)) + 9 * np.eye(5)[np.repeat([0, 1, 2], [20, 80, 40])]
    adata = table(cells)
    sg.tl.niches(adata, ["meso"], resolution=0.1, n_neighbors=30)
    assert adata.obs["sigmma_niche_meso"].value_counts(sort=False).tolist() == [80, 40, 20]
    sg.tl.niches(adata, ["meso"], resolution=0.1, n_neighbors=30, min_size=30)
    # Of 30 neighbours some of each cell of the smallest group are of another, so it joins that one.
    assert adata.obs["sigmma_niche_meso"].value_counts().min() >= 40
    assert adata.obs["sigmma_niche_meso"].notna().all()


def test_a_small_niche_without_a_link_stays_and_is_logged(three, caplog):
    sg.tl.niches(three, ["meso"], resolution=0.1, n_neighbors=5, min_size=100)
    assert three.obs["sigmma_niche_meso"].nunique() == 3
    assert "3 niches of fewer than 100 cells have no link to another niche and stay." in caplog.text


def test_graphs_of_several_models_are_averaged(rng):
    """One embedding parts left from right, the other front from back; both together part all four."""
    where = np.arange(240) % 4
    adata = table(rng.normal(size=(240, 3)) + 30 * np.eye(3)[where % 2])
    adata.obsm["other"] = rng.normal(size=(240, 3)) + 30 * np.eye(3)[where // 2]
    adata.obsm["other"][0] = np.nan
    sg.tl.niches(adata, ["meso"], resolution=0.3, use_rep={"meso": "other"}, key_added="one")
    assert (pd.crosstab(adata.obs["one_meso"], where // 2) > 0).sum(axis=1).tolist() == [1, 1]
    sg.tl.niches(adata, ["meso"], resolution=1, use_rep={"meso": ["X_sigmma_meso", "other"]})
    assert adata.obs["sigmma_niche_meso"].isna().tolist() == [True] + [False] * 239
    graphs = [neighbour_graph(adata.obsm[key][1:]).connectivities for key in ("X_sigmma_meso", "other")]
    mean = WeightedGraph.from_connectivities((graphs[0] + graphs[1]) / 2)
    expected = consensus(mean, np.ones(239, int), 1.0, 5, 0).labels
    assert niche_agreement(adata.obs["sigmma_niche_meso"].iloc[1:].to_numpy(), expected)["ari"] == 1


def test_same_labels_each_time(three):
    sg.tl.niches(three, ["meso"], resolution=2, seed=4)
    first = three.obs.copy()
    sg.tl.niches(three, ["meso"], resolution=2, seed=4)
    assert first.equals(three.obs)


def test_refusals(three):
    with pytest.raises(MissingKeyError, match="X_sigmma_micro"):
        sg.tl.niches(three)
    for name, value in (
        ("resolution", 0), ("resolution", "'best'"), ("n_neighbors", 1), ("n_neighbors", 1.5), ("n_runs", 1), ("seed", -1),
        ("min_size", 0), ("min_size", 241),
    ):  # fmt: skip
        with pytest.raises(SetupError, match=f"{name}={value}"):
            sg.tl.niches(three, ["meso"], **{name: value.strip("'") if isinstance(value, str) else value})
    with pytest.raises(MissingKeyError, match="other"):
        sg.tl.niches(three, ["meso"], use_rep={"meso": ["X_sigmma_meso", "other"]})
    with pytest.raises(MissingKeyError, match="scale='meso'"):
        sg.tl.niches(three, ["meso"], use_rep={"micro": "X_sigmma_meso"})
    with pytest.raises(SetupError, match="names no embedding"):
        sg.tl.niches(three, ["meso"], use_rep={"meso": []})
    with pytest.raises(SetupError, match=r"need 2 cells with an embedding; obsm\['X_sigmma_meso'\] has 1"):
        sg.tl.niches(three[:2].copy(), ["meso"])
    assert not list(three.obs)
    assert not three.uns


def test_cells_that_are_all_the_same_have_no_niches_and_copies_of_one_cell_have_one(three):
    three.obsm["same"] = np.ones_like(three.obsm["X_sigmma_meso"])
    with pytest.raises(
        SetupError, match=r"obsm\['same'\] is the same for all but 0 of 241 cells, so there is nothing to cluster"
    ):
        sg.tl.niches(three, ["meso"], use_rep={"meso": "same"})
    three.obsm["same"][5] = 2
    with pytest.raises(SetupError, match=r"is the same for all but 1 of 241 cells"):
        sg.tl.niches(three, ["meso"], use_rep={"meso": "same"})
    # Constant within each sample.
    three.obs["sample"] = np.repeat(["a", "b"], [121, 120])
    three.obsm["same"] = np.repeat([[1.0, 2.0], [3.0, 4.0]], [121, 120], axis=0)
    with pytest.raises(SetupError, match=r"is the same for all but 0 of 241 cells"):
        sg.tl.niches(three, ["meso"], use_rep={"meso": "same"}, sample_key="sample")
    assert list(three.obs) == ["sample"]
    copies = np.arange(three.n_obs) <= 80
    three.obsm["X_sigmma_meso"][copies] = 9
    sg.tl.niches(three, ["meso"])
    niche = three.obs["sigmma_niche_meso"].astype(object)
    assert niche[copies].nunique() == 1
    assert not (set(niche[copies]) & set(niche[~copies]))


def test_a_number_of_niches_is_that_after_small_ones_have_joined(rng):
    blobs = table(rng.normal(size=(400, 8)) + 20 * np.eye(8)[np.repeat([0, 1, 2, 3], 100)])
    sg.tl.niches(blobs, ["meso"], resolution=20.0, min_size=60)
    told = blobs.uns["sigmma"]["niches"]["sigmma_niche_meso"]["table"]
    assert told["n_niches"].tolist() == [blobs.obs["sigmma_niche_meso"].nunique()]
    assert told["n_niches"].iloc[0] <= 6


def test_niches_of_noise_are_doubted_and_those_of_tissue_are_not(rng, three, caplog):
    sg.tl.niches(three, ["meso"])
    assert "may be no niches" not in caplog.text
    sg.tl.niches(table(rng.normal(size=(600, 30))), ["meso"])
    assert "meso: at no resolution do two runs agree" in caplog.text


def test_another_scale_leaves_the_prototypes_of_the_first(three):
    three.obsm["X_sigmma_micro"] = three.obsm["X_sigmma_meso"]
    first = sg.tl.niches(three, ["micro"])
    second = sg.tl.niches(three, ["meso"])
    assert (list(first.scales), list(second.scales)) == (["micro"], ["meso"])
    stored = sg.NichePrototypes.from_dict(three.uns["sigmma"]["sigmma_niche_prototypes"])
    assert list(stored.scales) == ["micro", "meso"]
    np.testing.assert_array_equal(stored.scales["micro"].centres, first.scales["micro"].centres)


def test_a_graph_of_ones_own_is_never_replaced(three):
    own = sparse.csr_matrix((three.n_obs, three.n_obs))
    three.obsp["sigmma_niche_meso_neighbors_distances"] = own
    with pytest.raises(ExistsError, match=r"obsp\['sigmma_niche_meso_neighbors_distances'\] exists"):
        sg.tl.niches(three, ["meso"], keep_graph=True)
    assert not list(three.obs)


def test_scales_nest_from_fine_to_coarse(three):
    three.obsm["X_sigmma_macro"] = three.obsm["X_sigmma_meso"]
    with pytest.raises(SetupError, match=r"must go from fine to coarse, such as \['meso', 'macro'\]"):
        sg.tl.niches(three, ["macro", "meso"], nested=True)
    with pytest.raises(SetupError, match=r"use_rep\['meso'\]=5 names no embedding"):
        sg.tl.niches(three, ["meso"], use_rep={"meso": 5})
    assert not list(three.obs)


def test_a_seed_that_no_generator_takes_is_refused_before_any_work(three):
    with pytest.raises(SetupError, match="seed=4294967296"):
        sg.tl.niches(three, ["meso"], seed=2**32)
    assert not list(three.obs)


@pytest.mark.slow
def test_a_fresh_process_compiles_nothing_for_many_cells():
    run = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    counts, *imported = run.stdout.splitlines()
    assert counts.split() == ["3", "0"]
    assert imported == [""]
