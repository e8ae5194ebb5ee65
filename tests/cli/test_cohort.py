from pathlib import Path

import pytest
import spatialdata as sd

from sigmma_sc.cli.cohort import Member, members_of, read_manifest, read_members, sample_key_of
from sigmma_sc.cli.runs import Source
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two stores."""
    place = tmp_path_factory.mktemp("cohort")
    for k in range(2):
        simulate_tissue(n_cells=200, seed=k, microns_per_pixel=1.0).write(place / f"s{k}.zarr")
    return place


def test_stores_without_a_manifest_are_named_by_their_files(folder):
    members = members_of([folder / "s0.zarr", folder / "s1.zarr"], None, Source(folder / "s0.zarr"))
    assert [(member.sample, member.obs) for member in members] == [("s0", {"sample": "s0"}), ("s1", {"sample": "s1"})]
    assert sample_key_of(members, None) == "sample"
    assert sample_key_of(members, "patient") == "patient"
    (single,) = members_of([folder / "s0.zarr"], None, Source(folder / "s0.zarr"))
    assert sample_key_of([single], None) is None
    with pytest.raises(SetupError, match="both named 's0'. Name them by the column 'sample'"):
        members_of([folder / "s0.zarr", folder / "other" / "s0.zarr"], None, Source(folder / "s0.zarr"))
    with pytest.raises(SetupError, match="'a b' names a folder of results"):
        members_of([folder / "s0.zarr", folder / "a b.zarr"], None, Source(folder / "s0.zarr"))
    with pytest.raises(SetupError, match="go with a single Xenium run"):
        members_of([], folder / "cohort.csv", Source(Path(), folder / "he.tif"))
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
