"""Writers of small bundles in the formats of the instrument and of HEST-1k, and of the truth that they hold."""

import json
import zipfile
from dataclasses import dataclass

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from scipy.sparse import csc_matrix
from shapely.geometry import Polygon, mapping

PIXEL = 0.2125  # µm of a morphology pixel
GENES = ["EPCAM", "CXCL2", "CXCL6", "INS"]
CONTROLS = ["NegControlProbe_00042", "BLANK_0006"]
SIZE = (600, 800)  # height and width of the H&E in px


@dataclass
class Truth:
    """What a bundle holds: cells in µm, the H&E matrix, counts and pixels."""

    names: list
    xy: np.ndarray
    counts: np.ndarray
    matrix: np.ndarray
    image: np.ndarray
    pixel: float = PIXEL

    @property
    def he_xy(self):
        """Cells in px of the H&E, by the definition of the alignment file."""
        ones = np.ones(len(self.xy))
        return np.linalg.solve(self.matrix, np.stack([*(self.xy / self.pixel).T, ones]))[:2].T

    @property
    def microns(self):
        return self.pixel * np.sqrt(abs(np.linalg.det(self.matrix[:2, :2])))


def turned(angle, scale, shift=(350.0, -120.0)):
    """From H&E pixels to morphology pixels: turned, scaled, shifted."""
    c, s = np.cos(np.deg2rad(angle)) * scale, np.sin(np.deg2rad(angle)) * scale
    return np.array([[c, -s, shift[0]], [s, c, shift[1]], [0, 0, 1]])


@pytest.fixture
def truth(rng):
    """Thirty cells on a noisy H&E that is turned by 28° against them; each cell's own pixel has a colour of its own."""
    n = 30
    matrix = turned(28.0, 1.7)
    he = np.stack(np.meshgrid(np.linspace(60, SIZE[1] - 60, 6), np.linspace(60, SIZE[0] - 60, 5)), -1).reshape(-1, 2)
    he = he + rng.uniform(-9, 9, he.shape)
    morphology = he @ matrix[:2, :2].T + matrix[:2, 2]
    image = rng.integers(180, 255, (*SIZE, 3), dtype=np.uint8)
    image[tuple(np.floor(he).astype(int).T[::-1])] = np.stack([np.arange(n), 100 - np.arange(n), np.full(n, 7)], 1)
    counts = rng.poisson(2.0, (n, len(GENES)))
    counts[3] = 0  # a cell without any transcript
    return Truth([], morphology * PIXEL, counts, matrix, image)


def write_pyramid(path, image, *, ome, planar=False):
    """Three levels of half the size each: sub-images as OME-TIFF, or a chain of images as libvips writes.

    10x Genomics' own files are interleaved, or one page a channel.
    """
    options = {"tile": (128, 128), "compression": "lzw", "photometric": "minisblack" if planar else "rgb"}
    with tifffile.TiffWriter(path, ome=ome) as file:
        for k in range(3):
            level = image[:: 2**k, :: 2**k]
            level = np.ascontiguousarray(np.moveaxis(level, 2, 0) if planar else level)
            extra = {"metadata": {"axes": "CYX" if planar else "YXS"}, "subifds": 2} if ome and not k else {}
            file.write(level, subfiletype=int(k > 0), **({"metadata": None} | extra), **options)


def encode(prefix, suffix):
    """Cell names of 10x: eight nibbles as the letters a to p."""
    return "".join(chr(ord("a") + (prefix >> shift & 15)) for shift in range(28, -1, -4)) + f"-{suffix}"


def squares(xy, half=3.0):
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * half
    return xy[:, None] + corners


@pytest.fixture
def write_xenium(tmp_path, truth):
    """Write a Xenium output folder of a given version of the onboard analysis."""

    def write(version, folder="outs", alignment=True, planar=False):
        out = tmp_path / folder
        out.mkdir()
        number = tuple(int(part) for part in version.split("."))
        n = len(truth.xy)
        prefix = np.arange(1, n + 1, dtype=np.uint32) * 77_777
        named = number >= (1, 3)
        truth.names = [encode(int(p), 1) for p in prefix] if named else list(range(1, n + 1))
        specs = {
            "analysis_sw_version": f"xenium-{version}",
            "pixel_size": truth.pixel,
            "num_cells": n,
            "run_name": "run",
        }
        (out / "experiment.xenium").write_text(json.dumps(specs))
        _write_cells(out, truth, number)
        _write_boundaries(out, truth, number)
        _write_matrix(out, truth)
        _write_zarr(out, truth, prefix, number)
        write_pyramid(out / "Section_he_image.ome.tif", truth.image, ome=True, planar=planar)
        if alignment:
            np.savetxt(out / "Section_he_imagealignment.csv", truth.matrix, delimiter=",", fmt="%.17g")
        return out

    return write


def _write_cells(out, truth, number):
    n = len(truth.xy)
    # Versions before 2 wrote names as bytes.
    names = [name.encode() if isinstance(name, str) and number < (2,) else name for name in truth.names]
    frame = {
        "cell_id": names,
        "x_centroid": truth.xy[:, 0],
        "y_centroid": truth.xy[:, 1],
        "transcript_counts": truth.counts.sum(1),
        "control_probe_counts": np.zeros(n, int),
        "control_codeword_counts": np.zeros(n, int),
        "total_counts": truth.counts.sum(1),
        "cell_area": np.full(n, 36.0),
        "nucleus_area": np.full(n, 16.0),
    }
    pd.DataFrame(frame).to_parquet(out / "cells.parquet")


def _write_boundaries(out, truth, number):
    for file, half in (("cell_boundaries.parquet", 3.0), ("nucleus_boundaries.parquet", 2.0)):
        rings = squares(truth.xy, half)
        vertex = rings.reshape(-1, 2)
        label = np.repeat(np.arange(len(rings)), rings.shape[1])
        names = [truth.names[k].encode() if number < (2,) and number >= (1, 3) else truth.names[k] for k in label]
        frame = {"cell_id": names, "vertex_x": vertex[:, 0].astype("f4"), "vertex_y": vertex[:, 1].astype("f4")}
        if number >= (2, 0, 1):
            frame["label_id"] = label + 1
        pd.DataFrame(frame).to_parquet(out / file)


def _write_matrix(out, truth):
    n, controls = len(truth.xy), np.ones((len(truth.xy), 1), int)
    matrix = csc_matrix(np.hstack([truth.counts, controls]).T)
    genes = [*GENES, CONTROLS[0]]
    features = {
        "id": [f"ENSG{k:011d}" for k in range(len(genes))],
        "name": genes,
        "feature_type": ["Gene Expression"] * len(GENES) + ["Negative Control Probe"],
        "genome": ["GRCh38"] * len(genes),
    }
    with h5py.File(out / "cell_feature_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array([str(name).encode() for name in truth.names])
        group["data"], group["indices"] = matrix.data.astype("i4"), matrix.indices.astype("i8")
        group["indptr"], group["shape"] = matrix.indptr.astype("i8"), np.array([len(genes), n], "i4")
        for key, values in features.items():
            group[f"features/{key}"] = np.array([value.encode() for value in values])
        group["features/_all_tag_keys"] = np.array([b"genome"])


def _write_zarr(out, truth, prefix, number):
    n = len(truth.xy)
    with zarr.storage.ZipStore(out / "cells.zarr.zip", mode="w") as store:
        root = zarr.create_group(store, zarr_format=2)
        ids = np.stack([prefix, np.ones(n, np.uint32)], 1) if number >= (1, 3) else np.arange(1, n + 1, dtype=np.uint32)
        root.create_array("cell_id", data=ids)
        columns = ["cell_centroid_x", "cell_centroid_y", "cell_area", "nucleus_centroid_x", "nucleus_centroid_y"]
        columns += ["nucleus_area", "z_level"] + ["nucleus_count"] * (number >= (2,))
        table = np.zeros((n, len(columns)))
        table[:, :2] = truth.xy
        root.create_array("cell_summary", data=table, attributes={"column_names": columns})
        masks = root.create_group("masks")
        x, y = np.floor(truth.xy / truth.pixel).astype(int).T
        mask = np.zeros((y.max() + 20, x.max() + 20), np.uint32)
        for k in range(n):
            mask[max(y[k] - 14, 0) : y[k] + 15, max(x[k] - 14, 0) : x[k] + 15] = k + 1
        for k in "01":
            masks.create_array(k, data=mask)
            if number >= (2,):
                root.create_array(f"polygon_sets/{k}/cell_index", data=np.arange(n, dtype=np.uint32))
        if (1, 3) <= number < (2,):
            root.create_array("seg_mask_value", data=np.arange(1, n + 1, dtype=np.uint32))


@pytest.fixture
def write_hest(tmp_path, truth, rng):
    """Write a sample as in HEST-1k: transcripts and polygons already in px of the H&E."""

    def write(sample="TENX95", numbered=False, geojson=False, **metadata):
        n = len(truth.xy)
        truth.names = list(range(1, n + 1)) if numbered else [encode(k * 77_777, 1) for k in range(1, n + 1)]
        for name in ("wsis", "metadata", "transcripts", "xenium_seg"):
            (tmp_path / name).mkdir(exist_ok=True)
        write_pyramid(tmp_path / f"wsis/{sample}.tif", truth.image, ome=False)
        known = {
            "id": sample,
            "species": "Homo sapiens",
            "organ": "Pancreas",
            "st_technology": "Xenium",
            "patient": "Patient 1",
            "treatment_comment": float("nan"),
            "pixel_size_um_embedded": None,
            "pixel_size_um_estimated": truth.microns,
        }
        (tmp_path / f"metadata/{sample}.json").write_text(json.dumps(known | metadata))
        _transcripts(truth, numbered, rng).to_parquet(tmp_path / f"transcripts/{sample}_transcripts.parquet")
        _segmentation(tmp_path / f"xenium_seg/{sample}_xenium_cell_seg", truth, geojson)
        return tmp_path

    return write


def _transcripts(truth, numbered, rng):
    """Rows of every kind: counted ones, poor ones, controls, and some in no cell; in any order."""
    none = -1 if numbered else "UNASSIGNED"
    cell, gene = (np.repeat(index.ravel(), truth.counts.ravel()) for index in np.indices(truth.counts.shape))
    rows = [(truth.names[c], GENES[g], 20.0 + g, *truth.he_xy[c]) for c, g in zip(cell, gene, strict=True)]
    rows += [(truth.names[0], GENES[0], 19.99, *truth.he_xy[0])] * 5
    rows += [(truth.names[1], control, 40.0, *truth.he_xy[1]) for control in (*CONTROLS, "antisense_PROKR2")]
    rows += [(none, GENES[1], 40.0, 5.0, 5.0)] * 7
    frame = pd.DataFrame(rows, columns=["cell_id", "feature_name", "qv", "he_x", "he_y"])
    frame["feature_name"] = frame.feature_name.str.encode("utf-8")
    frame[["he_x", "he_y"]] += rng.uniform(-1.5, 1.5, (len(frame), 2))
    return frame.sample(frac=1, random_state=0).reset_index(drop=True)


def _segmentation(path, truth, geojson):
    """Polygons by name, in an order of their own; or without names, a few features of many polygons."""
    import geopandas

    order = np.roll(np.arange(len(truth.xy)), 11)
    polygons = [Polygon(ring) for ring in squares(truth.he_xy)[order]]
    if not geojson:
        names = np.array(truth.names, dtype=object)[order]
        frame = geopandas.GeoDataFrame(geometry=polygons, index=names.tolist())
        frame.to_parquet(f"{path}.parquet")
        return
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": [mapping(p)["coordinates"] for p in part]},
            "properties": {"objectType": "annotation", "classification": {"name": str(k)}},
        }
        for k, part in enumerate((polygons[:12], polygons[12:]))
    ]
    with zipfile.ZipFile(f"{path}.geojson.zip", "w") as archive:
        archive.writestr(f"{path.name}.geojson", json.dumps(features))
