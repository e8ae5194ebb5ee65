"""Train, validation and test tiles that do not leak into each other (METHOD: evaluation)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc._checks import require_choice
from sigmma_sc.errors import SetupError, SplitWarning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sigmma_sc.tissue.tiling import Tiles

SPLITS = ("auto", "sample", "blocks", "end", "random", "none")
BLOCKS = "blocks"
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
BLOCKS_PER_SLIDE = 25


def resolve_split(
    split: str | Mapping[str, Sequence[str]], samples: Sequence[str], seed: int
) -> str | dict[str, list[str]]:
    """Turn ``"auto"`` into a kind of split, ``"sample"`` into the samples held out, and check names of samples.

    ``{"test": [samples], "val": "blocks"}`` validates on blocks of the samples that are left, where these are too few to hold one
    out. ``"auto"`` holds out whole samples when there are at least three, and spatial blocks of every slide otherwise.
    """
    known = sorted(set(samples))
    if not isinstance(split, str):
        for role, names in split.items():
            require_choice(role, ("val", "test"), "split key")
            for name in _named(role, names):
                require_choice(name, known, f"split[{role!r}] sample")
        held = [name for role, names in split.items() for name in _named(role, names)]
        if len(set(held)) != len(held) or not set(known) - set(held):
            raise SetupError(f"split={dict(split)!r} holds a sample out twice, or leaves none to train on.")
        return {role: names if names == BLOCKS else list(names) for role, names in split.items()}
    require_choice(split, SPLITS, "split")
    if split == "auto":
        split = "sample" if len(known) >= 3 else "blocks"
    if split == "sample" and len(known) < 3:
        raise SetupError(
            f"split='sample' needs at least three samples, one each to train, validate and test on; there are {len(known)} "
            f"({', '.join(known)}). Use split='blocks', or set sample_key to a column that names donors or sections."
        )
    return held_out_samples(samples, seed) if split == "sample" else split


def _named(role: str, names: str | Sequence[str]) -> Sequence[str]:
    """Samples that a part of a split names; validation may be on blocks of those that are left."""
    return () if role == "val" and names == BLOCKS else names


def held_out_samples(samples: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Draw whole samples for validation and test, at least one each."""
    known = np.random.default_rng(seed).permutation(sorted(set(samples)))
    n_test = max(1, round(TEST_SHARE * len(known)))
    n_val = max(1, round(VALIDATION_SHARE * len(known)))
    return {"test": [str(s) for s in known[:n_test]], "val": [str(s) for s in known[n_test : n_test + n_val]]}


def split_slide(
    tiles: Tiles, usable: NDArray[np.bool_], kind: str, seed: int, test_share: float = TEST_SHARE
) -> NDArray:
    """Role of each tile of one slide's covering grid.

    Parameters
    ----------
    tiles
        Covering tiles.
    usable
        Tiles with enough cells, ``(n_tiles,)``; shares are counted over these.
    kind
        ``"blocks"``: contiguous squares of tiles are drawn for test and validation. ``"end"``: one end of the section's
        longer axis is test, the strip beside it validation. ``"random"``: single tiles, which leak.
    seed
        Of the draw.
    test_share
        Share of the tiles to test on; 0 holds out validation tiles alone.

    Returns
    -------
    ``"train"``, ``"val"``, ``"test"``, ``"guard"`` (closer than one tile to a tile held out) or ``"unused"``.
    """
    role = np.full(len(tiles), "train", dtype="<U6")
    if kind == "none":
        role[~usable] = "unused"
        return role
    if kind == "random":
        warnings.warn(
            "split='random' puts neighbouring tiles of one tissue into train and test: figures come out too good. Use it only "
            "to show the leak.",
            SplitWarning,
            stacklevel=2,
        )
        group = np.arange(len(tiles))
    else:
        group = block_groups(tiles, usable) if kind == "blocks" else _end_groups(tiles, usable)
    groups, counts = np.unique(group[usable], return_counts=True)
    order = groups
    if kind != "end":
        order = np.random.default_rng(seed).permutation(groups)
    sizes = counts[np.searchsorted(groups, order)]
    if len(order) < 3:
        raise SetupError(
            f"A slide has {int(usable.sum())} tiles with enough cells, too few for split={kind!r}. Use a smaller tile_size, "
            "a lower min_cells, more slides, or split='none'."
        )
    reached = np.cumsum(sizes) / sizes.sum()
    n_test = min(int(np.searchsorted(reached, test_share)) + 1, len(order) - 2) if test_share else 0
    n_val = min(int(np.searchsorted(reached, test_share + VALIDATION_SHARE)) + 1 - n_test, len(order) - n_test - 1)
    role[np.isin(group, order[:n_test])] = "test"
    last = n_test + max(1, n_val)
    if kind != "random":
        # The guard band beside the test tiles may swallow all that was drawn for validation: then the next group is taken too.
        free = usable & ~near(tiles, tiles.origins[role == "test"])
        while not free[np.isin(group, order[n_test:last])].any() and last < len(order) - 1:
            last += 1
    role[np.isin(group, order[n_test:last])] = "val"
    if kind != "random":
        role[(role == "val") & near(tiles, tiles.origins[role == "test"])] = "guard"
        role[(role == "train") & near(tiles, tiles.origins[np.isin(role, ["test", "val"])])] = "guard"
    role[~usable] = "unused"
    if not (role == "train").any():
        raise SetupError(
            f"split={kind!r} leaves no training tile on a slide of {int(usable.sum())} tiles. Use a smaller tile_size."
        )
    return role


def near(tiles: Tiles, held_out: NDArray[np.float64], gap: float = 1.0) -> NDArray[np.bool_]:
    """Tiles with less than ``gap`` tile sides of free tissue between them and a held-out tile.

    Parameters
    ----------
    tiles
        Candidates.
    held_out
        Corners of the held-out tiles in px, ``(m, 2)``.
    gap
        Width of the guard band in tile sides.
    """
    from scipy.spatial import cKDTree

    if not len(held_out):
        return np.zeros(len(tiles), bool)
    # Corners apart by d leave d - side between two tiles of equal side; a shifted border tile may be closer than a grid step.
    distance, _ = cKDTree(held_out).query(tiles.origins, p=np.inf)
    return distance < (1 + gap) * tiles.side * (1 - 1e-6)


def block_groups(tiles: Tiles, usable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number of the square of tiles that each tile lies in, of which about :data:`BLOCKS_PER_SLIDE` cover the tissue."""
    per_side = max(1, round(np.sqrt(usable.sum() / BLOCKS_PER_SLIDE)))
    column, row = np.floor(tiles.origins / (tiles.side * per_side) + 1e-6).astype(np.int64).T
    return row * (column.max() + 1) + column


def _end_groups(tiles: Tiles, usable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Strips of one tile's width across the longer axis of the tissue."""
    extent = np.ptp(tiles.origins[usable], axis=0)
    return np.floor(tiles.origins[:, int(np.argmax(extent))] / tiles.side + 1e-6).astype(np.int64)
