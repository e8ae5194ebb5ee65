import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from sigmma_sc.errors import SetupError
from sigmma_sc.infer.reference import Reference
from sigmma_sc.infer.search import (
    alike_by_slide,
    mean_of,
    of_genes,
    p_values,
    require_unrelated,
    similarity,
    unrelated,
)


def a_reference(expression, train, transcriptome=None):
    n = len(expression)
    zeros = np.zeros(n, np.int64)
    return Reference(
        genes=[f"g{k}" for k in range(np.shape(expression)[1])],
        library=1.0,
        expression=np.asarray(expression, np.float16),
        image={},
        transcriptome={"macro": np.eye(n, dtype=np.float32) if transcriptome is None else transcriptome},
        encoder=np.zeros((n, 1), np.float16),
        slide=zeros,
        block=zeros,
        train=np.asarray(train),
        position=np.zeros((n, 2), np.float32),
        stain=np.zeros((n, 6), np.float32),
    )


def test_p_values_are_ranks_and_ties_count_against():
    null = np.array([0.1, 0.2, 0.2, 0.4])
    found = np.array([0.5, 0.4, 0.3, 0.2, 0.0, np.nan])
    np.testing.assert_allclose(p_values(found, null), [1 / 5, 2 / 5, 2 / 5, 4 / 5, 1, np.nan])


def test_the_rule_of_benjamini_and_hochberg_is_applied_by_slide():
    p = np.array([0.01, 0.04, 0.2, np.nan, 0.04, 0.9, 0.9, 0.9])
    slide = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    # Slide 0: 0.01 ≤ 0.1/3, 0.04 ≤ 0.2/3, 0.2 > 0.1. Slide 1: 0.04 > 0.1/4.
    assert alike_by_slide(p, slide, 0.1).tolist() == [True, True] + 6 * [False]
    # Of seven, 0.04 is the third: 0.04 ≤ 0.3/7.
    assert alike_by_slide(p, np.zeros(8, int), 0.1).tolist() == [True, True, False, False, True, False, False, False]


def test_similarity_is_the_mean_cosine_over_scales():
    rng = np.random.default_rng(0)
    query, tiles = (rng.normal(size=(n, 6)).astype(np.float32) for n in (3, 5))
    vector = mean_of(query, 2)
    expected = 0
    for some in (slice(0, 3), slice(3, 6)):
        mean = (query[:, some] / np.linalg.norm(query[:, some], axis=1, keepdims=True)).mean(axis=0)
        expected = expected + cosine_similarity(mean[None], tiles[:, some])[0] / 2
    np.testing.assert_allclose(similarity(vector, tiles, 2), expected, atol=1e-6)
    assert similarity(mean_of(tiles[:1], 2), tiles, 2)[0] == pytest.approx(1)


def test_genes_are_those_of_the_training_tiles_that_express_them_most():
    expression = np.array([[0, 9.0], [5, 0], [4, 1], [9, 9], [1, 0]])
    reference = a_reference(expression, [True, True, True, False, True])
    np.testing.assert_array_equal(of_genes(reference, ["g0"], "macro", 2), np.eye(5)[[1, 2]])
    # Standardised by the training tiles: (0, 9, 4, 5, 0) / spread, tile 0 first by its second gene.
    z = (expression - expression[reference.train].mean(0)) / expression[reference.train].std(0)
    best = np.flatnonzero(reference.train)[np.argsort(-z[reference.train].mean(1))]
    np.testing.assert_array_equal(of_genes(reference, ["g0", "g1"], "macro", 3), np.eye(5)[best[:3]])
    with pytest.raises(SetupError, match="have the same expression in all training tiles"):
        of_genes(a_reference(np.ones((3, 1)), [True] * 3), ["g0"], "macro", 1)


def test_unrelated_tiles_are_those_whose_expression_does_not_correlate():
    rng = np.random.default_rng(0)
    expression = rng.normal(size=(30, 7)).astype(np.float16)
    reference = a_reference(expression, np.arange(30) < 20)
    # A query at a training tile, so cold that this one alone is retrieved.
    here = unrelated(np.eye(30, dtype=np.float32)[4], reference, "macro", 1e-3)
    deviation = expression.astype(float) - expression[:20].astype(float).mean(axis=0)
    expected = [np.corrcoef(deviation[4], row)[0, 1] <= 0 for row in deviation]
    assert here.tolist() == expected
    assert not here[4]
    assert 5 < here.sum() < 25


def test_levels_need_tiles():
    require_unrelated(9, 0.1)
    with pytest.raises(SetupError, match=r"fdr=0.1 needs 9 .* there are 8"):
        require_unrelated(8, 0.1)
