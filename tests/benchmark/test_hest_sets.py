"""The paper's own sets from miniature folders in the format of HEST-1k, with methods that need no download."""

import json

import geopandas
import numpy as np
import pandas as pd
import pytest
import tifffile
from shapely.geometry import box

from sigmma_sc import SIGMMA
from sigmma_sc.benchmark import packaged, read_config, run
from sigmma_sc.benchmark.config import MethodSpec
from sigmma_sc.benchmark.trial import Trial
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.tissue.setup import resolve_slides, stored_setup

MICRONS = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sample for every identifier of the four sets, each of its own donor and stain."""
    root = tmp_path_factory.mktemp("hest")
    for name in ("wsis", "metadata", "transcripts", "xenium_seg"):
        (root / name).mkdir()
    ids = sorted({s for name in packaged() for s in samples(name, root)})
    assert len(ids) == 11
    for k, sample in enumerate(ids):
        sdata = simulate_tissue(n_cells=1200, seed=k, microns_per_pixel=MICRONS)
        SIGMMA.setup_spatialdata(sdata)
        (slide,) = resolve_slides(sdata, stored_setup(sdata))
        write_sample(root, sample, sdata, slide, drop=k % 4)
    return root


def samples(name, root):
    pytest.MonkeyPatch().setenv("HEST", str(root))
    return read_config(name).datasets[0].hest["samples"]


def write_sample(root, sample, sdata, slide, drop):
    """Transcripts, polygons and image, all in px of the H&E; panels differ by some genes."""
    image = np.asarray(sdata["he_image"]["scale0"]["image"].transpose("y", "x", "c"))
    with tifffile.TiffWriter(root / f"wsis/{sample}.tif") as file:
        for k in range(2):
            level = np.ascontiguousarray(image[:: 2**k, :: 2**k])
            file.write(
                level, subfiletype=int(k > 0), tile=(128, 128), compression="lzw", photometric="rgb", metadata=None
            )
    known = {"id": sample, "st_technology": "Xenium", "patient": sample, "pixel_size_um_estimated": MICRONS}
    (root / f"metadata/{sample}.json").write_text(json.dumps(known))
    table = sdata["table"][slide.rows]
    counts = table.X.tocoo()
    names = np.array([f"cell{k}" for k in range(table.n_obs)], dtype=object)
    kept = counts.col >= drop
    times = counts.data[kept].astype(int)
    row, column = np.repeat(counts.row[kept], times), np.repeat(counts.col[kept], times)
    x, y = slide.xy[row].T
    frame = {
        "cell_id": names[row],
        "feature_name": np.asarray(table.var_names)[column],
        "qv": 40.0,
        "he_x": x,
        "he_y": y,
    }
    pd.DataFrame(frame).to_parquet(root / f"transcripts/{sample}_transcripts.parquet")
    squares = [box(a - 6, b - 6, a + 6, b + 6) for a, b in slide.xy]
    polygons = geopandas.GeoDataFrame(geometry=squares, index=names.tolist())
    polygons.to_parquet(root / f"xenium_seg/{sample}_xenium_cell_seg.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hest-luad", "hest-paad", "hest-skcm", "hest-idc"])
def test_set(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HEST", str(folder))
    config = read_config(name)
    small = {
        "methods": tuple(MethodSpec(method=m) for m in ("sigmma", "frozen", "gene-mean")),
        "encoder": "stain-stats",
    }
    fields = {f: getattr(config, f) for f in ("datasets", "title")}
    config = type(config)(**fields, **small, seeds=(0,), train={"max_epochs": 2})
    with pytest.warns(UserWarning, match="genes are on the panels of all samples"):
        table = run(config, tmp_path)
    data = config.datasets[0]
    assert set(table.dataset) == {data.name}
    trial = Trial.read(tmp_path / "trials" / data.name / "donor" / "sigmma" / "0.npz")
    held = {str(slide).split("/")[0] for slide in trial.slide}
    assert held < set(data.hest["samples"])
    assert ("TENX95" in held) == ("TENX99" in held)
    assert table[table.metric == "pcc"].value.notna().sum() > 0
    text = (tmp_path / "report.md").read_text()
    assert f"## {data.name}: published" in text
    assert "| SIGMMA |" in text
