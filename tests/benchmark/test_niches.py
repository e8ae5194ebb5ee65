import numpy as np
import pytest

from sigmma_sc.benchmark import DataSpec, Method, NicheSpec
from sigmma_sc.benchmark.niches import niches_of
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.setup import resolve_slides, stored_setup


class Clumps(Method):
    """Embeds a cell by the quarter of the slide it lies in, and the first cells not at all."""

    def __init__(self, slides):
        self.slides = slides

    def embed_cells(self):
        (slide,) = self.slides
        right, low = (slide.xy > np.median(slide.xy, axis=0)).T
        z = np.eye(4)[right + 2 * low] + 0.01 * np.random.default_rng(0).normal(size=(len(right), 4))
        z[:100] = np.nan
        return {"micro": z.astype(np.float32), "macro": z[:, ::-1].astype(np.float32)}


@pytest.fixture(scope="module")
def slides(tiny):
    return resolve_slides(tiny, stored_setup(tiny))


def test_niches_of_some_cells(tiny, slides):
    data = DataSpec(name="d", simulate={}, reference="niche")
    niches = niches_of(Clumps(slides), slides, data, NicheSpec(methods=("m",), resolution=0.1, n_cells=300))
    assert list(niches.labels) == ["micro", "macro"]
    assert len(niches.slide) == len(niches.xy) == len(niches.reference) == 300
    (slide,) = slides
    # The cells are found again by their place: none of those without an embedding, each with its own reference.
    position = {tuple(xy): k for k, xy in enumerate(slide.xy * slide.microns_per_pixel)}
    rows = np.array([position[tuple(xy)] for xy in niches.xy])
    assert rows.min() >= 100
    assert len(np.unique(rows)) == 300
    np.testing.assert_array_equal(niches.reference, tiny["table"].obs["niche"].astype(str).to_numpy()[slide.rows][rows])
    right, low = (slide.xy > np.median(slide.xy, axis=0)).T
    quarter = (right + 2 * low)[rows]
    pairs = set(zip(quarter, niches.labels["micro"], strict=True))
    assert len(pairs) == len(np.unique(niches.labels["micro"])) == 4


def test_cells_without_a_reference_have_an_empty_one(tiny, slides, monkeypatch):
    def alike(table, scales, resolution):
        for scale in scales:
            table.obs[f"sigmma_niche_{scale}"] = 0

    monkeypatch.setattr("sigmma_sc.tl.niches", alike)
    table = tiny["table"]
    column = table.obs["niche"].astype(object)
    column.iloc[::2] = None
    table.obs["partly"] = column
    try:
        data = DataSpec(name="d", simulate={}, reference="partly")
        niches = niches_of(Clumps(slides), slides, data, NicheSpec(methods=("m",), n_cells=50))
    finally:
        del table.obs["partly"]
    assert 0 < (niches.reference == "").sum() < 50
    unknown = niches_of(Clumps(slides), slides, DataSpec(name="d", simulate={}), NicheSpec(methods=("m",), n_cells=50))
    assert unknown.reference is None
    np.testing.assert_array_equal(unknown.xy, niches.xy)  # the same cells, whatever is asked of them


def test_a_method_without_cells_is_named(slides):
    with pytest.raises(SetupError, match=r"niches.methods=\('m',\) names a method that embeds no cells"):
        niches_of(Method(None), slides, DataSpec(name="d", simulate={}), NicheSpec(methods=("m",)))
