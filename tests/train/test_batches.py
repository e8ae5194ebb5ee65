import numpy as np

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.train.batches import TileBatches

QUIET = {"enable_progress_bar": False, "split": "none", "batch_size": 64}


def fitted(sdata, encoder, epochs=1, **options):
    model = SIGMMA(sdata, encoder, n_latent=16, **options)
    model.train(max_epochs=epochs, lr=3e-3, **QUIET)
    return model


def phases(slide, sizes):
    """Tiles (slide, tile) of several phases, numbered one phase after the other."""
    ends = np.cumsum(sizes)
    return [np.column_stack([np.full(n, slide), np.arange(end - n, end)]) for n, end in zip(sizes, ends, strict=True)]


def test_pooled_batches_mix_slides_and_others_do_not():
    slides = [phases(k, [30, 30, 30]) for k in range(2)]
    for pooled in (False, True):
        sampler = TileBatches(slides, 20, shuffle=True, seed=0, pooled=pooled)
        seen = []
        for epoch in range(12):
            sampler.epoch = epoch
            batches = list(sampler)
            assert len(batches) == len(sampler)
            assert {len({s for s, _ in batch}) for batch in batches} == {1 + pooled}
            drawn = [sorted(t for batch in batches for s, t in batch if s == k) for k in range(2)]
            seen += [tiles[0] for tiles in drawn]
            assert all(tiles == list(range(tiles[0], tiles[0] + 30)) and tiles[0] % 30 == 0 for tiles in drawn)
        assert set(seen) == {0, 30, 60}


def test_every_epoch_has_as_many_batches_and_phases_that_hardly_touch_the_tissue_are_left_out():
    sampler = TileBatches([phases(0, [40, 25, 3])], 16, shuffle=True, seed=0)
    for epoch in range(20):
        sampler.epoch = epoch
        sizes = [len(batch) for batch in sampler]
        assert len(sizes) == len(sampler) == 3
        assert sum(sizes) in (40, 25)
    held_out = TileBatches([phases(0, [5]), phases(1, [1])], 16, shuffle=False, seed=0)
    assert list(held_out) == [[(0, t) for t in range(5)]]
    assert not len(TileBatches([], 16, shuffle=False, seed=0, pooled=True))


def test_processes_share_every_batch():
    tiles = phases(0, [23])
    one = TileBatches([tiles], 8, shuffle=True, seed=1)
    shares = []
    for rank in (0, 1):
        part = TileBatches([tiles], 8, shuffle=True, seed=1)
        part.rank, part.world = rank, 2
        shares.append(list(part))
    assert len(shares[0]) == len(shares[1]) == len(one) == len(list(one))
    for whole, a, b in zip(one, *shares, strict=True):
        assert len(a) == len(b) == len(whole) // 2
        assert {*a, *b} <= set(whole)
        assert len({*a, *b}) == len(whole) // 2 * 2


def test_no_batch_is_a_single_tile_or_leaves_a_process_without():
    for n in range(2, 30):
        for world in (1, 2, 3):
            batches = TileBatches([phases(0, [n, n // 2])], 2, shuffle=True, seed=0)
            batches.world = world
            shares = list(batches)
            assert len(shares) == len(batches) == (0 if n < world else len(shares))
            assert all(len(share) >= (2 if world == 1 else 1) for share in shares)
            assert shares or n < world


def test_pooled_negatives_train_on_several_slides(encoder):
    both = {}
    for seed in (0, 1):
        both[f"slide{seed}"] = simulate_tissue(n_cells=500, seed=seed)
    SIGMMA.setup_spatialdata(both, tile_size=64)
    within, pooled = (fitted(both, encoder(), 1, negatives=n) for n in ("within_slide", "pooled"))
    ln = [m.history["train_ln_batch"].iloc[-1, 0] for m in (within, pooled)]
    assert ln[1] > ln[0]
    assert np.isfinite(pooled.history["train_loss_epoch"].iloc[-1, 0])


def test_batches_of_an_epoch_depend_on_its_number_alone():
    def drawn(epoch):
        sampler.epoch = epoch
        return list(sampler)

    sampler = TileBatches([[np.column_stack([np.zeros(20, int), np.arange(20)])]], 5, shuffle=True, seed=3)
    first = [drawn(epoch) for epoch in (0, 1, 2)]
    assert [drawn(epoch) for epoch in (2, 0, 1)] == [first[2], first[0], first[1]]
    assert first[0] != first[1]
