import json

import geopandas
import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree
from shapely import Point, box, union_all

import sigmma_sc as sg
from sigmma_sc import SIGMMA
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError


@pytest.fixture(scope="module")
def tissue():
    """Two slides; labels of three niches, of which one cell has none."""
    sdata = sg.datasets.simulate_tissue(n_cells=600, n_slides=2, seed=0)
    regions = sdata["table"].obs["region"].cat.categories
    images = {region: region.replace("cell_circles", "he_image") for region in regions}
    systems = {region: region.split("_")[0] for region in regions}
    SIGMMA.setup_spatialdata(sdata, image_key=images, coordinate_system=systems, tile_size=64)
    table = sdata["table"]
    table.obs["niche_of_mine"] = pd.Categorical.from_codes(np.arange(table.n_obs) % 3, ["a", "b", "c d"])
    table.obs.loc[table.obs_names[7], "niche_of_mine"] = np.nan
    table.uns["niche_of_mine_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    return sdata


@pytest.fixture
def slide(tissue):
    from sigmma_sc.tissue.setup import slides_of

    return slides_of(tissue)[0]


def features_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["features"]


def test_niches_come_back_as_they_went(tissue, slide, tmp_path):
    path = tmp_path / "niches.geojson"
    sg.io.to_geojson(tissue, path, "niche_of_mine", slide=slide.name)
    sg.io.read_regions(tissue, path, slide=slide.name)
    found = tissue["table"].obs.pop("region_drawn")
    before = tissue["table"].obs["niche_of_mine"]
    known = np.intersect1d(slide.rows, np.flatnonzero(before.notna()))
    assert found.iloc[known].tolist() == before.iloc[known].tolist()
    others = np.setdiff1d(np.arange(len(found)), slide.rows)
    assert len(others) > 100
    assert found.iloc[others].isna().all()


def test_ground_is_that_of_the_nearest_cell_and_ends_at_a_distance(tissue, slide, tmp_path, rng):
    path = tmp_path / "niches.geojson"
    sg.io.to_geojson(tissue, path, "niche_of_mine", slide=slide.name, max_distance=8.0)
    read = geopandas.read_file(path).set_crs(None, allow_override=True)  # GDAL, which reads GeoJSON as others do
    assert read.geometry.is_valid.all()
    assert read.name.tolist() == ["a", "b", "c d"]
    labels = tissue["table"].obs["niche_of_mine"].iloc[slide.rows]
    known = labels.notna().to_numpy()
    tree = cKDTree(slide.xy[known])
    points = slide.xy[known][rng.integers(known.sum(), size=400)] + rng.normal(scale=12, size=(400, 2))
    distance, nearest = tree.query(points, 2)
    reach = 8.0 / slide.microns_per_pixel
    # Not at a border: there the answer hangs on rounding, and on the arc as a polygon.
    clear = (np.abs(distance[:, 0] / reach - 1) > 0.05) & (distance[:, 1] - distance[:, 0] > 0.1)
    for point, gap, cell in zip(points[clear], distance[clear, 0], nearest[clear, 0], strict=True):
        expected = [labels[known].iloc[cell]] if gap < reach else []
        assert read.name[read.contains(Point(point))].tolist() == expected
    assert read.area.sum() == pytest.approx(union_all(read.geometry.to_numpy()).area, rel=1e-6)  # no overlap


def test_features_are_those_of_qupath(tissue, slide, tmp_path):
    path = tmp_path / "tiles.geojson"
    sg.io.to_geojson(tissue, path, "niche_of_mine", shapes="tiles", slide=slide.name)
    features = features_of(path)
    labels = tissue["table"].obs["niche_of_mine"].cat.codes.to_numpy()[slide.rows]
    expected = {}
    for tile in range(len(slide.tiles)):
        codes = labels[(slide.tile_of_cell == tile) & (labels >= 0)]
        if len(codes):
            expected[tuple(slide.tiles.origins[tile])] = (np.bincount(codes, minlength=3).argmax(), len(codes))
    assert len(features) == len(expected) > 10
    for feature in features:
        ring = np.array(feature["geometry"]["coordinates"][0])
        corner = min(expected, key=lambda origin: np.abs(ring.min(axis=0) - origin).max())
        code, n_cells = expected.pop(corner)
        np.testing.assert_allclose(
            [ring.min(axis=0), ring.max(axis=0)], [corner, np.add(corner, slide.side)], atol=0.01
        )
        x, y = ring.T
        assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0  # counter-clockwise, as RFC 7946 asks
        told = feature["properties"]
        assert told["objectType"] == "tile"
        assert told["measurements"]["n_cells"] == n_cells
        colour = [[255, 0, 0], [0, 255, 0], [0, 0, 255]][code]
        assert told["classification"] == {"name": ["a", "b", "c d"][code], "color": colour}


def test_what_was_drawn_names_the_cells_in_it(tissue, slide, tmp_path):
    low, middle = slide.xy.min(axis=0), np.median(slide.xy, axis=0)
    outer, inner = box(*low, *middle), box(*low, *((low + middle) / 2))
    bow = [[*low], [*middle], [middle[0], low[1]], [low[0], middle[1]], [*low]]  # crosses itself
    high = slide.xy.max(axis=0)
    drawn = [
        {"type": "Feature", "geometry": None, "properties": {"name": "nowhere"}},
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [*low]}, "properties": {"name": "a point"}},
        {"type": "Feature", "geometry": inner.__geo_interface__, "properties": {"classification": {"name": "Tumour"}}},
        {
            "type": "Feature",
            "geometry": outer.__geo_interface__,
            "properties": {"name": "Stroma", "classification": None},
        },
        {"type": "Feature", "geometry": box(*middle, *high).__geo_interface__, "properties": None},
    ]
    path = tmp_path / "drawn.geojson"
    path.write_text(json.dumps(drawn))
    sg.io.read_regions(tissue, path, "drawn", slide.name)
    obs = tissue["table"].obs
    expected = []
    for x, y in slide.xy:
        names = [name for name, shape in (("Tumour", inner), ("Stroma", outer)) if shape.intersects(Point(x, y))]
        names += ["region 3"] * box(*middle, *high).intersects(Point(x, y))
        expected.append(names[0] if names else None)
    assert [None if pd.isna(name) else name for name in obs["drawn"].iloc[slide.rows]] == expected
    assert set(expected) == {"Tumour", "Stroma", "region 3", None}
    path.write_text(json.dumps({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [bow]}}))
    with pytest.raises(ExistsError, match="overwrite=True"):
        sg.io.read_regions(tissue, path, "drawn", slide.name)
    sg.io.read_regions(tissue, path, "drawn", slide.name, overwrite=True)
    named = obs.pop("drawn").iloc[slide.rows].notna().to_numpy()
    left = np.abs(slide.xy[:, 0] - low[0]) < np.abs(slide.xy[:, 0] - middle[0])
    assert 0 < named.sum() < (slide.xy < middle).all(axis=1).sum()
    assert (named & ~left).any()


def test_bad_input_is_told(tissue, slide, tmp_path):
    path = tmp_path / "x.geojson"
    with pytest.raises(SetupError, match="2 slides. Choose one with slide="):
        sg.io.to_geojson(tissue, path, "niche_of_mine")
    with pytest.raises(MissingKeyError, match="slide='none' does not exist"):
        sg.io.read_regions(tissue, path, slide="none")
    with pytest.raises(MissingKeyError, match="column='nothing' does not exist"):
        sg.io.to_geojson(tissue, path, "nothing", slide=slide.name)
    with pytest.raises(MissingKeyError, match="is no file"):
        sg.io.read_regions(tissue, path, slide=slide.name)
    assert not path.exists()
    for text, words in (
        ("{", "is no GeoJSON"),
        ('{"type": "Polygon"}', "is no GeoJSON"),
        ('{"features": []}', "holds no polygon"),
    ):
        path.write_text(text)
        with pytest.raises(SetupError, match=words):
            sg.io.read_regions(tissue, path, slide=slide.name)
    far = {"type": "Feature", "geometry": box(1e6, 1e6, 2e6, 2e6).__geo_interface__}
    path.write_text(json.dumps(far))
    with pytest.raises(SetupError, match="No cell of slide .* px of"):
        sg.io.read_regions(tissue, path, slide=slide.name)
    with pytest.raises(ExistsError, match="exists. Choose another path"):
        sg.io.to_geojson(tissue, path, "niche_of_mine", slide=slide.name)
    assert "region_drawn" not in tissue["table"].obs
