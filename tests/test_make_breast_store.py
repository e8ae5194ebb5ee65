"""The script that makes a tutorial's store, on a folder laid out as almaan/her2st is."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sigmma_sc import SIGMMA

SCRIPT = Path(__file__).parents[1] / "tutorials" / "make_breast_store.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("make_breast_store", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path, rng, script):
    """Sections of 3 × 3 spots, of which one is not under tissue, and counts of one spot that was not selected."""
    for name in ("ST-cnts", "ST-spotfiles", "ST-imgs"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for section in script.SECTIONS:
        x, y = (axis.ravel() for axis in np.mgrid[1:4, 1:4])
        places = pd.DataFrame({"x": x, "y": y, "pixel_x": 290.5 * x, "pixel_y": 290.25 * y, "selected": 1})
        places.loc[4, "selected"] = 0
        places[::-1].to_csv(tmp_path / "data" / "ST-spotfiles" / f"{section}_selection.tsv", sep="\t", index=False)
        genes = ["A", "B", f"only_{section}"]
        counts = pd.DataFrame(
            rng.poisson(3, (9, 3)), index=[f"{i}x{j}" for i, j in zip(x, y, strict=True)], columns=genes
        )
        counts.to_csv(tmp_path / "data" / "ST-cnts" / f"{section}.tsv.gz", sep="\t")
        images = tmp_path / "data" / "ST-imgs" / section[0] / section
        images.mkdir(parents=True)
        Image.fromarray(rng.integers(150, 255, (1200, 1200, 3), dtype=np.uint8)).save(images / "he.jpg")
    return tmp_path


def test_spots_lie_where_the_selection_says(folder, script):
    sdata = script.build(folder)
    table = sdata["table"]
    assert table.n_obs == 5 * 8
    assert list(table.var_names) == ["A", "B", *(f"only_{section}" for section in script.SECTIONS)]
    assert "C4_2x2" not in table.obs_names
    counts = pd.read_csv(folder / "data" / "ST-cnts" / "C4.tsv.gz", sep="\t", index_col=0)
    row = table["C4_1x3"]
    assert row.X.toarray()[0, :2].tolist() == counts.loc["1x3", ["A", "B"]].tolist()
    assert row.X.toarray()[0, 3] == 0  # a gene of section C3 alone
    assert sdata["C4_spots"].loc["C4_1x3"].geometry.coords[0] == (290.5, 3 * 290.25)
    assert sdata["C4_spots"].radius.unique().tolist() == [script.RADIUS]


def test_setup_of_the_tutorial_reads_it(folder, script):
    sdata = script.build(folder)
    SIGMMA.setup_spatialdata(
        sdata,
        image_key={f"{section}_spots": f"{section}_he" for section in script.SECTIONS},
        coordinate_system={f"{section}_spots": section for section in script.SECTIONS},
        sample_key="section",
        microns_per_pixel=0.687,
        tile_size=800,
    )
    assert sdata.attrs["sigmma"]["tile_size"] == 800
