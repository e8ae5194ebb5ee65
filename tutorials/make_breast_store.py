"""Make the store of the tutorial *Several slides* from the public repository almaan/her2st (Andersson et al. 2021).

Five sections of one HER2-positive breast tumour: counts of spots, their places on the image, and the scanned H&E.

    git clone https://github.com/almaan/her2st
    python tutorials/make_breast_store.py her2st breast_st.zarr
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
from anndata import AnnData
from geopandas import GeoDataFrame
from PIL import Image
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity

SECTIONS = ("C2", "C3", "C4", "C5", "C6")
RADIUS = 73.0
"""Radius of a spot in px: 50 µm at 0.687 µm a pixel."""

Image.MAX_IMAGE_PIXELS = None  # the scans are large, and are what was asked for


def read_spots(folder: Path, section: str) -> AnnData:
    """Counts of the spots under tissue, in the order of the counts, with their places in px of the image."""
    counts = pd.read_csv(folder / "data" / "ST-cnts" / f"{section}.tsv.gz", sep="\t", index_col=0)
    places = pd.read_csv(folder / "data" / "ST-spotfiles" / f"{section}_selection.tsv", sep="\t")
    places = places[places["selected"] == 1]
    places.index = places["x"].astype(str) + "x" + places["y"].astype(str)
    names = [name for name in counts.index if name in places.index]
    spots = AnnData(csr_matrix(counts.loc[names].to_numpy(np.float32)), var=pd.DataFrame(index=counts.columns))
    spots.obs_names = [f"{section}_{name}" for name in names]
    spots.obsm["spatial"] = places.loc[names, ["pixel_x", "pixel_y"]].to_numpy(float)
    spots.obs["region"] = f"{section}_spots"
    spots.obs["section"] = section
    spots.obs["cell_id"] = spots.obs_names.to_numpy(object)
    return spots


def read_image(folder: Path, section: str) -> Image2DModel:
    """The H&E of a section, with a pyramid."""
    (path,) = (folder / "data" / "ST-imgs" / section[0] / section).glob("*.jpg")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    levels = [2] * max(1, int(np.log2(min(pixels.shape[:2]) / 512)))
    return Image2DModel.parse(
        da.from_array(pixels, chunks=(1024, 1024, 3)).transpose(2, 0, 1),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=levels,
        transformations={section: Identity()},
    )


def circles(spots: AnnData, section: str) -> GeoDataFrame:
    """Spots as circles, in px of the image."""
    return ShapesModel.parse(
        spots.obsm["spatial"], geometry=0, radius=RADIUS, index=spots.obs_names, transformations={section: Identity()}
    )


def build(folder: Path) -> SpatialData:
    """Five images in five coordinate systems, and one table over five regions."""
    tables = {section: read_spots(folder, section) for section in SECTIONS}
    table = ad.concat(list(tables.values()), join="outer", fill_value=0)
    for column in ("region", "section"):
        table.obs[column] = table.obs[column].astype("category")
    shapes = {f"{section}_spots": circles(spots, section) for section, spots in tables.items()}
    return SpatialData(
        images={f"{section}_he": read_image(folder, section) for section in SECTIONS},
        shapes=shapes,
        tables={"table": TableModel.parse(table, list(shapes), region_key="region", instance_key="cell_id")},
    )


if __name__ == "__main__":
    build(Path(sys.argv[1])).write(sys.argv[2])
