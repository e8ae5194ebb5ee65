import os
import shutil

import numpy as np
import pytest
import scanpy as sc
import spatialdata as sd

import sigmma_sc as sg
from sigmma_sc import SIGMMA, _files
from sigmma_sc.errors import SetupError, WriteError
from sigmma_sc.io import results


def files_of(folder):
    """Bytes and number on the disk of each file, by its place."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = (path.read_bytes(), path.stat().st_ino)
    return found


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory):
    """A model on an object that was read from a store, with its embeddings written into the object."""
    path = tmp_path_factory.mktemp("results") / "before.zarr"
    sdata = sg.datasets.simulate_tissue(n_cells=400, seed=0)
    sdata["cells_of_mine"] = sdata["cell_circles"].copy()
    sdata.write(path)
    read = sd.read_zarr(path)
    SIGMMA.setup_spatialdata(read, tile_size=64)
    model = SIGMMA(read, encoder(), n_latent=8)
    model.train(max_epochs=1, split="none", batch_size=16, enable_progress_bar=False)
    model.write_embeddings(n_offsets=1)
    return model


@pytest.fixture
def sdata(model, tmp_path):
    """The object with its results, backed by a store that has none."""
    own = model.sdata
    shutil.copytree(own.path, tmp_path / "slide.zarr")
    read = sd.read_zarr(tmp_path / "slide.zarr")
    other = sd.SpatialData(
        images=dict(read.images), shapes=dict(own.shapes), tables=dict(own.tables), attrs=dict(own.attrs)
    )
    other.path = tmp_path / "slide.zarr"
    return other


def test_results_reach_the_store_and_all_else_stays(sdata):
    image = next(path for path in (sdata.path / "images").rglob("*") if path.is_file() and path.name != "zarr.json")
    image.chmod(0o440)
    before = files_of(sdata.path)
    sg.io.write_results(sdata)
    after = files_of(sdata.path)
    assert image.stat().st_mode & 0o777 == 0o440
    kept = [name for name in before if name.startswith(("images/", "shapes/cell"))]
    assert len(kept) > 20
    assert [name for name in kept if after.get(name) != before[name]] == []  # the same files, not copies
    again = sd.read_zarr(sdata.path)
    for scale in ("micro", "meso", "macro"):
        key = f"X_sigmma_{scale}"
        np.testing.assert_array_equal(again["table"].obsm[key], sdata["table"].obsm[key])
    np.testing.assert_array_equal(again["table"].X.toarray(), sdata["table"].X.toarray())
    assert again["table"].uns["sigmma"]["version"] == sg.__version__
    assert set(again.shapes) == {"cell_circles", "cells_of_mine", "sigmma_tiles_cell_circles"}
    assert again["sigmma_tiles"].n_obs == len(again["sigmma_tiles_cell_circles"])
    assert again.attrs["sigmma"]["tile_size"] == 64
    assert os.listdir(sdata.path.parent) == ["slide.zarr"]
    np.testing.assert_array_equal(sdata["he_image"]["scale0"]["image"], again["he_image"]["scale0"]["image"])

    # A second call replaces what the first wrote.
    images = {name: file for name, file in after.items() if name.startswith("images/")}
    sdata["table"].obsm["X_sigmma_meso"] = sdata["table"].obsm["X_sigmma_meso"] + 1
    sdata.shapes["sigmma_tiles_other"] = sdata.shapes.pop("sigmma_tiles_cell_circles")
    sg.io.write_results(sdata)
    again = sd.read_zarr(sdata.path)
    np.testing.assert_array_equal(again["table"].obsm["X_sigmma_meso"], sdata["table"].obsm["X_sigmma_meso"])
    assert "sigmma_tiles_other" in again.shapes
    assert "sigmma_tiles_cell_circles" not in again.shapes
    assert images == {name: file for name, file in files_of(sdata.path).items() if name.startswith("images/")}


def test_a_disk_without_hard_links_holds_copies(sdata, monkeypatch):
    link = os.link

    def refuse(source, target):
        if "images" in str(source):
            raise OSError("no links")
        link(source, target)

    monkeypatch.setattr(results.os, "link", refuse)
    before = files_of(sdata.path)
    sg.io.write_results(sdata)
    after = files_of(sdata.path)
    images = [name for name in before if name.startswith("images/")]
    assert all(after[name][0] == before[name][0] for name in images)
    assert "X_sigmma_meso" in sd.read_zarr(sdata.path)["table"].obsm


def test_after_an_error_the_store_is_as_before(sdata, monkeypatch):
    before = files_of(sdata.path)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files, "_take_place", fail)
    with pytest.raises(WriteError, match="No space left"):
        sg.io.write_results(sdata)
    assert files_of(sdata.path) == before
    assert os.listdir(sdata.path.parent) == ["slide.zarr"]


def test_what_would_lose_cells_is_refused(sdata):
    before = files_of(sdata.path)
    whole = sdata["table"]
    sdata.tables["table"] = whole[:300].copy()
    with pytest.raises(SetupError, match="'table' has 300 cells, and the store 400"):
        sg.io.write_results(sdata)
    sdata.tables["table"] = whole[:, :50].copy()
    with pytest.raises(SetupError, match="has 50 genes, and the store 120"):
        sg.io.write_results(sdata)
    assert files_of(sdata.path) == before


def test_an_object_without_store_or_results_is_refused(sdata, tmp_path):
    with pytest.raises(SetupError, match="in no store"):
        sg.io.write_results(sg.datasets.simulate_tissue(n_cells=100))
    with pytest.raises(SetupError, match="holds no results"):
        sg.io.write_results(sd.read_zarr(sdata.path))
    with pytest.raises(SetupError, match="sdata is a AnnData"):
        sg.io.write_results(sdata["table"])
    (tmp_path / "slide.zarr" / "zarr.json").unlink()
    with pytest.raises(SetupError, match=r"before 0\.5"):
        sg.io.write_results(sdata)


def test_counts_of_the_store_are_not_lost(sdata):
    table = sdata["table"].copy()
    sdata.tables["table"] = table
    before = sd.read_zarr(sdata.path)["table"].X.copy()
    for change in (sc.pp.normalize_total, sc.pp.log1p):
        table.X = before.copy()
        change(table)
        with pytest.raises(SetupError, match="X of the table 'table' holds other values .* would be lost"):
            sg.io.write_results(sdata)
    assert (before != sd.read_zarr(sdata.path)["table"].X).nnz == 0
    table.X = before.tocsc()  # the same counts in another format
    sg.io.write_results(sdata)
    assert (before != sd.read_zarr(sdata.path)["table"].X).nnz == 0
