import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

from sigmma_sc import SIGMMA, cli
from sigmma_sc.cli.cohort import Member, members_of, read_manifest, read_members, sample_key_of
from sigmma_sc.cli.runs import Source
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError


def run(*arguments):
    """Run the command as the shell would; its exit code."""
    argv, sys.argv = sys.argv, ["sigmma-sc", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = argv
    return 0


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
    assert run("train", *arguments) == 2
    assert not (folder / "run").exists()
    assert run("train", *arguments, "--skip-failed") == 0
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
    import sigmma_sc as sg

    sdata = sd.read_zarr(folder / "s1.zarr")
    SIGMMA.setup_spatialdata(sdata)
    model = SIGMMA.load(results / "model", sdata)
    model.write_embeddings()
    sg.tl.assign_niches(sdata["table"], model.niches)
    own = pd.read_parquet(results / "niches.parquet").query("sample == 'B'")
    known = sdata["table"].obs["sigmma_niche_meso"].astype(str).to_numpy()
    assert (known == own["niche_meso"].to_numpy())[known != "unlike any"].mean() > 0.9


def test_stores_without_a_manifest_are_named_by_their_files(folder):
    members = members_of([folder / "s0.zarr", folder / "s1.zarr"], None, Source(folder / "s0.zarr"))
    assert [(member.sample, member.obs) for member in members] == [("s0", {"sample": "s0"}), ("s1", {"sample": "s1"})]
    assert sample_key_of(members, None) == "sample"
    assert sample_key_of(members, "patient") == "patient"
    (single,) = members_of([folder / "s0.zarr"], None, Source(folder / "s0.zarr"))
    assert sample_key_of([single], None) is None
    with pytest.raises(SetupError, match="both named 's0'. Name them by the column 'sample'"):
        members_of([folder / "s0.zarr", folder / "other" / "s0.zarr"], None, Source(folder / "s0.zarr"))
    with pytest.raises(SetupError, match="No slide is given. Name one store or more, or pass --manifest"):
        members_of([], None, Source(Path()))
    with pytest.raises(SetupError, match="is given beside --manifest"):
        members_of([folder / "s0.zarr"], folder / "cohort.csv", Source(Path()))


def test_a_manifest_is_read_line_by_line(folder, tmp_path):
    manifest = folder / "all.csv"
    manifest.write_text(f"path, sample,image,microns_per_pixel,age\n{folder / 's0.zarr'},a,he,0.25,61\ns1.zarr,,,,58\n")
    first, second = read_manifest(manifest)
    assert first == Member("a", Source(folder / "s0.zarr"), "he", 0.25, {"age": "61", "sample": "a"})
    assert second == Member("s1", Source(folder / "s1.zarr"), None, None, {"age": "58", "sample": "s1"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no CSV file with a header"),
        ("path,sample\n", "has no slide"),
        ("store,sample\ns0.zarr,a\n", "has no column 'path', only 'store', 'sample'"),
        ("path\nnowhere.zarr\n", r"line 2: path='nowhere.zarr' does not exist in"),
        ("path\ns0.zarr\n\ns0.zarr\n", r"line 3: sample='s0' is the name of an earlier line"),
        ("path,sample\ns0.zarr,a/b\n", r"line 2: sample='a/b' names a folder"),
        ("path,sample\ns0.zarr,..\n", r"line 2: sample='\.\.' names a folder"),
        ("path,donor\ns0.zarr,d1\ns1.zarr,\n", "line 3: donor is empty. Fill it in for every slide"),
        ("path,microns_per_pixel\ns0.zarr,a\n", r"line 2: microns_per_pixel='a' must be a positive number"),
        ("path,microns_per_pixel\ns0.zarr,0\n", r"line 2: microns_per_pixel='0' must be a positive number"),
        ("path,microns_per_pixel\ns0.zarr,inf\n", r"line 2: microns_per_pixel='inf' must be a positive number"),
    ],
)
def test_mistakes_in_a_manifest_are_told_by_line(folder, text, told):
    manifest = folder / "wrong.csv"
    manifest.write_text(text)
    with pytest.raises(SetupError, match=told):
        read_manifest(manifest)


def test_what_a_manifest_says_never_replaces_what_a_store_says(folder):
    sdata = sd.read_zarr(folder / "s0.zarr")
    sdata["table"].obs["donor"] = "d9"
    members = [Member("a", Source(folder / "s0.zarr"), obs={"donor": "d1"}), Member("b", Source(folder / "s1.zarr"))]
    with pytest.raises(SetupError, match=r"Slide 'a' .*obs\['donor'\] of the store is 'd9', and the cohort says 'd1'"):
        read_members(members, "table", lambda source: sdata, lambda sdata, member: None, skip=False)
    with pytest.raises(SetupError, match="All 1 slides fail|obs"):
        read_members(members[:1], "table", lambda source: sdata, lambda sdata, member: None, skip=True)
    assert (sdata["table"].obs["donor"] == "d9").all()
