"""Every switch of the method, trained for real on a small slide."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sigmma_sc import SIGMMA
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.errors import SetupError
from sigmma_sc.nn.objectives import info_nce
from sigmma_sc.nn.towers import Towers
from sigmma_sc.train.batches import TileBatches

QUIET = {"enable_progress_bar": False, "split": "none", "batch_size": 64}


def fitted(sdata, encoder, epochs=1, **options):
    model = SIGMMA(sdata, encoder, n_latent=16, **options)
    model.train(max_epochs=epochs, lr=3e-3, **QUIET)
    return model


def test_gene_vectors_in_the_place_of_the_cell_graph(tiny, encoder, tmp_path):
    model = fitted(tiny, encoder(), 20, cells="genes")
    last = {k: v.iloc[-1, 0] for k, v in model.history.items()}
    assert last["train_loss_macro"] < 0.8 * last["train_ln_batch"]
    with pytest.raises(SetupError, match="embeds tiles, not cells"):
        model.get_latent_representation()
    # The vector is what scanpy makes of the tile's summed counts.
    slide = model.resolve()[0]
    tiles = slide.tiles
    vectors = model.data.node_features(slide, tiles).toarray()
    busy = int(tiles.n_cells.argmax())
    counts = np.asarray(tiny["table"].X[slide.rows[tiles.take(np.array([busy])).cells]].sum(axis=0)).ravel()
    logs = np.log1p(counts / counts.sum() * model.data.node_features.target_sum)
    beside = np.log1p([counts.sum(), tiles.n_cells[busy]])
    np.testing.assert_allclose(vectors[busy], np.concatenate([logs, beside]), rtol=1e-5)
    model.save(tmp_path / "model")
    loaded = SIGMMA.load(tmp_path / "model", tiny, encoder())
    for modality in ("image", "transcriptome"):
        a, b = (m.get_tile_representation(modality=modality, scale="all").X for m in (model, loaded))
        np.testing.assert_array_equal(a, b)


def test_macro_alone(tiny, encoder):
    model = fitted(tiny, encoder(), 2, loss_weights=(0, 0, 1))
    last = {k: v.iloc[-1, 0] for k, v in model.history.items()}
    assert last["train_loss_epoch"] == pytest.approx(last["train_loss_macro"], rel=1e-6)
    assert set(model.evaluate_retrieval(split="train").scale) == {"macro"}
    with pytest.raises(SetupError, match="scale='micro' is not one of 'macro', 'all'"):
        model.get_tile_representation(scale="micro")
    assert model.get_latent_representation(scale="micro").shape[1] == 16  # what the macro graph is built on


def test_micro_alone_has_no_coarser_cells(tiny, encoder):
    model = fitted(tiny, encoder(), loss_weights=(1, 0, 0))
    with pytest.raises(SetupError, match="scale='macro'"):
        model.get_latent_representation(scale="macro")
    assert model.get_latent_representation(scale="all").shape[1] == 16


def test_weights_weigh(tiny, encoder):
    model = fitted(tiny, encoder(), 1, loss_weights=(0.5, 2, 1))
    last = {k: v.iloc[-1, 0] for k, v in model.history.items()}
    total = 0.5 * last["train_loss_micro"] + 2 * last["train_loss_meso"] + last["train_loss_macro"]
    assert last["train_loss_epoch"] == pytest.approx(total, rel=1e-5)


def edges_of(model, scale):
    """Weights among the cells of the busiest tile, row v the sources of v."""
    slide = model._slides[0]
    tiles = slide.tiles
    tiles = tiles.take(np.array([int(tiles.n_cells.argmax())]))
    source, target, weight = model.embedder.edges(slide, tiles)[scale]
    out = np.zeros((len(tiles.cells),) * 2)
    out[target, source] = weight
    return out, slide.xy[tiles.cells] * slide.microns_per_pixel


def test_edge_switches_reach_the_graph(tiny, encoder):
    drawn, _ = edges_of(fitted(tiny, encoder()), 2)
    both, _ = edges_of(fitted(tiny, encoder(), symmetric_edges=True, radius=9.0), 2)
    assert np.abs(drawn - drawn.T).max() > 1e-3
    np.testing.assert_allclose(both, both.T, atol=1e-6)
    every, _ = edges_of(fitted(tiny, encoder(), edges="full"), 2)
    np.testing.assert_array_equal(every, 1 - np.eye(len(every)))
    near, xy = edges_of(fitted(tiny, encoder(), edges="none", radius=9.0), 2)
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    block = (edges_of(fitted(tiny, encoder(), edges="full", radius=1e4), 0)[0] > 0) | np.eye(len(xy), dtype=bool)
    np.testing.assert_array_equal(near > 0, (apart <= 9) & block & ~np.eye(len(xy), dtype=bool))
    assert 10 < (near > 0).sum() < 0.5 * len(xy) ** 2


def test_a_learned_temperature_moves_and_is_kept(tiny, encoder, tmp_path):
    fixed, learned = (fitted(tiny, encoder(), 3, learn_temperature=learn) for learn in (False, True))
    assert all(float(t) == pytest.approx(0.07) for t in fixed.module.temperatures.values())
    found = {s: float(t) for s, t in learned.module.temperatures.items()}
    assert all(abs(t - 0.07) > 1e-4 for t in found.values())
    assert len(set(found.values())) == 3
    learned.save(tmp_path / "model")
    loaded = SIGMMA.load(tmp_path / "model", tiny, encoder())
    assert {s: float(t) for s, t in loaded.module.temperatures.items()} == found


def test_a_learned_temperature_stays_within_its_bounds_and_comes_back(tiny, encoder, monkeypatch):
    def pull(sign):
        monkeypatch.setattr(Towers, "losses", lambda self, out: {s: sign * tau for s, tau in self.temperatures.items()})

    for sign, start, bound in ((1, 0.0101, 0.01), (-1, 0.49, 0.5)):
        pull(sign)
        model = SIGMMA(tiny, encoder(), n_latent=8, learn_temperature=True, temperature=start)
        model.train(max_epochs=2, lr=0.5, **QUIET)
        assert all(float(t) == pytest.approx(bound) for t in model.module.temperatures.values())
    pull(1)
    model.train(max_epochs=1, lr=0.01, **QUIET)
    assert all(0.45 < float(t) < 0.4999 for t in model.module.temperatures.values())


def test_gradient_of_info_nce_is_that_of_the_formula(rng):
    image, cells = (torch.from_numpy(z).requires_grad_() for z in rng.normal(size=(2, 5, 4)))
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    info_nce(image, cells, tau).backward()

    def by_hand(image, cells, tau):
        unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (image, cells)]
        s = np.exp(unit[0] @ unit[1].T / tau)
        return -0.5 * (np.log(np.diag(s) / s.sum(0)) + np.log(np.diag(s) / s.sum(1))).mean()

    values, step = [image.detach().numpy(), cells.detach().numpy(), 0.2], 1e-6
    for which, tensor in enumerate((image, cells)):
        for at in np.ndindex(5, 4):
            ends = []
            for sign in (1, -1):
                moved = [v.copy() if isinstance(v, np.ndarray) else v for v in values]
                moved[which][at] += sign * step
                ends.append(by_hand(*moved))
            assert float(tensor.grad[at]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)
    slope = (by_hand(*values[:2], 0.2 + step) - by_hand(*values[:2], 0.2 - step)) / (2 * step)
    assert float(tau.grad) == pytest.approx(slope, abs=1e-6)


def test_edge_sampler_cools_down(tiny, encoder):
    import lightning.pytorch as pl

    class Watch(pl.Callback):
        seen: list = []

        def on_train_batch_end(self, trainer, plan, *_):
            self.seen.append(plan.module.cell_tower.graph.edge_temperature)

    model = SIGMMA(tiny, encoder(), n_latent=16, edge_temperature=(2.0, 0.5))
    model.train(max_epochs=3, callbacks=[Watch()], **QUIET)
    steps = len(Watch.seen)
    np.testing.assert_allclose(Watch.seen, 2.0 * 0.25 ** (np.arange(steps) / (steps - 1)))


def test_a_model_without_a_graph_has_no_sampler_to_cool(tiny, encoder):
    fitted(tiny, encoder(), cells="genes", edge_temperature=(2.0, 0.5))


def test_monte_carlo_evaluation_is_seeded_and_averages(tiny, encoder):
    model = fitted(tiny, encoder(), 2)
    exact = model.get_latent_representation(scale="macro")
    found = {}
    for n in (1, 1, 64):
        model.data.config = replace(model.config, mc_samples=n)
        before = torch.get_rng_state()
        got = model.get_latent_representation(scale="macro")
        assert torch.equal(before, torch.get_rng_state())
        if n in found:
            np.testing.assert_array_equal(found[n], got)
        found[n] = got
    distance = {n: np.abs(z - exact).mean() for n, z in found.items()}
    assert distance[1] > 1e-4
    assert distance[64] < 0.5 * distance[1]
    model.data.config = model.config
    np.testing.assert_array_equal(model.get_latent_representation(scale="macro"), exact)


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
