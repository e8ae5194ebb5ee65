from itertools import pairwise

import numpy as np
import pytest

from sigmma_sc.registration.coarse import Candidate, _Image, _rasterised, distinct, rivals, search, turns
from sigmma_sc.registration.explain import explained_variance, score_of
from sigmma_sc.registration.pose import displacement, similarity


@pytest.fixture(scope="module")
def made(section):
    return section(np.random.default_rng(0))


def test_scores_of_all_shifts_are_those_of_a_regression_at_each(made):
    squares, colours, pose = made
    image = _Image.of(colours)
    x, mask = _rasterised(
        squares.xy @ pose[:2, :2].T - (squares.xy @ pose[:2, :2].T).min(axis=0), squares, image.microns, 96.0
    )
    found = image._scores(x, mask, 96.0)
    height, width = mask.shape
    share = (image.microns / 96.0) ** 2
    for row, column in ((4, 7), (0, 3), (-5, 6)):
        inside = np.zeros((height, width), bool)
        layers = np.zeros((len(image.layers), height, width))
        for y in range(max(0, -row), min(height, image.mask.shape[0] - row)):
            for k in range(max(0, -column), min(width, image.mask.shape[1] - column)):
                inside[y, k] = mask[y, k] * image.mask[y + row, k + column] > 0
                layers[:, y, k] = image.layers[:, y + row, k + column]
        explained, total = explained_variance(x[:, inside].T.astype(float), layers[:, inside].T, np.ones(inside.sum()))
        expected, _ = score_of(explained / total, inside.sum() * share, mask.sum() * share, len(x))
        assert found[row + height - 1, column + width - 1] == pytest.approx(expected, rel=2e-3)


def test_the_pose_is_found_among_all_turns_and_shifts(made):
    squares, colours, pose = made
    found = search(squares, colours, (0.97, 1.03), 5)
    assert displacement(found[0].pose, pose, squares.xy) < colours.side
    assert found[0].score > 1.5 * found[1].score
    for one, other in pairwise(found):
        assert one.score >= other.score
        assert displacement(one.pose, other.pose, squares.xy) > colours.side


def test_turns_leave_no_gap():
    """Every allowed turn and scale is within 0.4 squares, along each, of one that is tried."""
    radius, side = 1000.0, 100.0
    tried = np.array([(a, np.log(s), m) for a, s, m in turns(radius, side, (0.8, 1.25))])
    rng = np.random.default_rng(0)
    for _ in range(200):
        angle = rng.integers(4) * np.pi / 2 + rng.uniform(-1, 1) * np.deg2rad(15)
        grow, mirrored = rng.uniform(np.log(0.8), np.log(1.25)), rng.integers(2)
        same = tried[tried[:, 2] == mirrored]
        apart = np.abs(np.column_stack([same[:, 0] - angle, same[:, 1] - grow])).max(axis=1) * radius
        assert apart.min() <= 0.4 * side + 1e-9


def test_candidates_alike_count_once():
    xy = np.random.default_rng(0).uniform(0, 1000, (50, 2))
    poses = [similarity(0, 1, False, (0, 0), (x, 0)) for x in (0, 5, 40, 43, 100)]
    scores = [0.5, 0.9, 0.3, 0.2, 0.7]
    found = distinct([Candidate(p, s) for p, s in zip(poses, scores, strict=True)], xy, 20.0, 3)
    assert [one.score for one in found] == [0.9, 0.7, 0.3]


def test_the_best_elsewhere_are_kept_behind_many_neighbours():
    xy = np.random.default_rng(0).uniform(0, 1000, (50, 2))

    def shifted(x, score):
        return Candidate(np.array([[1.0, 0, x], [0, 1, 0], [0, 0, 1]]), score)

    near = [shifted(x, 1 - x / 1000) for x in (0, 60, 120, 180)]
    far = [shifted(x, score) for x, score in ((500, 0.6), (520, 0.59), (-400, 0.5), (900, 0.4), (700, 0.3))]
    found = near + far
    best = distinct(found, xy, 50, 4)
    assert best == near
    # The one at 520 is the one at 500 over again, and three are enough.
    assert rivals(found, best, xy, 50) == [far[0], far[2], far[3]]
    assert rivals(found, [*best[:3], far[0]], xy, 50) == [far[2], far[3]]
    assert rivals([], [], xy, 50) == []
