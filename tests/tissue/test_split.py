import numpy as np
import pytest

import sigmma_sc as sg
from sigmma_sc import SIGMMA
from sigmma_sc.errors import SetupError, SplitWarning
from sigmma_sc.tissue.split import (
    SPLITS,
    Auto,
    Blocks,
    Donor,
    DrawnSamples,
    End,
    NoSplit,
    Random,
    Samples,
    Section,
    Split,
    get_split,
    near,
    register_split,
)
from sigmma_sc.tissue.tiling import covering_tiles

LETTERS = {"t": "train", "v": "val", "x": "test", "g": "guard", "-": "unused"}

# Roles of a slide of 13 × 7 tiles, 77 of 91 usable, row by row, as they were before splits were classes (0.1.0).
DRAWN = {
    ("blocks", 0): "t-tgv-ggxxgttggg-vv-gxxgggv-ggggggxxxxxvv-ttttgxx-xxgggttt-ggggggggg-tgg-ggg--xxg-tg-xgvgtt",
    ("blocks", 1): "t-xxg-ttttttttgx-gt-ttttttt-xxgtttttttttg-xgggggg-ggtggggg-gxxxxxttt-ggg-xxx--ttt-vg-xggxxx",
    ("blocks", 5): "t-ttt-xxgttttggg-gg-xgggggv-vvggxxggxxxvv-vggxxgg-xxgggggg-ggggggggg-ttt-tgg--xxg-tt-ttgxxx",
    ("end", 0): "x-xgv-tttttttxxx-vg-ttttttx-xgvgtttttttxx-gvgtttt-ttxxxgvg-ttttttxxx-vgt-ttt--xxx-vg-tttttt",
    ("random", 0): "t-ttt-xxttxttttt-tt-xttvvtt-vtttvttxtttvx-tttxttv-vtxtxttx-vtttttttt-txx-txx--ttt-tt-xtxttt",
    ("random", 5): "t-ttt-xttttttxvt-tt-tvttttv-tvtxxttxtxtxx-ttxttxx-tvttxttt-tttxtvttt-ttx-ttv--xtt-vt-ttxttt",
    ("none", 0): "t-ttt-tttttttttt-tt-ttttttt-ttttttttttttt-ttttttt-tttttttt-ttttttttt-ttt-ttt--ttt-tt-tttttt",
}
VALIDATION_ON_BLOCKS = {
    0: "t-ttt-tgvvgttttt-tt-gvvgttt-tttttgvvgtttt-ttttgvv-tttttttt-ggggttggg-tgg-gtt--vvg-tg-vgtttt",
    5: "t-ttt-tttttttttt-tt-ttggggt-tttttttgvvvtt-ttttttg-vvtttttt-ttggggggg-ttt-tgg--vvg-tt-ttgvvv",
}


@pytest.fixture
def tiles():
    return covering_tiles(np.array([[50.0, 50.0]]), 3100, 1500, 100)[0]


@pytest.fixture
def every(tiles):
    return np.ones(len(tiles), bool)


@pytest.fixture
def registry():
    """Splits that a test registers are gone after it."""
    before = dict(SPLITS)
    yield
    SPLITS.clear()
    SPLITS.update(before)


class Columns(Split):
    """Columns of tiles from left to right, with a guard band of two tiles."""

    name = "columns"
    guard = 2.0

    def groups(self, tiles, usable):
        return np.floor(tiles.origins[:, 0] / tiles.side + 1e-6).astype(int)

    def order(self, groups, rng):
        return groups


def small_slide():
    tiles = covering_tiles(np.array([[50.0, 50.0]]), 1250, 700, 100)[0]
    return tiles, np.random.default_rng(7).random(len(tiles)) < 0.85


@pytest.mark.parametrize(("name", "seed"), DRAWN)
def test_the_same_seed_draws_what_it_always_did(name, seed):
    tiles, usable = small_slide()
    role = get_split(name).roles(tiles, usable, "s", seed)
    assert role.tolist() == [LETTERS[letter] for letter in DRAWN[name, seed]]


@pytest.mark.parametrize("seed", VALIDATION_ON_BLOCKS)
def test_validation_on_blocks_draws_what_it_always_did(seed):
    tiles, usable = small_slide()
    split = get_split({"test": ["b"], "val": "blocks"})
    role = split.roles(tiles, usable, "a", seed)
    assert role.tolist() == [LETTERS[letter] for letter in VALIDATION_ON_BLOCKS[seed]]
    np.testing.assert_array_equal(split.roles(tiles, usable, "b", seed), np.where(usable, "test", "unused"))


@pytest.mark.parametrize(("seed", "test", "val"), [(0, "c", "e"), (1, "f", "a"), (5, "b", "e")])
def test_drawn_samples_are_what_they_always_were(seed, test, val):
    assert DrawnSamples().resolve(list("edcbafgedc"), seed) == Samples((test,), (val,))


@pytest.mark.parametrize(("seed", "test", "val"), [(0, "c", "a"), (1, "a", "b"), (5, "b", "c")])
def test_auto_holds_out_samples_where_there_are_three(seed, test, val):
    assert Auto().resolve(list("cab"), seed) == Samples((test,), (val,))
    assert Auto().resolve(["a", "a", "b"], seed) == Blocks()


@pytest.mark.parametrize("split", [Blocks(), End(), Columns()])
def test_the_guard_band_is_as_wide_as_the_split_says(tiles, every, split):
    role = split.roles(tiles, every, "s", 0)
    held = tiles.origins[np.isin(role, ["test", "val"])]
    gap = np.abs(tiles.origins[role == "train"][:, None] - held[None]).max(-1).min() - 100
    assert gap >= 100 * split.guard - 1e-6
    assert 0.15 < (role == "test").mean() < 0.35
    assert (role == "val").any()


def test_end_is_one_end(tiles, every):
    role = End().roles(tiles, every, "s", 0)
    assert tiles.origins[role == "test", 0].max() < tiles.origins[role == "train", 0].min()


def test_a_validation_strip_that_the_guard_swallows_takes_the_next():
    """Ten strips of one tile: two test, and of the one for validation nothing would be left beside them."""
    tiles = covering_tiles(np.array([[50.0, 50.0]]), 1000, 300, 100)[0]
    role = End().roles(tiles, np.ones(len(tiles), bool), "s", 0)
    column = (tiles.origins[:, 0] / 100).round().astype(int)
    assert {k: set(role[column == k]) for k in range(10)} == {
        **{k: {"test"} for k in (0, 1)},
        **{k: {"guard"} for k in (2, 4)},
        3: {"val"},
        **{k: {"train"} for k in range(5, 10)},
    }


def test_what_each_split_says_of_itself():
    assert {name for name, split in SPLITS.items() if split.leaks} == {"random"}
    assert {name: split.guard for name, split in SPLITS.items() if split.guard != 1} == {"random": 0}
    assert [name for name, split in SPLITS.items() if not (split.holds_out and split.validates)] == ["none"]
    assert {name for name, split in SPLITS.items() if split.takes_turns} == {"section", "donor"}
    assert all(name == split.name for name, split in SPLITS.items())


def test_random_guards_nothing(tiles, every):
    assert set(Random().roles(tiles, every, "s", 0)) == {"train", "val", "test"}


def test_unusable_tiles_play_no_role(tiles, rng):
    usable = rng.random(len(tiles)) < 0.7
    for split in (Blocks(), NoSplit(), Samples(("s",))):
        role = split.roles(tiles, usable, "s", 0)
        assert (role[~usable] == "unused").all()
        assert not (role[usable] == "unused").any()


def test_near_by_hand(tiles):
    corner = tiles.origins[:1]
    assert near(tiles, corner).sum() == 4  # itself and the three neighbours at a corner of the slide
    assert near(tiles, corner, 0.0).sum() == 1
    assert not near(tiles, np.empty((0, 2))).any()


def test_leaving_one_out_in_turn():
    sections = ["C3", "C1", "C2"]
    turns = [get_split("section").in_turn(turn, {}).resolve(sections, seed=9) for turn in range(4)]
    assert [split.test for split in turns] == [("C1",), ("C2",), ("C3",), ("C1",)]
    assert [split.val for split in turns] == [("C2",), ("C3",), ("C1",), ("C2",)]
    # In training, the seed is the turn.
    assert Section().resolve(sections, seed=4) == Samples(("C2",), ("C3",))
    two = Donor().in_turn(0, {"C1": "p", "C2": "p", "C3": "q"}).resolve(sections, seed=0)
    assert two.to_json() == {"test": ["C1", "C2"], "val": "blocks"}
    assert End().in_turn(2, {}) == End()
    with pytest.raises(SetupError, match="needs two donors or more, there is p alone"):
        Donor(0, {"C1": "p", "C2": "p"}).resolve(["C1", "C2"], 0)
    with pytest.raises(SetupError, match="donors names sample 'C9'"):
        Donor(0, {"C9": "p"}).resolve(sections, 0)


@pytest.mark.parametrize(
    "stored",
    [
        "blocks",
        "end",
        "random",
        "none",
        {"test": ["b", "a"], "val": "blocks"},
        {"val": ["a"]},
        {"test": ["c"], "val": []},
    ],
)
def test_what_is_stored_reads_as_the_same_split(stored):
    assert get_split(stored).to_json() == stored
    assert get_split(get_split(stored)) == get_split(stored)
    assert get_split(stored).resolve(list("abcd"), 0).to_json() == stored


def test_a_sample_whose_name_is_part_of_a_word_is_not_held_out(tiles, every):
    """Of val="blocks" the letter "b" is a part, but no sample."""
    role = get_split({"test": ["a"], "val": "blocks"}).roles(tiles, every, "b", 0)
    assert {"train", "val"} < set(role)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("sample", "three samples.*there are 2"),
        ({"test": ["z"]}, r"split\['test'\] sample='z' is not one of 'a', 'b'"),
        ({"test": ["a"], "val": ["a"]}, "holds a sample out twice"),
        ({"test": ["a", "b"]}, "leaves none to train on"),
        ("section", None),
    ],
)
def test_samples_that_do_not_fit(split, message):
    if message is None:
        assert get_split(split).resolve(["a", "b"], 0) == Samples(("a",), "blocks")
        return
    with pytest.raises(SetupError, match=message):
        get_split(split).resolve(["a", "b"], 0)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            "bocks",
            "split='bocks' is not one of 'auto', 'sample', 'blocks', 'end', 'section', 'donor', 'random', 'none'.*sg.reg",
        ),
        (3, "split=3 is not one of"),
        ({"tests": ["a"]}, "split key='tests' is not one of 'val', 'test'"),
        ({"test": "C6"}, r"split\['test'\]='C6' must be a list of samples. Write \['C6'\]"),
        ({"test": "blocks"}, "must be a list"),
    ],
)
def test_unknown_splits_are_named(split, message):
    with pytest.raises(SetupError, match=message):
        get_split(split)


def test_too_few_groups(tiles):
    few = np.zeros(len(tiles), bool)
    few[:2] = True
    with pytest.raises(
        SetupError, match="split='blocks' makes 2 groups of the 2 tiles of a slide with enough cells, and needs 3"
    ):
        Blocks().roles(tiles, few, "s", 0)


class Wrong(Split):
    name = "wrong"

    def __init__(self, groups, order=None):
        object.__setattr__(self, "made", groups)
        object.__setattr__(self, "ordered", order)

    def groups(self, tiles, usable):
        return self.made

    def order(self, groups, rng):
        return groups if self.ordered is None else self.ordered


def test_what_a_class_returns_is_checked(tiles, every):
    halves = (np.arange(len(tiles)) * 4) // len(tiles)
    assert (Wrong(halves).roles(tiles, every, "s", 0) == "test").any()
    for split, message in (
        (Wrong(halves[:-1]), r"'wrong' gives groups of shape \(464,\) and type int64 for 465 tiles"),
        (Wrong(halves / 3), "type float64"),
        (
            Wrong(halves, np.array([0, 1, 1, 2])),
            r"orders 4 groups into \[0, 1, 1, 2\]. Return each once: \[0, 1, 2, 3\]",
        ),
        (Split(), "Split makes no groups. Override"),
    ):
        with pytest.raises(SetupError, match=message):
            split.roles(tiles, every, "s", 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Columns, "is not an instance of sg.Split"),
        (Split, "Split.name=None must consist"),
        (lambda: type("Bad", (Split,), {"name": "a/b"})(), "Bad.name='a/b' must consist of letters"),
        (lambda: type("Mine", (Split,), {"name": "blocks"})(), "Mine.name='blocks' is registered already, sigmma_sc"),
    ],
)
def test_what_cannot_be_registered(registry, make, message):
    with pytest.raises(SetupError, match=message):
        register_split(make())
    assert "columns" not in SPLITS


def test_a_split_of_ones_own_trains_and_is_needed_to_train_on(registry, encoder, tiny, tmp_path):
    """By its name alone: train, guard band and saved model; a process without the class may embed."""
    sg.register_split(Columns())
    sg.register_split(Columns())  # a cell of a notebook, run again
    assert sg.benchmark.DataSpec(name="d", simulate={}, splits=("columns",)).splits == ("columns",)
    model = SIGMMA(tiny, encoder(), cells="genes", n_latent=8)
    model.train(max_epochs=1, split="columns", enable_progress_bar=False)
    (slide,) = model.resolve()
    tiles = slide.tiles
    role = model.data.roles.of(slide)
    held = tiles.origins[np.isin(role, ["test", "val"])]
    trained_on = model.trainer.datamodule.dataset.slides[0].tiles.origins
    assert np.abs(trained_on[:, None] - held).max(-1).min() >= (1 + Columns.guard) * tiles.side - 1e-6
    model.save(tmp_path / "model")
    del SPLITS["columns"]
    loaded = SIGMMA.load(tmp_path / "model", tiny, encoder())
    np.testing.assert_array_equal(loaded.data.roles.of(slide), role)
    assert loaded.get_tile_representation().n_obs == len(tiles)
    with pytest.raises(SetupError, match="split='columns' is not one of.*sg.register_split.*--import"):
        loaded.train(max_epochs=1, enable_progress_bar=False)


def test_a_leaking_split_warns_once_a_call(encoder, tiny):
    model = SIGMMA(tiny, encoder(), cells="genes", n_latent=8)
    slides = model.resolve()
    with pytest.warns(
        SplitWarning, match="split='random' puts neighbouring tiles of one tissue into train and test"
    ) as said:
        model.data.assign_roles(slides * 2, "random")
    assert len(said) == 1
