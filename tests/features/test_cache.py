import errno
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.torch
import spatialdata as sd
import torch

from sigmma_sc import SIGMMA, ImageEncoder
from sigmma_sc.errors import CacheWarning, EncoderError, SetupError
from sigmma_sc.features import patches as features
from sigmma_sc.features.cache import FeatureCache, checksum
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


def test_another_session_finds_the_same_bits_and_reads_no_image(slide, encoder, read, tmp_path):
    fresh = encode(slide, encoder(), grid(6))
    stored = encode(slide, encoder(), grid(6), tmp_path)
    assert len(read) == 72
    again = encode(slide, encoder(), grid(6)[::-1].copy(), tmp_path)
    assert len(read) == 72
    assert again.dtype == torch.float16
    assert torch.equal(stored, fresh)
    assert torch.equal(again.flip(0), fresh)


def test_other_tilings_share_what_they_have_in_common(slide, encoder, read, tmp_path):
    encode(slide, encoder(), grid(4), tmp_path)
    read.clear()
    more = encode(slide, encoder(), grid(5), tmp_path)
    assert sorted(read) == sorted(set(map(tuple, grid(5).tolist())) - set(map(tuple, grid(4).tolist())))
    assert torch.equal(more, encode(slide, encoder(), grid(5)))


@pytest.mark.parametrize("other", [{"gain": 2.0}, {"input_size": 17}, {"std": (1.0, 1.0, 2.0)}])
def test_another_encoder_has_its_own_features(slide, encoder, tmp_path, other):
    encode(slide, encoder(), grid(3), tmp_path)
    found = encode(slide, encoder(**other), grid(3), tmp_path)
    assert torch.equal(found, encode(slide, encoder(**other), grid(3)))
    assert len(list(tmp_path.iterdir())) == 2


def test_another_image_has_its_own_features(slide, tiny, encoder, tmp_path):
    encode(slide, encoder(), grid(3), tmp_path)
    other = copied(tiny)
    image = other["he_image"]
    image[1, 30, 30] = (image[1, 30, 30] + 128) % 255
    changed = SIGMMA(other)._slides[0]
    assert torch.equal(encode(changed, encoder(), grid(3), tmp_path), encode(changed, encoder(), grid(3)))
    assert len(list(tmp_path.iterdir())) == 2


def test_an_encoder_of_equal_weights_that_does_something_else_has_its_own_features(slide, tmp_path):
    def mine(module):
        return ImageEncoder(module, name="mine", input_size=16, mean=(0.0,) * 3, std=(1.0,) * 3)

    class Peak(torch.nn.Module):
        def forward(self, x):
            return x.amax((2, 3))

    class Mean(Peak):
        def forward(self, x):
            return x.mean((2, 3))

    encode(slide, mine(Mean()), grid(3), tmp_path)
    found = encode(slide, mine(Peak()), grid(3), tmp_path)
    assert torch.equal(found, encode(slide, mine(Peak()), grid(3)))
    assert (found > encode(slide, mine(Mean()), grid(3), tmp_path)).all()
    assert len(list(tmp_path.iterdir())) == 2
    for module in (Peak(), Mean()):  # each finds its own again
        before = sorted(tmp_path.rglob("*"))
        encode(slide, mine(module), grid(3), tmp_path)
        assert sorted(tmp_path.rglob("*")) == before


def test_weights_are_read_once_for_all_slides_and_sizes(tiny, encoder, tmp_path, monkeypatch):
    asked = []
    fingerprint = ImageEncoder.fingerprint
    monkeypatch.setattr(ImageEncoder, "fingerprint", lambda self: asked.append(self.name) or fingerprint(self))
    own = encoder()
    own.allow(24)
    known = PatchFeatures(own, cache_dir=tmp_path)
    for one in (tiny, copied(tiny)):
        for size in (16, 24):
            known(SIGMMA(one)._slides[0], grid(2), CPU, np.full(4, size))
    assert asked == ["mean"]


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


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (
            1e6,
            r"'mean' gives \d{6}(\.\d+)? on cell_circles; features are kept as float16, which ends at 65504. Scale or normalise",
        ),
        (float("inf"), r"'mean' itself gives (inf|nan) on cell_circles. Check its weights"),
    ],
)
def test_features_that_float16_cannot_hold_are_refused(slide, encoder, tmp_path, gain, words):
    own = encoder()
    own.module.gain.data.fill_(gain)
    with pytest.raises(EncoderError, match=words):
        encode(slide, own, grid(3), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_shard_is_checked_once(slide, encoder, tmp_path, monkeypatch):
    encode(slide, encoder(), grid(4), tmp_path)
    checked = []
    is_sound = FeatureCache._is_sound
    monkeypatch.setattr(FeatureCache, "_is_sound", lambda self, file: checked.append(file) or is_sound(self, file))
    known = PatchFeatures(encoder(), cache_dir=tmp_path)
    some = known(slide, grid(2), CPU)
    every = known(slide, grid(4), CPU)
    assert len(checked) == 1
    assert torch.equal(every, encode(slide, encoder(), grid(4)))
    assert torch.equal(some, encode(slide, encoder(), grid(2)))


def test_what_was_encoded_before_an_end_without_warning_is_kept(slide, encoder, read, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "FLUSH_SECONDS", 0.0)
    dying, batches = encoder(), []

    def die(images):
        if len(images) == 1:  # the crop that it is known by
            return type(dying).encode(dying, images)
        batches.append(images)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return type(dying).encode(dying, images)

    monkeypatch.setattr(dying, "encode", die)
    with pytest.raises(KeyboardInterrupt):
        encode(slide, dying, grid(6), tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    read.clear()
    found = encode(slide, encoder(), grid(6), tmp_path)
    assert len(read) == 36 - 2 * features.CPU_BATCH
    assert torch.equal(found, encode(slide, encoder(), grid(6)))
    # The second session merges its own shards and leaves the first one's.
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_half_written_files_are_passed_over_and_swept_away(slide, encoder, tmp_path):
    encode(slide, encoder(), grid(3), tmp_path)
    folder = next(tmp_path.iterdir())
    dead = [folder / f".{name}-00000000.part" / "new" for name in ("0" * 32 + ".safetensors", "output.json")]
    users = [folder / ".b.safetensors-00000000.part" / "new", folder / "mine.part" / "new"]
    for part in dead + users:
        part.mkdir(parents=True)
        (part / "a").write_bytes(b"half")
    assert torch.equal(encode(slide, encoder(), grid(3), tmp_path), encode(slide, encoder(), grid(3)))
    assert not any(part.parent.exists() for part in dead)
    assert all(part.exists() for part in users)


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_cache_that_cannot_be_written_is_read(slide, encoder, read, tmp_path, monkeypatch):
    good = encode(slide, encoder(), grid(4))
    encode(slide, encoder(), grid(3), tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("sigmma_sc._files.tempfile.mkdtemp", full)
    monkeypatch.setattr("sigmma_sc._files.tempfile.TemporaryFile", full)
    read.clear()
    with pytest.warns(CacheWarning, match="cannot be written .*No space left.* computed and not kept"):
        found = encode(slide, encoder(), grid(4), tmp_path)
    assert torch.equal(found, good)
    assert len(read) == 16 - 9
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.warns(CacheWarning, match="output.json cannot be written .* computed and not kept"):
        assert torch.equal(encode(slide, encoder(), grid(4), tmp_path / "other"), good)


def test_a_disk_that_fills_up_while_crops_are_encoded_loses_nothing(slide, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "FLUSH_SECONDS", 0.0)
    good = encode(slide, encoder(), grid(5))
    saved = []

    def filling(tensors, path, metadata):
        saved.append(path)
        if len(saved) > 2:
            full()
        save_file(tensors, path, metadata)

    save_file = safetensors.torch.save_file
    monkeypatch.setattr(safetensors.torch, "save_file", filling)
    with pytest.warns(CacheWarning, match="No space left") as told:
        assert torch.equal(encode(slide, encoder(), grid(5), tmp_path), good)
    assert len(told) == 1
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("harm", ["a folder", "another width", "another type", "two columns", "another tensor"])
def test_a_shard_that_is_not_what_its_name_says_is_passed_over(tmp_path, harm):
    cache = FeatureCache(tmp_path, "k", 2)
    crops, values = np.array([[0.0, 0.0, 1.0]]), torch.ones(1, 2).half()
    shard = cache.folder / f"{'0' * 32}.safetensors"
    if harm == "a folder":
        shard.mkdir()
    else:
        tensors = {"crops": torch.from_numpy(crops), "features": values}
        changed = {
            "another width": {"features": torch.ones(1, 3).half()},
            "another type": {"features": torch.ones(1, 2)},
            "two columns": {"crops": torch.zeros(1, 2, dtype=torch.float64)},
            "another tensor": {"more": torch.ones(1)},
        }
        tensors |= changed[harm]
        safetensors.torch.save_file(tensors, shard, {"key": "k", "checksum": checksum(tensors)})
    cache.write(crops, 2 * values)
    with pytest.warns(CacheWarning, match=shard.name):
        found, read = cache.read([(0.0, 0.0, 1.0)])
    assert found == [0]
    assert torch.equal(read, 2 * values)


def test_a_folder_in_place_of_an_output_is_told(slide, encoder, tmp_path):
    encode(slide, encoder(), grid(2), tmp_path)
    (stored,) = tmp_path.rglob("output.json")
    stored.unlink()
    stored.mkdir()
    with pytest.raises(SetupError, match="output.json is a folder, where the cache has a file. Move it away"):
        encode(slide, encoder(), grid(2), tmp_path)


def test_many_writers_and_readers_at_once(tmp_path):
    def work(n):
        cache, gen = FeatureCache(tmp_path, "k", 4), torch.Generator().manual_seed(n)
        for turn in range(8):
            crops = np.array([[n, turn, k] for k in range(5)], dtype=float)
            path = cache.write(crops, torch.randn(5, 4, generator=gen).half())
            cache.read([tuple(c) for c in crops.tolist()])
            if turn == 7:
                path.unlink()
                cache.write(crops, torch.full((5, 4), float(n)).half())

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    everything = [(float(n), float(turn), float(k)) for n in range(6) for turn in range(8) for k in range(5)]
    found, values = FeatureCache(tmp_path, "k", 4).read(everything)
    assert sorted(found) == list(range(len(everything)))
    values = values[np.argsort(found)].view(6, 8, 5, 4)
    for n in range(6):
        gen = torch.Generator().manual_seed(n)
        for turn in range(7):
            assert torch.equal(values[n, turn], torch.randn(5, 4, generator=gen).half())
        assert (values[n, 7] == n).all()


@pytest.mark.parametrize("harm", ["truncated", "a flipped bit", "no safetensors", "empty"])
def test_a_damaged_shard_is_told_of_and_computed_again(slide, encoder, read, tmp_path, harm):
    good = encode(slide, encoder(), grid(4), tmp_path)
    shard = next(tmp_path.rglob("*.safetensors"))
    raw = bytearray(shard.read_bytes())
    raw[-3] ^= 4
    shard.write_bytes(
        {"truncated": raw[:-7], "a flipped bit": raw, "no safetensors": b"\x80\x04." * 9, "empty": b""}[harm]
    )
    read.clear()
    with pytest.warns(CacheWarning, match=shard.name):
        found = encode(slide, encoder(), grid(4), tmp_path)
    assert len(read) == 16
    assert torch.equal(found, good)


@pytest.mark.parametrize("text", ["", "[1.0", "{}", "[]", '["a"]', "null"])
def test_an_output_that_was_cut_short_is_written_again(slide, encoder, tmp_path, text):
    first = encode(slide, encoder(), grid(2), tmp_path)
    (stored,) = tmp_path.rglob("output.json")
    whole = stored.read_text()
    stored.write_text(text)
    with pytest.warns(CacheWarning, match="output.json is damaged and is written again"):
        again = encode(slide, encoder(), grid(2), tmp_path)
    assert stored.read_text() == whole
    assert torch.equal(again, first)


def test_a_shard_of_another_image_is_not_believed(tmp_path):
    crops = np.array([[0.0, 0.0, 1.0]])
    shard = FeatureCache(tmp_path, "one", 2).write(crops, torch.ones(1, 2).half())
    other = FeatureCache(tmp_path, "two", 2)
    shard.rename(other.folder / shard.name)
    with pytest.warns(CacheWarning, match="belongs elsewhere"):
        found, values = other.read([(0.0, 0.0, 1.0)])
    assert found == []
    assert values.shape == (0, 2)


def test_a_file_is_no_folder(tiny, encoder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="is a file"):
        SIGMMA(tiny, encoder(), cache_dir=tmp_path / "file")


def test_models_share_a_cache_and_do_not_save_where_it_is(tiny, encoder, read, tmp_path):
    models = [SIGMMA(tiny, encoder(), n_latent=8, seed=s, cache_dir=tmp_path / "cache") for s in (0, 1)]
    models[0].train(max_epochs=1, split="none", batch_size=32, enable_progress_bar=False)
    models[0].get_tile_representation()
    read.clear()
    models[1].train(max_epochs=1, split="none", batch_size=32, enable_progress_bar=False)
    models[1].save(tmp_path / "model")
    loaded = SIGMMA.load(tmp_path / "model", tiny, encoder(), cache_dir=tmp_path / "cache")
    x = loaded.get_tile_representation().X
    assert not read
    assert "cache" not in (tmp_path / "model" / "model.json").read_text()
    np.testing.assert_array_equal(SIGMMA.load(tmp_path / "model", tiny, encoder()).get_tile_representation().X, x)
