import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from sigmma_sc import metrics
from sigmma_sc.errors import SetupError, SplitWarning
from sigmma_sc.metrics.retrieval import partner_ranks, recall_at_percent, retrieval_table

FORWARD, BACKWARD = "image→transcriptome", "transcriptome→image"


def brute_ranks(query, candidates):
    """The definition, one cosine at a time in Python floats."""

    def cosine(a, b):
        a, b = [float(v) for v in a], [float(v) for v in b]
        return math.fsum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    ranks = []
    for i, q in enumerate(query):
        own = cosine(q, candidates[i])
        better = [cosine(q, c) >= own - 1e-12 for j, c in enumerate(candidates) if j != i]
        ranks.append(1 + sum(better))
    return ranks


def pairs(n, d, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, x + noise * rng.normal(size=(n, d))


def test_ranks_by_hand():
    query = np.array([[1.0, 0], [0, 1], [1, 1]])
    candidates = np.array([[2.0, 0], [5, 1], [0, 3]])
    # Query 0: its partner is parallel. Query 1: candidate 2 is nearest, its partner second. Query 2: candidate 1 is
    # nearest (cos .83), then 0 and 2 tie (cos .71), and the tie goes against the partner.
    assert partner_ranks(query, candidates).tolist() == [1, 2, 3]


@pytest.mark.parametrize("n", [1, 2, 7, 41])
def test_ranks_equal_brute_force(n):
    query, candidates = pairs(n, 3, seed=n)
    assert partner_ranks(query, candidates).tolist() == brute_ranks(query, candidates)


def test_chunked_equals_full_with_duplicates():
    rng = np.random.default_rng(1)
    query = rng.normal(size=(203, 64)).astype(np.float32)
    candidates = query + rng.normal(size=query.shape).astype(np.float32) * 1.5
    copies = rng.integers(0, 203, size=150)
    candidates[rng.permutation(203)[:150]] = candidates[copies]
    full = partner_ranks(query, candidates, chunk=203)
    assert full.tolist() == brute_ranks(query, candidates)
    for chunk in (1, 2, 3, 7, 16, 64, 101, 202, 5000):
        np.testing.assert_array_equal(partner_ranks(query, candidates, chunk=chunk), full)


@pytest.mark.parametrize("d", [3, 768, 3000])
@pytest.mark.parametrize("chunk", [1, 5, 13, 2048])
def test_a_collapsed_tower_scores_last(d, chunk):
    query, candidates = pairs(30, d)
    candidates[:] = candidates[0] / 3
    candidates[::2] *= 1024.0  # length never matters
    assert set(partner_ranks(query, candidates, chunk=chunk)) == {30}
    assert set(partner_ranks(candidates, query, chunk=chunk)) == set(range(1, 31))


def test_a_duplicate_counts_against_its_twin_only():
    x = np.eye(5)
    x[3] = x[1]
    assert partner_ranks(x, x).tolist() == [1, 2, 1, 2, 1]


def test_a_float32_difference_is_no_tie():
    candidates = np.array([[1, 0], [1, 1e-3]], dtype=np.float32)
    assert partner_ranks(candidates, candidates).tolist() == [1, 1]


def test_ranks_follow_a_permutation_of_the_tiles():
    query, candidates = pairs(57, 4)
    order = np.random.default_rng(2).permutation(57)
    np.testing.assert_array_equal(
        partner_ranks(query[order], candidates[order], chunk=10), partner_ranks(query, candidates, chunk=10)[order]
    )


def test_extreme_lengths_keep_their_direction():
    query, candidates = pairs(12, 3)
    expected = partner_ranks(query, candidates)
    np.testing.assert_array_equal(partner_ranks(query * 1e-200, candidates * 1e200), expected)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_rows_without_direction_are_counted(value):
    query, candidates = pairs(6, 3)
    candidates[[2, 4]] = value
    with pytest.raises(SetupError, match=r"2 of 6 rows of candidates .*first: row 2.*Drop"):
        partner_ranks(query, candidates)


def test_wrong_shapes_are_named():
    query, candidates = pairs(6, 3)
    with pytest.raises(SetupError, match=r"\(6, 3\).*\(5, 3\)"):
        partner_ranks(query, candidates[:5])
    with pytest.raises(SetupError, match=r"shape \(6,\)"):
        partner_ranks(query[:, 0], candidates)
    with pytest.raises(SetupError, match=r"shape \(0, 3\)"):
        partner_ranks(query[:0], candidates[:0])
    with pytest.raises(SetupError, match="chunk=0"):
        partner_ranks(query, candidates, chunk=0)


def test_recall_by_hand():
    # ceil of 5, 10, 15 % of 30 is 2, 3, 5.
    assert recall_at_percent([1, 2, 3, 4, 5, 30], 30) == {5: 2 / 6, 10: 3 / 6, 15: 5 / 6}
    # A full multiple of 20 is not rounded up: 1, 2, 3.
    assert recall_at_percent([1, 2, 3, 4], 20) == {5: 1 / 4, 10: 2 / 4, 15: 3 / 4}
    assert recall_at_percent([1], 1) == {5: 1.0, 10: 1.0, 15: 1.0}
    assert recall_at_percent([161, 162], 1000, (16.1, 100)) == {16.1: 0.5, 100: 1.0}


def test_recall_of_every_rank_is_the_chance():
    for n in (1, 2, 19, 20, 21, 33, 100, 101):
        recall = recall_at_percent(np.arange(1, n + 1), n)
        assert recall == {p: -(-p * n // 100) / n for p in (5, 10, 15)}


def test_recall_refuses_what_cannot_be():
    for ranks in ([0, 1], [1, 11], []):
        with pytest.raises(SetupError, match="n=10"):
            recall_at_percent(ranks, 10)
    for p in (0, -5, 101):
        with pytest.raises(SetupError, match=f"percents contains {p}"):
            recall_at_percent([1], 10, (p,))


def test_table_holds_every_slide_direction_and_scale():
    n, slide = 53, np.repeat(["b", "a"], [33, 20])
    image, genes = {}, {}
    for seed, (scale, d) in enumerate({"micro": 4, "macro": 6}.items()):
        image[scale], genes[scale] = pairs(n, d, seed)
    table = retrieval_table(image, genes, slide)
    assert table.columns.tolist() == (
        ["slide", "direction", "scale", "recall@5%", "recall@10%", "recall@15%", "median_rank", "pool"]
        + ["chance@5%", "chance@10%", "chance@15%"]
    )
    keys = table[["slide", "direction", "scale"]].apply(tuple, axis=1).tolist()
    assert keys == [(s, d, c) for s in "ba" for d in (FORWARD, BACKWARD) for c in ("micro", "macro", "all")]

    def both(x):
        return np.hstack([x[s] / np.linalg.norm(x[s], axis=1, keepdims=True) for s in ("micro", "macro")])

    image["all"], genes["all"] = both(image), both(genes)
    for _, row in table.iterrows():
        tiles = slide == row["slide"]
        query, candidates = (image, genes) if row["direction"] == FORWARD else (genes, image)
        ranks = np.array(brute_ranks(query[row["scale"]][tiles], candidates[row["scale"]][tiles]))
        pool = {"b": 33, "a": 20}[row["slide"]]
        assert row["pool"] == pool
        assert row["median_rank"] == np.median(ranks)
        for p, cutoff in {33: {5: 2, 10: 4, 15: 5}, 20: {5: 1, 10: 2, 15: 3}}[pool].items():
            assert row[f"recall@{p}%"] == np.mean(ranks <= cutoff)
            assert row[f"chance@{p}%"] == cutoff / pool


def test_one_scale_has_no_all_and_order_of_scales_is_free():
    x, y = pairs(25, 3)
    u, v = pairs(25, 5, seed=1)
    assert retrieval_table({"macro": x}, {"macro": y}, ["s"] * 25)["scale"].tolist() == ["macro", "macro"]
    pd.testing.assert_frame_equal(
        retrieval_table({"micro": x, "macro": u}, {"micro": y, "macro": v}, ["s"] * 25),
        retrieval_table({"micro": x, "macro": u}, {"macro": v, "micro": y}, ["s"] * 25),
    )


def test_other_slides_never_matter():
    x, y = pairs(40, 4)
    alone = retrieval_table({"macro": x}, {"macro": y}, ["s"] * 40)
    # The second slide is a copy of the first, in another order and mixed in: duplicates everywhere, but elsewhere.
    order = np.random.default_rng(3).permutation(80)
    slide = np.array(["s"] * 40 + ["t"] * 40)[order]
    mixed = retrieval_table({"macro": np.vstack([x, x])[order]}, {"macro": np.vstack([y, y])[order]}, slide)
    for name in "st":
        pd.testing.assert_frame_equal(
            mixed[mixed["slide"] == name].drop(columns="slide").reset_index(drop=True), alone.drop(columns="slide")
        )


def test_perfect_and_random_embeddings():
    n = 1000
    x, _ = pairs(n, 8)
    perfect = retrieval_table({"macro": x}, {"macro": 7 * x}, ["s"] * n)
    assert (perfect[["recall@5%", "median_rank"]] == 1).all(axis=None)

    _, y = pairs(n, 8, seed=9)
    random = retrieval_table({"macro": x}, {"macro": y}, ["s"] * n)
    for p in (5, 10, 15):
        assert random[f"chance@{p}%"].tolist() == [p / 100] * 2
        assert np.abs(random[f"recall@{p}%"] - p / 100).max() < 4 * math.sqrt(p / 100 * (1 - p / 100) / n)
    assert random["median_rank"].between(450, 550).all()


def test_slides_of_one_tile_are_left_out_with_a_warning():
    x, y = pairs(5, 3)
    with pytest.warns(SplitWarning, match="'lonely'") as caught:
        table = retrieval_table({"macro": x}, {"macro": y}, ["s", "s", "lonely", "s", "s"])
    assert caught[0].filename == __file__
    assert table["slide"].unique().tolist() == ["s"]
    assert table["pool"].tolist() == [4, 4]
    with pytest.raises(SetupError, match="No slide has two tiles"):
        retrieval_table({"macro": x[:1]}, {"macro": y[:1]}, ["s"])


def test_table_refuses_what_does_not_fit():
    x, y = pairs(5, 3)
    with pytest.raises(SetupError, match=r"\['micro'\].*\['macro'\]"):
        retrieval_table({"micro": x}, {"macro": y}, ["s"] * 5)
    with pytest.raises(SetupError, match="5 labels.*4"):
        retrieval_table({"macro": x[:4]}, {"macro": y[:4]}, ["s"] * 5)
    with pytest.raises(SetupError, match="1 of 5 tiles have no slide"):
        retrieval_table({"macro": x}, {"macro": y}, ["s", "s", None, "s", "s"])
    with pytest.raises(SetupError, match="scale 'all'"):
        retrieval_table({"macro": x, "all": x}, {"macro": y, "all": y}, ["s"] * 5)
    with pytest.raises(SetupError, match=r"'micro': 5, 'macro': 4"):
        retrieval_table({"micro": x, "macro": x[:4]}, {"micro": y, "macro": y}, ["s"] * 5)
    with pytest.raises(SetupError, match="one scale at least"):
        retrieval_table({}, {}, ["s"] * 5)
    x[3] = 0
    with pytest.raises(SetupError, match=r"1 of 5 rows of image\['macro'\]"):
        retrieval_table({"macro": x}, {"macro": y}, ["s"] * 5)


def test_public_names_are_lazy_and_need_neither_torch_nor_scanpy():
    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = metrics.nothing
    code = "import sys; from sigmma_sc.metrics import partner_ranks; print({'torch', 'scanpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
