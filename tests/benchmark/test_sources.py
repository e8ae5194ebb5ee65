import numpy as np
import pytest

from sigmma_sc.benchmark import DataSpec
from sigmma_sc.benchmark.sources import encoder_of, load
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.frame import affine_to, apply_affine
from sigmma_sc.tissue.setup import resolve_slides, stored_setup

SMALL = {"simulate": {"n_cells": 300, "seed": 0}, "setup": {"tile_size": 64}}


def test_a_data_set_is_loaded_once_and_set_up():
    sdata = load(DataSpec(name="a", **SMALL))
    assert stored_setup(sdata).tile_size == 64
    # Splits and options do not make another tissue of it.
    assert load(DataSpec(name="a", **SMALL, splits=("end",), options={"min_cells": 3})) is sdata
    assert load(DataSpec(name="a", simulate={"n_cells": 300, "seed": 1}, setup={"tile_size": 64})) is not sdata


def test_a_window_of_a_store(tmp_path):
    whole = simulate_tissue(n_cells=900, seed=0)
    whole.write(tmp_path / "a.zarr")
    setup = {"tile_size": 64, "microns_per_pixel": 0.5}
    spec = DataSpec(name="a", store=str(tmp_path / "a.zarr"), setup=setup)
    assert load(spec)["table"].n_obs == 900
    x = centres(whole)[:, 0]
    middle = float(np.median(x))
    window = (float(x.min()) - 1, -1e5, middle, 1e5)
    sdata = load(DataSpec(name="a", store=str(tmp_path / "a.zarr"), setup=setup, window=window))
    (slide,) = resolve_slides(sdata, stored_setup(sdata))
    assert len(slide.rows) == pytest.approx(450, abs=30)  # a circle on the line is in
    assert centres(sdata)[:, 0].max() < middle + 50


def centres(sdata):
    """Cells in the coordinate system, ``(n, 2)``."""
    points = sdata["cell_circles"].geometry
    return apply_affine(affine_to(sdata["cell_circles"], "global", "cells"), np.column_stack([points.x, points.y]))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(SetupError, match=r"datasets\['a'\]: store .*no.zarr does not exist"):
        load(DataSpec(name="a", store=str(tmp_path / "no.zarr")))
    with pytest.raises(SetupError, match=r"datasets\['a'\] reference='nich' is no column of obs, which has"):
        load(DataSpec(name="a", **SMALL, reference="nich"))
    with pytest.raises(SetupError, match=r"datasets\['a'\] hest={'root': 'x'} names no samples"):
        load(DataSpec(name="a", hest={"root": "x"}))


def test_encoders_by_name_or_with_arguments(monkeypatch):
    given = []
    monkeypatch.setattr("sigmma_sc.encoders.encoder.get_encoder", lambda *name, **more: given.append((name, more)))
    encoder_of("resnet50")
    encoder_of({"name": "resnet50", "weights": "w.pt"})
    assert given == [(("resnet50",), {}), ((), {"name": "resnet50", "weights": "w.pt"})]
