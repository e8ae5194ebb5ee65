import numpy as np
import pytest

from sigmma_sc.errors import SetupError, SplitWarning
from sigmma_sc.tissue.split import near, resolve_split, split_slide
from sigmma_sc.tissue.tiling import covering_tiles


@pytest.fixture
def tiles(rng):
    return covering_tiles(rng.uniform(0, 1, (10, 2)), 3100, 1500, 100)[0]


@pytest.mark.parametrize("kind", ["blocks", "end"])
def test_a_guard_band_of_one_tile(tiles, kind):
    role = split_slide(tiles, np.ones(len(tiles), bool), kind, 0)
    held = tiles.origins[np.isin(role, ["test", "val"])]
    gap = np.abs(tiles.origins[role == "train"][:, None] - held[None]).max(-1).min(1) - 100
    assert gap.min() >= 100 - 1e-6
    assert 0.15 < (role == "test").mean() < 0.35
    assert (role == "val").any()


def test_end_is_one_end(tiles):
    role = split_slide(tiles, np.ones(len(tiles), bool), "end", 0)
    assert tiles.origins[role == "test", 0].max() < tiles.origins[role == "train", 0].min()


def test_a_validation_strip_that_the_guard_swallows_takes_the_next():
    """Ten strips of one tile: two test, and of the one for validation nothing would be left beside them."""
    tiles = covering_tiles(np.array([[50.0, 50.0]]), 1000, 300, 100)[0]
    role = split_slide(tiles, np.ones(len(tiles), bool), "end", 0)
    column = (tiles.origins[:, 0] / 100).round().astype(int)
    assert {k: set(role[column == k]) for k in range(10)} == {
        **{k: {"test"} for k in (0, 1)},
        **{k: {"guard"} for k in (2, 4)},
        3: {"val"},
        **{k: {"train"} for k in range(5, 10)},
    }


def test_random_warns_and_guards_nothing(tiles):
    with pytest.warns(SplitWarning, match="leak|too good"):
        role = split_slide(tiles, np.ones(len(tiles), bool), "random", 0)
    assert not (role == "guard").any()


def test_unusable_tiles_play_no_role(tiles, rng):
    usable = rng.random(len(tiles)) < 0.7
    role = split_slide(tiles, usable, "blocks", 0)
    assert (role[~usable] == "unused").all()


def test_same_seed_same_split(tiles):
    roles = [split_slide(tiles, np.ones(len(tiles), bool), "blocks", s) for s in (1, 1, 2)]
    np.testing.assert_array_equal(roles[0], roles[1])
    assert (roles[0] != roles[2]).any()


def test_near_by_hand(tiles):
    corner = tiles.origins[:1]
    assert near(tiles, corner).sum() == 4  # itself and the three neighbours at a corner of the slide
    assert not near(tiles, np.empty((0, 2))).any()


def test_auto_holds_out_samples_only_when_there_are_enough():
    assert resolve_split("auto", ["a", "a"], 0) == "blocks"
    assert resolve_split("auto", list("abcde"), 0) == resolve_split("sample", list("abcde"), 0)
    held = resolve_split("sample", list("abcde"), 0)
    assert len(set(held["test"]) | set(held["val"])) == 2


def test_refusals(tiles):
    with pytest.raises(SetupError, match="three samples"):
        resolve_split("sample", ["a", "b"], 0)
    with pytest.raises(SetupError, match="'bocks'"):
        resolve_split("bocks", ["a"], 0)
    with pytest.raises(SetupError, match="'z'"):
        resolve_split({"test": ["z"]}, ["a", "b"], 0)
    few = np.zeros(len(tiles), bool)
    few[:2] = True
    with pytest.raises(SetupError, match="2 tiles"):
        split_slide(tiles, few, "blocks", 0)
