import gc
import warnings
import weakref

import numpy as np
import pytest
import spatialdata as sd
import torch

from sigmma_sc import SIGMMA, ImageEncoder, get_encoder, settings
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import EncoderError, MemoryWarning
from sigmma_sc.features import patches as features
from sigmma_sc.features.patches import PatchFeatures

CPU = torch.device("cpu")


def grid(n, step=40.0):
    return np.array([[x * step, y * step, 33.3] for y in range(n) for x in range(n)])


@pytest.fixture
def slide(tiny):
    return SIGMMA(tiny)._slides[0]


@pytest.fixture
def read(monkeypatch):
    """Crops that were read from the image."""
    crops = []

    def counting(slide, some, size):
        crops.extend(map(tuple, some.tolist()))
        return read_canvases(slide, some, size)

    read_canvases = features.read_canvases
    monkeypatch.setattr(features, "read_canvases", counting)
    return crops


def encode(slide, encoder, crops, folder=None):
    return PatchFeatures(encoder, cache_dir=folder)(slide, crops, CPU)


def copied(sdata):
    """The same tissue, the image an element of its own."""
    image = sd.get_pyramid_levels(sdata["he_image"], n=0).copy(deep=True)
    out = sd.SpatialData(
        images={"he_image": sd.models.Image2DModel.parse(image, c_coords=["r", "g", "b"])},
        shapes=dict(sdata.shapes),
        tables={"table": sdata["table"].copy()},
    )
    SIGMMA.setup_spatialdata(out, tile_size=64)
    return out


def test_features_go_with_their_image(slide, tiny, encoder, read):
    known = PatchFeatures(encoder())
    first = known(slide, grid(2), CPU)
    other = copied(tiny)
    gone, there = weakref.ref(other), SIGMMA(other)._slides[0]
    known(there, grid(2), CPU)
    assert len(read) == 8
    del other, there
    gc.collect()
    assert gone() is None
    assert torch.equal(known(slide, grid(2), CPU), first)
    assert len(read) == 8


def test_an_image_put_in_the_place_of_another_is_encoded(tiny, encoder):
    sdata = copied(tiny)
    known = PatchFeatures(encoder())
    before = known(SIGMMA(sdata)._slides[0], grid(3), CPU)
    image = sdata["he_image"]
    sdata["he_image"] = sd.models.Image2DModel.parse(255 - image, c_coords=["r", "g", "b"])
    now = SIGMMA(sdata)._slides[0]
    found = known(now, grid(3), CPU)
    assert torch.equal(found, encode(now, encoder(), grid(3)))
    assert (found[:, :3] - before[:, :3]).abs().min() > 0.01


def test_features_go_with_what_holds_them(slide, encoder):
    """Though the image stays."""
    known = PatchFeatures(encoder())
    known(slide, grid(2), CPU)
    values = weakref.ref(next(iter(known._known._values.values()))[0][16, torch.float32])
    del known
    gc.collect()
    assert values() is None


def small(seed=0, n_cells=2500, **options):
    sdata = simulate_tissue(n_cells=n_cells, seed=seed)
    SIGMMA.setup_spatialdata(sdata, **options)
    return sdata


def test_a_crop_has_the_same_features_in_any_company():
    slide = SIGMMA(small())._slides[0]
    crops = np.array([[x, y, 60.0] for y in range(0, 300, 60) for x in range(0, 300, 60)])
    every = PatchFeatures(get_encoder("stain-stats"))(slide, crops, torch.device("cpu"))
    for some in ([3], [7, 1], range(24, 11, -1)):
        few = PatchFeatures(get_encoder("stain-stats"))(slide, crops[some], torch.device("cpu"))
        assert torch.equal(few, every[list(some)])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_precision_reaches_the_features(slide, monkeypatch, read, tmp_path, kind):
    """On a GPU that is fast in a half type; autocast of the CPU in its place."""
    monkeypatch.setattr(features, "feature_type", lambda device, single: torch.float32 if single else kind)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 6))
    encoder = ImageEncoder(layers, "net", input_size=8)
    known = PatchFeatures(encoder, cache_dir=tmp_path)
    half = known(slide, grid(3), CPU)
    single = known(slide, grid(3), CPU, single=True)
    assert len(read) == 18  # each type is computed, and kept, by itself
    assert not torch.equal(half, single)
    torch.testing.assert_close(half, single, atol=0.05, rtol=0.05)
    assert torch.equal(half.to(kind).half(), half)  # values of the half type
    again = PatchFeatures(encoder, cache_dir=tmp_path)
    assert torch.equal(again(slide, grid(3), CPU, single=True), single)
    assert torch.equal(again(slide, grid(3), CPU), half)
    assert len(read) == 18
    monkeypatch.undo()
    assert torch.equal(PatchFeatures(encoder)(slide, grid(3), CPU), single)


def test_overflow_in_float16_names_the_way_out(slide, monkeypatch):
    monkeypatch.setattr(features, "feature_type", lambda device, single: torch.float32 if single else torch.float16)

    class Large(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((1, 192), 1e4))

        def forward(self, x):
            large = torch.nn.functional.linear(x.flatten(1).abs() + 1, self.weight)
            return 1 / large if torch.is_autocast_enabled("cpu") is False else large

    encoder = ImageEncoder(Large(), "large", input_size=8, dim=1)
    with pytest.raises(EncoderError, match="'large' gives inf on .* in float16, .*precision='32-true'"):
        PatchFeatures(encoder)(slide, grid(2), CPU)
    assert torch.isfinite(PatchFeatures(encoder)(slide, grid(2), CPU, single=True)).all()


def test_batches_are_halved_where_memory_runs_out(slide, monkeypatch, encoder):
    monkeypatch.setattr(features, "CPU_BATCH", 16)
    expected = encode(slide, encoder(), grid(5))
    small = encoder()
    plain = small.encode

    def limited(crops):
        if len(crops) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(crops)

    monkeypatch.setattr(small, "encode", limited)
    known = PatchFeatures(small)
    with pytest.warns(MemoryWarning, match="4 are taken from now on") as told:
        found = known(slide, grid(5), CPU)
    assert len(told) == 2
    torch.testing.assert_close(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known(slide, grid(6), CPU)  # it is remembered


def test_features_of_onnx_runtime_are_those_of_torch_and_share_its_cache(slide, monkeypatch, read, tmp_path):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.GELU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    encoder = ImageEncoder(layers, "net", input_size=8)
    by_torch = PatchFeatures(encoder)(slide, grid(3), CPU)
    monkeypatch.setattr(settings, "_cpu_runtime", "auto")
    cached = PatchFeatures(encoder, cache_dir=tmp_path)
    by_onnx = cached(slide, grid(3), CPU)
    torch.testing.assert_close(by_onnx, by_torch, atol=1e-3, rtol=1e-3)
    assert set(cached._on_cpu) == {(8, "auto")}
    assert cached._on_cpu[8, "auto"].__module__ == "sigmma_sc.encoders.onnx"
    n_read = len(read)
    monkeypatch.setattr(settings, "_cpu_runtime", "torch")
    assert torch.equal(PatchFeatures(encoder, cache_dir=tmp_path)(slide, grid(3), CPU), by_onnx)
    assert len(read) == n_read
