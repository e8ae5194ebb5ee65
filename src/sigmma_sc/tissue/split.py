"""Train, validation and test tiles that do not leak into each other (METHOD: evaluation).

A split is a small class. Config, training, benchmark and command line ask its object, and never compare names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from sigmma_sc._checks import require_choice, require_new_name, require_registered
from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sigmma_sc.tissue.tiling import Tiles

SplitJson = str | dict[str, str | list[str]]
"""A split as models and checkpoints store it, and as users write it."""

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1
BLOCKS_PER_SLIDE = 25
FEWEST_SAMPLES = 3
"""One sample each to train, validate and test on."""

LEAK = "puts neighbouring tiles of one tissue into train and test: scores are too high. Use it only to show the leak."


@dataclass(frozen=True)
class Split:
    """Which tiles of which slides train, validate and test.

    A subclass sets ``name`` and overrides :meth:`groups`; :func:`register_split` registers it under that name.

    Attributes
    ----------
    name
        Name of the split: letters, digits, ``-`` and ``_``.
    leaks
        Whether test tiles may be next to training tiles. Training with such a split warns.
    guard
        Width of the band of unused tiles around held-out tiles, in tile sides.
    by_sample
        Whether each of several samples on one slide, such as cores, is split by itself.
    holds_out
        Whether there are test tiles.
    takes_turns
        Whether a benchmark calls :meth:`in_turn` for each seed.

    Examples
    --------
    >>> class Columns(sg.Split):
    ...     name = "columns"
    ...
    ...     def groups(self, tiles, usable):
    ...         return np.floor(tiles.origins[:, 0] / (3 * tiles.side)).astype(int)
    >>> slide = model.resolve()[0]
    >>> roles = Columns().roles(slide.tiles, model.data.usable(slide, slide.tiles), slide.sample, seed=0)
    >>> sorted(set(roles.tolist()))
    ['guard', 'test', 'train', 'unused', 'val']
    """

    name: ClassVar[str]
    leaks: ClassVar[bool] = False
    guard: ClassVar[float] = 1.0
    holds_out: ClassVar[bool] = True
    takes_turns: ClassVar[bool] = False
    by_sample: ClassVar[bool] = False

    @property
    def validates(self) -> bool:
        """Whether validation tiles are expected, so that their absence warns."""
        return self.holds_out

    def groups(self, tiles: Tiles, usable: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Number of the group of each tile; a group is held out as a whole.

        Parameters
        ----------
        tiles
            Tiles that cover a slide.
        usable
            Tiles with enough cells and stained tissue, ``(n_tiles,)``.

        Returns
        -------
        Whole numbers, ``(n_tiles,)``.
        """
        raise SetupError(f"Split {type(self).__name__} makes no groups. Override its method groups, or roles.")

    def order(self, groups: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Groups in the order in which they are held out, first for test, then for validation; random by default.

        Parameters
        ----------
        groups
            Numbers of the groups with usable tiles, ascending.
        rng
            Random generator with the seed of the model.

        Returns
        -------
        Each group once, ``(n_groups,)``.
        """
        return rng.permutation(groups)

    def resolve(self, samples: Sequence[str], seed: int) -> Split:
        """The split for a set of slides; unchanged, unless it depends on their samples.

        Parameters
        ----------
        samples
            Sample of each slide.
        seed
            Seed of the model.
        """
        return self

    def in_turn(self, turn: int, donors: Mapping[str, str]) -> Split:
        """The split for one seed of a benchmark; unchanged, unless :attr:`takes_turns`.

        Parameters
        ----------
        turn
            Position of the seed among the seeds, from 0.
        donors
            Donor by sample; a sample that is missing here is its donor.
        """
        return self

    def roles(self, tiles: Tiles, usable: NDArray[np.bool_], sample: str, seed: int) -> NDArray[np.str_]:
        """Role of each tile that covers a slide.

        Parameters
        ----------
        tiles
            Covering tiles.
        usable
            Tiles with enough cells and stained tissue, ``(n_tiles,)``; shares are counted over these.
        sample
            Sample of the slide.
        seed
            Seed of the model.

        Returns
        -------
        ``"train"``, ``"val"``, ``"test"``, ``"guard"`` (within the guard band of a held-out tile) or ``"unused"``, ``(n_tiles,)``.
        """
        return self.draw(tiles, usable, seed)

    def draw(
        self, tiles: Tiles, usable: NDArray[np.bool_], seed: int, test_share: float = TEST_SHARE
    ) -> NDArray[np.str_]:
        """Hold out groups: those that make up ``test_share`` of the usable tiles for test, the next for validation.

        Parameters
        ----------
        tiles, usable, seed
            See :meth:`roles`.
        test_share
            Share of usable tiles to test on; 0 holds out validation tiles alone.

        Raises
        ------
        SetupError
            There are fewer than three groups, or no tile is left to train on.
        """
        group = self._checked_groups(tiles, usable)
        groups, counts = np.unique(group[usable], return_counts=True)
        order = self._checked_order(groups, seed)
        if len(order) < 3:
            raise SetupError(
                f"split={self.name!r} makes {len(order)} groups of the {int(usable.sum())} tiles of a slide with enough cells, "
                "and needs 3. Make more groups, or use a smaller tile_size, a lower min_cells, more slides, or split='none'."
            )
        sizes = counts[np.searchsorted(groups, order)]
        reached = np.cumsum(sizes) / sizes.sum()
        n_test = min(int(np.searchsorted(reached, test_share)) + 1, len(order) - 2) if test_share else 0
        n_val = min(int(np.searchsorted(reached, test_share + VALIDATION_SHARE)) + 1 - n_test, len(order) - n_test - 1)
        role = np.full(len(tiles), "train", dtype="<U6")
        role[np.isin(group, order[:n_test])] = "test"
        end = n_test + max(1, n_val)
        if self.guard > 0:
            # If the guard band of the test tiles covers all validation tiles, the next group is added.
            free = usable & ~near(tiles, tiles.origins[role == "test"], self.guard)
            while not free[np.isin(group, order[n_test:end])].any() and end < len(order) - 1:
                end += 1
        role[np.isin(group, order[n_test:end])] = "val"
        if self.guard > 0:
            role[(role == "val") & near(tiles, tiles.origins[role == "test"], self.guard)] = "guard"
            held_out = tiles.origins[np.isin(role, ["test", "val"])]
            role[(role == "train") & near(tiles, held_out, self.guard)] = "guard"
        role[~usable] = "unused"
        if not (role == "train").any():
            raise SetupError(
                f"split={self.name!r} leaves no training tile on a slide of {int(usable.sum())} tiles. Use a smaller tile_size."
            )
        return role

    def to_json(self) -> SplitJson:
        """Form in models and checkpoints, which :func:`get_split` reads: the name, by default."""
        return self.name

    def _checked_groups(self, tiles: Tiles, usable: NDArray[np.bool_]) -> NDArray[np.int64]:
        group = np.asarray(self.groups(tiles, usable))
        if group.shape != (len(tiles),) or not np.issubdtype(group.dtype, np.integer):
            raise SetupError(
                f"Split {self.name!r} gives groups of shape {group.shape} and type {group.dtype} for {len(tiles)} tiles. Return one "
                "whole number a tile."
            )
        return group

    def _checked_order(self, groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        order = np.asarray(self.order(groups, np.random.default_rng(seed)))
        if not np.array_equal(np.sort(order), groups):
            raise SetupError(
                f"Split {self.name!r} orders {len(groups)} groups into {order.tolist()}. Return each once: {groups.tolist()}."
            )
        return order


class Blocks(Split):
    """Contiguous squares of tiles, about :data:`BLOCKS_PER_SLIDE` on a slide, are held out at random."""

    name = "blocks"

    def groups(self, tiles: Tiles, usable: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Number of the square of tiles that holds each tile."""
        per_side = max(1, round(np.sqrt(usable.sum() / BLOCKS_PER_SLIDE)))
        column, row = np.floor(tiles.origins / (tiles.side * per_side) + 1e-6).astype(np.int64).T
        return row * (column.max() + 1) + column


class End(Split):
    """One end of the section's longer axis is test, the strip next to it validation."""

    name = "end"

    def groups(self, tiles: Tiles, usable: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Strips of one tile's width across the longer axis of the tissue."""
        extent = np.ptp(tiles.origins[usable], axis=0)
        return np.floor(tiles.origins[:, int(np.argmax(extent))] / tiles.side + 1e-6).astype(np.int64)

    def order(self, groups: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Strips from one end to the other."""
        return groups


class Random(Split):
    """Single tiles are held out at random, without a guard band; they leak."""

    name = "random"
    leaks = True
    guard = 0.0

    def groups(self, tiles: Tiles, usable: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Number of each tile, a group of one."""
        return np.arange(len(tiles))


class NoSplit(Split):
    """Nothing is held out."""

    name = "none"
    holds_out = False

    def roles(self, tiles: Tiles, usable: NDArray[np.bool_], sample: str, seed: int) -> NDArray[np.str_]:
        """All usable tiles train."""
        return np.where(usable, "train", "unused").astype("<U6")


@dataclass(frozen=True)
class Samples(Split):
    """Named samples are held out as a whole."""

    name = "samples"
    by_sample = True
    # Names of samples; None for none. With val="blocks", blocks of the remaining samples validate.
    test: tuple[str, ...] | None = None
    val: tuple[str, ...] | Literal["blocks"] | None = None

    @classmethod
    def of(cls, named: Mapping[str, str | Sequence[str]]) -> Samples:
        """Samples of a mapping such as ``{"test": ["s1"], "val": "blocks"}``, or :class:`SetupError`.

        Samples may come as any list, such as an array, a set, a column of ``obs`` or its categories.
        """
        if not named:
            raise SetupError(
                "split={} names no samples. Write {'test': [samples]}, or split='none' to hold out nothing."
            )
        for role, names in named.items():
            require_choice(role, ("val", "test"), "split key")
            if isinstance(names, str) and (role, names) != ("val", Blocks.name):
                raise SetupError(f"split[{role!r}]={names!r} must be a list of samples. Write [{names!r}].")
        test = named.get("test")
        val = named.get("val")
        return cls(
            None if test is None else _names(test, "test"),
            None if val is None else "blocks" if isinstance(val, str) else _names(val, "val"),
        )

    @property
    def validates(self) -> bool:
        """Whether ``val`` is given."""
        return self.val is not None

    def resolve(self, samples: Sequence[str], seed: int) -> Samples:
        """The same split, after a check that samples exist, none is held out twice, and one is left to train on."""
        known = sorted(set(samples))
        test = self.test or ()
        val = () if self.val is None or self.val == "blocks" else self.val
        for role, names in (("test", test), ("val", val)):
            for name in names:
                require_choice(name, known, f"split[{role!r}] sample")
        held_out = [*test, *val]
        if len(set(held_out)) != len(held_out) or not set(known) - set(held_out):
            raise SetupError(f"split={self.to_json()!r} holds a sample out twice, or leaves none to train on.")
        return self

    def roles(self, tiles: Tiles, usable: NDArray[np.bool_], sample: str, seed: int) -> NDArray[np.str_]:
        """One role for all usable tiles of a slide, except for validation on blocks."""
        role = "train"
        if self.test is not None and sample in self.test:
            role = "test"
        elif self.val == "blocks":
            return Blocks().draw(tiles, usable, seed, test_share=0)
        elif self.val is not None and sample in self.val:
            role = "val"
        return np.where(usable, role, "unused").astype("<U6")

    def to_json(self) -> dict[str, str | list[str]]:
        """Samples by role, as :meth:`of` reads them."""
        named: dict[str, str | list[str]] = {}
        if self.test is not None:
            named["test"] = list(self.test)
        if self.val is not None:
            named["val"] = self.val if self.val == "blocks" else list(self.val)
        return named


def _names(given: object, role: str) -> tuple[str, ...]:
    """Names of samples as text; whole numbers name the samples that a column of numbers names."""
    # No sample at all is an answer for validation, and a mistake for test.
    names: list[object] = [] if role == "val" else [None]
    if not isinstance(given, Iterable) or isinstance(given, (Mapping, bytes)):
        names = [None]
    elif some := list(given):
        names = some
    plain = [name.item() if isinstance(name, np.generic) else name for name in names]
    if not all(isinstance(name, (str, int)) and not isinstance(name, bool) for name in plain):
        raise SetupError(f"split[{role!r}]={given!r} must be a list of samples, such as ['s1', 's2'].")
    # A set has no order, and the split is stored and compared.
    return tuple(sorted(map(str, plain)) if isinstance(given, (set, frozenset)) else map(str, plain))


class DrawnSamples(Split):
    """Whole samples are held out at random, at least one each for test and validation."""

    name = "sample"

    def resolve(self, samples: Sequence[str], seed: int) -> Samples:
        """The held-out samples, of three samples or more."""
        known = sorted(set(samples))
        if len(known) < FEWEST_SAMPLES:
            raise SetupError(
                f"split='sample' needs at least three samples, one each to train, validate and test on; there are {len(known)} "
                f"({', '.join(known)}). Use split='blocks', or set sample_key to a column that names donors or sections."
            )
        drawn = [str(sample) for sample in np.random.default_rng(seed).permutation(known)]
        n_test = max(1, round(TEST_SHARE * len(drawn)))
        n_val = max(1, round(VALIDATION_SHARE * len(drawn)))
        return Samples(tuple(drawn[:n_test]), tuple(drawn[n_test : n_test + n_val]))


class Auto(Split):
    """:class:`DrawnSamples` for three samples or more, and :class:`Blocks` otherwise."""

    name = "auto"

    def resolve(self, samples: Sequence[str], seed: int) -> Split:
        """The split for this number of samples."""
        chosen = DrawnSamples() if len(set(samples)) >= FEWEST_SAMPLES else Blocks()
        return chosen.resolve(samples, seed)


@dataclass(frozen=True)
class Section(Split):
    """One sample is held out for test, and the next validates; of two samples, blocks of the other validate."""

    name = "section"
    takes_turns = True
    # Position of the test sample in alphabetical order, modulo the number of samples; None uses the seed.
    turn: int | None = None
    # Donor by sample; a sample that is missing here is its donor.
    donors: Mapping[str, str] = field(default_factory=dict)

    def in_turn(self, turn: int, donors: Mapping[str, str]) -> Section:
        """The same split for one seed of a benchmark."""
        return replace(self, turn=turn, donors=donors)

    def unit(self, sample: str) -> str:
        """Name of the unit that is held out with a sample: the sample."""
        return sample

    def resolve(self, samples: Sequence[str], seed: int) -> Samples:
        """The held-out samples, of two or more, and those that validate."""
        known = sorted(set(samples))
        unknown = sorted(set(self.donors) - set(known))
        if unknown:
            raise SetupError(f"donors names sample {unknown[0]!r}; there are {', '.join(known)}.")
        members: dict[str, list[str]] = {}
        for sample in known:
            members.setdefault(self.unit(sample), []).append(sample)
        units = sorted(members)
        if len(units) < 2:
            raise SetupError(
                f"split={self.name!r} needs two {self.name}s or more, there is {', '.join(units)} alone. Use 'blocks'."
            )
        turn = seed if self.turn is None else self.turn
        test = units[turn % len(units)]
        following = units[(turn + 1) % len(units)]
        return Samples(tuple(members[test]), tuple(members[following]) if len(units) > 2 else "blocks")


class Donor(Section):
    """All samples of one donor are held out for test, and those of the next validate."""

    name = "donor"

    def unit(self, sample: str) -> str:
        """Name of the unit that is held out with a sample: its donor."""
        return self.donors.get(sample, sample)


SPLITS: dict[str, Split] = {
    split.name: split for split in (Auto(), DrawnSamples(), Blocks(), End(), Section(), Donor(), Random(), NoSplit())
}
"""Splits by name; :func:`register_split` adds to them."""


def register_split(split: Split) -> None:
    """Register a split by its name, for :meth:`sigmma_sc.SIGMMA.train`, benchmarks and the command line.

    It is registered in this process. On the command line, ``sigmma-sc --import MODULE`` first imports your module. A saved
    model holds the name alone, so that the class is needed to resume training, and not to embed.

    Parameters
    ----------
    split
        An instance of a subclass of :class:`sigmma_sc.Split`.

    Raises
    ------
    SetupError
        It is not a split, its name is not valid, or another class has this name.

    Examples
    --------
    >>> class Quarters(sg.Split):
    ...     name = "quarters"
    ...
    ...     def groups(self, tiles, usable):
    ...         right, low = (tiles.origins > tiles.origins.mean(axis=0)).T
    ...         return right + 2 * low
    >>> sg.register_split(Quarters())
    >>> sg.benchmark.DataSpec(name="simulated", simulate={}, splits=("quarters",)).splits
    ('quarters',)
    """
    if not isinstance(split, Split):
        raise SetupError(f"{split!r} is not an instance of sg.Split. Pass one: register_split(Mine()).")
    require_new_name(getattr(split, "name", None), split, SPLITS, f"{type(split).__name__}.name")
    SPLITS[split.name] = split


def get_split(split: str | Mapping[str, str | Sequence[str]] | Split, what: str = "split") -> Split:
    """A split from its name, from a mapping as in :meth:`Samples.of`, or from a split; ``what`` names it in errors."""
    if isinstance(split, Split):
        return split
    if isinstance(split, Mapping):
        return Samples.of(split)
    require_registered(split, SPLITS, what, "register_split")
    return SPLITS[split]


def near(tiles: Tiles, held_out: NDArray[np.float64], gap: float = 1.0) -> NDArray[np.bool_]:
    """Tiles with less than ``gap`` tile sides between them and a held-out tile; corners ``(m, 2)`` in px."""
    from scipy.spatial import cKDTree

    if not len(held_out):
        return np.zeros(len(tiles), bool)
    # Corners apart by d leave d - side between tiles of equal side. A shifted border tile may be closer than a grid step.
    distance, _ = cKDTree(held_out).query(tiles.origins, p=np.inf)
    return distance < (1 + gap) * tiles.side * (1 - 1e-6)
