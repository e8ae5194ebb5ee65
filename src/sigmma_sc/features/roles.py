"""Which tile trains, validates or tests."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from sigmma_sc.errors import SetupError, SplitWarning
from sigmma_sc.tissue.byimage import ByImage
from sigmma_sc.tissue.identity import slide_identity
from sigmma_sc.tissue.split import LEAK, Auto, Split, SplitJson, get_split, near

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles

    Usable = Callable[[Slide, Tiles], NDArray[np.bool_]]

ROLES = ("train", "val", "test", "guard", "unused")


class Roles:
    """Roles of the covering tiles of slides, known by name and pixels.

    Attributes
    ----------
    split
        The split as resolved; ``None`` before the first call of :meth:`assign`.
    by_slide
        Role of each covering tile, by name of the slide. It keeps them in an object of another name.
    """

    def __init__(self) -> None:
        self.split: SplitJson | None = None
        self.by_slide: dict[str, NDArray] = {}
        self._identities: dict[str, str] = {}
        self._seen = ByImage()

    def copy(self) -> Roles:
        """Roles that can be assigned without a change of these."""
        roles = Roles()
        roles.split = self.split
        roles.by_slide = dict(self.by_slide)
        roles._identities = dict(self._identities)
        roles._seen = self._seen
        return roles

    def assign(
        self, slides: Sequence[Slide], split: str | Mapping[str, Sequence[str]] | Split, seed: int, usable: Usable
    ) -> None:
        """Give roles to the slides that have none, or raise :class:`SetupError` if all have roles of another split."""
        unseen = [slide for slide in slides if not self.has_roles(slide)]
        if unseen:
            self._assign(unseen, get_split(split), seed, usable)
        elif split != Auto.name and self.split != _resolved(get_split(split), slides, seed).to_json():
            raise SetupError(f"split={split!r} would leak: the model is trained on {self.split!r}. Make a new model.")

    def _assign(self, slides: Sequence[Slide], split: Split, seed: int, usable: Usable) -> None:
        resolved = _resolved(split, slides, seed)
        if resolved.leaks:
            warnings.warn(f"split={resolved.name!r} {LEAK}", SplitWarning, stacklevel=5)
        roles = {}
        for slide in slides:
            roles[slide.name] = _roles_of(slide, resolved, usable(slide, slide.tiles), seed)
        # Tiles of two samples share no cell, however near their cores are.
        if (
            not resolved.leaks
            and not resolved.by_sample
            and any(_leak(slide.tiles, roles[slide.name]) for slide in slides)
        ):
            warnings.warn(
                f"split={resolved.name!r} puts test tiles next to training tiles, so that scores come out too high. Give the tiles "
                "between them the role 'guard', as Split.draw does.",
                SplitWarning,
                stacklevel=5,
            )
        if resolved.validates and not any((role == "val").any() for role in roles.values()):
            warnings.warn(
                f"split={resolved.to_json()!r} leaves no validation tile: there is no validation loss and no reliability of "
                "predictions. Use a smaller tile_size or more slides.",
                SplitWarning,
                stacklevel=5,
            )
        self.split = resolved.to_json()
        self.by_slide |= roles
        self._identities |= {slide.name: self._identity(slide) for slide in slides}

    def _identity(self, slide: Slide) -> str:
        return self._seen.get(slide, lambda: slide_identity(slide))

    def has_roles(self, slide: Slide) -> bool:
        """Whether the tiles of a slide have roles: of this slide, not of another of its name."""
        return self.name_of(slide) is not None

    def name_of(self, slide: Slide) -> str | None:
        """Name under which a slide was trained on: of an object that had another name then, or none. ``None`` for a new one."""
        region = slide.name.rpartition("/")[2]
        names = [slide.name, *(name for name in self.by_slide if name.rpartition("/")[2] == region)]
        known = [name for name in names if name in self.by_slide]
        if not known:
            return None
        identity = self._identity(slide)
        return next((name for name in known if self._identities[name] == identity), None)

    def of(self, slide: Slide) -> NDArray:
        """Role of each covering tile; ``"unseen"`` for a slide that was not trained on.

        :class:`SetupError` where a slide that was trained on is cut into other tiles: a test tile may hold training tissue.
        """
        n_tiles = len(slide.tiles)
        name = self.name_of(slide)
        if name is None:
            return np.full(n_tiles, "unseen")
        roles = self.by_slide[name]
        if len(roles) != n_tiles:
            raise SetupError(
                f"Slide {slide.name!r} has {n_tiles} tiles, and had {len(roles)} when the model was trained on it. Set it up "
                "with the microns_per_pixel and tile_size of training, or train a new model."
            )
        return roles

    def state(self) -> dict[str, Any]:
        """Split, roles and identities of the slides as JSON values."""
        return {
            "split": self.split,
            "roles": {slide: roles.tolist() for slide, roles in self.by_slide.items()},
            "identities": self._identities,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Set what :meth:`state` gave."""
        self.split = state["split"]
        self.by_slide = {slide: np.array(roles, dtype="<U6") for slide, roles in state["roles"].items()}
        self._identities = dict(state["identities"])


def _resolved(split: Split, slides: Sequence[Slide], seed: int) -> Split:
    return split.resolve(samples_of(slides), seed)


def samples_of(slides: Sequence[Slide]) -> list[str]:
    """Names of the samples of slides."""
    return [name for slide in slides for name in slide.samples]


def _roles_of(slide: Slide, split: Split, usable: NDArray[np.bool_], seed: int) -> NDArray[np.str_]:
    """Role of each covering tile of a slide; each of several samples is split by itself, tiles between two are not used."""
    tiles = slide.tiles
    if not split.by_sample or slide.cell_samples is None:
        return _checked(split.roles(tiles, usable, slide.sample, seed), split, len(tiles))
    sample = slide.sample_of(tiles)
    role = np.full(len(tiles), "unused", dtype="<U6")
    for name in slide.samples:
        here = np.flatnonzero(sample == name)
        role[here] = _checked(split.roles(tiles.take(here), usable[here], name, seed), split, len(here))
    return role


def _checked(roles: object, split: Split, n_tiles: int) -> NDArray[np.str_]:
    """Roles as strings of six characters, or :class:`SetupError` for what is no role for each tile."""
    found = np.asarray(roles)
    known = np.isin(found.astype(str), ROLES)
    if found.shape != (n_tiles,) or not known.all():
        wrong = found.shape if found.shape != (n_tiles,) else found[~known].tolist()[0]
        raise SetupError(
            f"{type(split).__name__}.roles gives {wrong!r}. Return one of {', '.join(map(repr, ROLES))} for each of {n_tiles} tiles."
        )
    return found.astype("<U6")


def _leak(tiles: Tiles, roles: NDArray[np.str_]) -> bool:
    """Whether a training tile touches a test tile of the same slide."""
    return bool(near(tiles, tiles.origins[roles == "test"], 0.5)[roles == "train"].any())
