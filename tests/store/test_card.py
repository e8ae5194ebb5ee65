"""Figures of a model's card."""

import numpy as np
import pytest

from sigmma_sc.infer.interval import calibration_blocks
from sigmma_sc.metrics.retrieval import tile_ranks
from sigmma_sc.store.card import _interval, recall_intervals


def test_intervals_by_brute_force(aligned):
    chosen = aligned.embed_split()
    table = recall_intervals(chosen)
    ((embedding, tiles),) = chosen
    assert len(table) == 6
    ranks, _ = tile_ranks(
        {scale: z[tiles] for scale, z in embedding.image.items()},
        {scale: z[tiles] for scale, z in embedding.transcriptome.items()},
        np.zeros(len(tiles)),
    )
    position = (embedding.tiles.origins[tiles] / embedding.tiles.side).astype(np.float32)
    block = calibration_blocks(position, np.zeros(len(tiles), np.int64))
    rng = np.random.default_rng(1)
    for row in table.itertuples():
        hit = ranks[row.direction, "all"] <= -(-row.percent * len(tiles) // 100)
        assert row.recall == pytest.approx(hit.mean())
        draws = []
        for _ in range(1500):
            drawn = rng.integers(block.max() + 1, size=block.max() + 1)
            draws.append(np.concatenate([hit[block == b] for b in drawn]).mean())
        half = 1.96 * np.std(draws)
        assert row.low == pytest.approx(max(0, hit.mean() - half), abs=0.04)
        assert row.high == pytest.approx(min(1, hit.mean() + half), abs=0.04)
    assert table["pool"].eq(len(tiles)).all()


def test_no_interval_of_one_block():
    hit = np.array([True, False, True])
    assert np.isnan(_interval(hit, np.zeros(3, int))).all()
    low, high = _interval(hit, np.array([0, 1, 1]))
    assert 0 <= low < 2 / 3 < high <= 1
