import json

import pytest
import spatialdata as sd

from sigmma_sc import SIGMMA
from sigmma_sc.cli.runs import Source, add_images, read_run, source_of, write_run
from sigmma_sc.errors import SetupError


def test_a_run_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/sigmma-sc", "train", "a slide.zarr"])
    with pytest.raises(SetupError, match=r"lacks cells.zarr.*sigmma-sc train"):
        read_run(tmp_path)
    (tmp_path / "cells.zarr").mkdir()
    (tmp_path / "model").mkdir()
    write_run(tmp_path, Source(tmp_path / "a slide.zarr", he_alignment=tmp_path / "m.csv"))
    run = read_run(tmp_path)
    assert run["command"] == "sigmma-sc train 'a slide.zarr'"
    assert run["store"] == str(tmp_path / "a slide.zarr")
    assert source_of(run) == Source(tmp_path / "a slide.zarr", None, tmp_path / "m.csv")
    assert source_of({**run, "store": None}) is None
    for damaged in ("{", json.dumps({"command": "x"}), "[]"):
        (tmp_path / "run.json").write_text(damaged)
        with pytest.raises(SetupError, match="is damaged"):
            read_run(tmp_path)


def test_images_come_from_the_store(tiny, tmp_path):
    cells = sd.SpatialData(shapes=dict(tiny.shapes), tables=dict(tiny.tables), attrs=dict(tiny.attrs))
    with pytest.raises(SetupError, match="--store"):
        add_images(cells, Source(tmp_path / "none.zarr"), lambda path: tiny)
    with pytest.raises(SetupError, match="holds no image 'he_image'"):
        add_images(cells, Source(tmp_path), lambda source: sd.SpatialData())
    add_images(cells, Source(tmp_path), lambda source: tiny)
    assert cells["he_image"] is tiny["he_image"]
    add_images(cells, None, lambda path: pytest.fail("read the store"))
    assert len(SIGMMA(cells).resolve()[0].rows) == 1500
