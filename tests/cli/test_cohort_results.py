import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import sigmma_sc as sg
from sigmma_sc import SIGMMA, cli
from sigmma_sc.cli.cohort_results import hand_back, joint_table
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three stores of unlike sizes, of which one is damaged."""
    place = tmp_path_factory.mktemp("cohort")
    for k, n_cells in enumerate((700, 900, 800)):
        sdata = simulate_tissue(n_cells=n_cells, seed=k, microns_per_pixel=1.0)
        del sdata["table"].obs["donor"]
        sdata.write(place / f"s{k}.zarr")
    (place / "broken.zarr").mkdir()
    return place


@pytest.fixture(scope="module")
def results(folder):
    manifest = folder / "cohort.csv"
    lines = [
        "path,sample,donor,condition",
        "s0.zarr,A,d1,ill",
        "s1.zarr,B,d2,well",
        "s2.zarr,C,d3,ill",
        "broken.zarr,D,d4,ill",
    ]
    manifest.write_text("\n".join(lines))
    arguments = ["--manifest", manifest, "--out", folder / "run", "--epochs", 2, "--resolution", 0.5]
    command = ["train", *map(str, arguments)]
    with pytest.raises(SetupError, match=r"Slide 'D' .*broken.zarr.* To go on without it, pass --skip-failed"):
        cli.app(command, standalone_mode=False)
    assert not (folder / "run").exists()
    cli.app([*command, "--skip-failed"], standalone_mode=False)
    return folder / "run"


@pytest.mark.slow
def test_a_run_has_one_model_joint_niches_and_a_folder_for_each_slide(results):
    names = {path.name for path in results.iterdir()}
    assert names == {
        "model", "retrieval.csv", "history.csv", "niches.parquet", "niches.csv", "markers.csv", "training.png", "slides",
        "run.json",
    }  # fmt: skip
    assert sorted(path.name for path in (results / "slides").iterdir()) == ["A", "B", "C"]
    made = json.loads((results / "run.json").read_text())
    assert [Path(made["slides"][name]).name for name in "ABC"] == ["s0.zarr", "s1.zarr", "s2.zarr"]
    assert "broken.zarr is no SpatialData store" in made["left_out"]["D"]
    # Whole donors are held out.
    assert (
        sorted(pd.read_csv(results / "retrieval.csv")["slide"].unique()) == ["C/cell_circles"]
        or made["settings"]["split"]
    )
    table = pd.read_parquet(results / "niches.parquet")
    assert table["sample"].value_counts().to_dict() == {"A": 700, "B": 900, "C": 800}
    for sample, condition, donor in (("A", "ill", "d1"), ("B", "well", "d2"), ("C", "ill", "d3")):
        place = results / "slides" / sample
        assert {"cells.zarr", "niches.png", "registration.png"} == {path.name for path in place.iterdir()}
        cells = sd.read_zarr(place / "cells.zarr")["table"]
        assert set(cells.obs["condition"]) == {condition}
        assert set(cells.obs["donor"]) == {donor}
        own = table[table["sample"] == sample]
        for scale in ("micro", "meso", "macro"):
            assert own[f"niche_{scale}"].tolist() == cells.obs[f"sigmma_niche_{scale}"].astype(object).tolist()
        assert np.isfinite(cells.obsm["X_sigmma_meso"]).all()


@pytest.mark.slow
def test_the_model_gives_the_niches_to_a_slide_again(results, folder):
    sdata = sd.read_zarr(folder / "s1.zarr")
    SIGMMA.setup_spatialdata(sdata)
    model = SIGMMA.load(results / "model", sdata)
    model.write_embeddings()
    sg.tl.assign_niches(sdata["table"], model.niches)
    own = pd.read_parquet(results / "niches.parquet").query("sample == 'B'")
    known = sdata["table"].obs["sigmma_niche_meso"].astype(str).to_numpy()
    assert (known == own["niche_meso"].to_numpy())[known != "unlike any"].mean() > 0.9


@pytest.mark.slow
def test_the_model_embeds_a_store_without_donors_and_a_report_of_the_cohort_is_told(results, folder, tmp_path):
    out = tmp_path / "out"
    cli.app(
        ["embed", str(folder / "s0.zarr"), "--model", str(results / "model"), "--out", str(out)], standalone_mode=False
    )
    assert "donor" not in sd.read_zarr(out / "cells.zarr")["table"].obs
    with pytest.raises(SetupError, match="is of several slides, and a report is of one run on one store"):
        cli.app(["report", str(results)], standalone_mode=False)
    cli.app(["report", str(out)], standalone_mode=False)
    assert (out / "report.html").exists()


def test_cells_of_slides_are_joined_and_get_their_niches_back():
    slides = {"a": simulate_tissue(n_cells=120, seed=0), "b": simulate_tissue(n_cells=100, seed=1)}
    slides["b"].tables["table"] = slides["b"]["table"][:, ::-1][:, 2:].copy()  # another order, and two genes fewer
    for number, sdata in enumerate(slides.values()):
        SIGMMA.setup_spatialdata(sdata)
        table = sdata["table"]
        table.obs["sigmma_covered"] = True
        table.obsm["X_sigmma_meso"] = np.full((table.n_obs, 2), number, np.float32)
        table.uns["sigmma"] = {"date": number}
    joint = joint_table(slides, ["meso"])
    tables = [sdata["table"] for sdata in slides.values()]
    names = [f"a/{cell}" for cell in tables[0].obs_names] + [f"b/{cell}" for cell in tables[1].obs_names]
    assert joint.obs_names.tolist() == names
    assert set(joint.var_names) == set(tables[1].var_names)
    for name, table in zip("ab", tables, strict=True):
        np.testing.assert_array_equal(
            joint[joint.obs["sample"] == name].X.toarray(), table[:, joint.var_names].X.toarray()
        )
    assert joint.obsm["X_sigmma_meso"][:, 0].tolist() == [0] * 120 + [1] * 100
    joint.obs["sigmma_niche_meso"] = pd.Categorical(["0"] * 120 + ["1"] * 100)
    joint.obs["sigmma_niche_meso_confidence"] = np.arange(220, dtype=np.float32)
    joint.uns["sigmma"] = {"niches": {"sigmma_niche_meso": {"resolution": 0.5}}}
    hand_back(joint, slides, ["meso"])
    assert (tables[1].obs["sigmma_niche_meso"] == "1").all()
    assert tables[1].obs["sigmma_niche_meso"].cat.categories.tolist() == ["0", "1"]
    assert tables[1].obs["sigmma_niche_meso_confidence"].tolist() == list(range(120, 220))
    assert tables[1].uns["sigmma"] == {"date": 1, "niches": {"sigmma_niche_meso": {"resolution": 0.5}}}
