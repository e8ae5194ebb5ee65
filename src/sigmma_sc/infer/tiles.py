"""Tiles of embedded slides: by name, with what is known of each, and those to score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc._checks import require_choice
from sigmma_sc.errors import MissingKeyError, SetupError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sigmma_sc.features.data import TissueData
    from sigmma_sc.infer.embed import SlideEmbedding
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.tiling import Tiles


def tile_by_name(slides: Sequence[Slide], name: str) -> tuple[Slide, Tiles]:
    """Slide and tile of a name as in ``sigmma_tiles``, or :class:`MissingKeyError`."""
    wanted, _, number = name.rpartition("_")
    for slide in slides:
        if slide.name == wanted and number.isdecimal() and int(number) < len(slide.tiles):
            return slide, slide.tiles.take(np.array([int(number)]))
    raise MissingKeyError(
        f"Tile {name!r} does not exist. Tiles are named by slide and number, from {slides[0].name}_0 on, as the rows of "
        f"get_tile_representation() are; slides: {', '.join(slide.name for slide in slides)}."
    )


def tile_obs(data: TissueData, slide: Slide) -> pd.DataFrame:
    """Slide, corner in px, number of cells, share of tissue and split of each covering tile."""
    tiles = slide.tiles
    obs = pd.DataFrame(
        {
            "slide": slide.name,
            "x": tiles.origins[:, 0],
            "y": tiles.origins[:, 1],
            "n_cells": tiles.n_cells,
            "tissue": data.tissue_share(slide, tiles),
            "split": data.roles.of(slide).astype(object),
        }
    )
    obs.index = pd.Index([f"{slide.name}_{k}" for k in range(len(obs))], dtype=object)
    return obs.astype({"slide": "category", "split": "category"})


def label_counts(tiles: Tiles, codes: NDArray[np.integer], n_labels: int) -> NDArray[np.float32]:
    """Number of cells of each label in each tile, ``(n_tiles, n_labels)``; ``codes`` ``(n_cells,)`` is -1 without a label."""
    code = codes[tiles.cells]
    count = np.zeros((len(tiles), n_labels), np.float32)
    np.add.at(count, (np.repeat(np.arange(len(tiles)), tiles.n_cells)[code >= 0], code[code >= 0]), 1)
    return count


def centres_of(embeddings: Sequence[SlideEmbedding]) -> NDArray[np.float64]:
    """Centres of the tiles of all slides in px, ``(n_tiles, 2)``."""
    return np.concatenate([e.tiles.origins + e.tiles.side / 2 for e in embeddings])


def scored_tiles(data: TissueData, slides: Sequence[Slide], split: str, other: bool) -> list[NDArray[np.int64]]:
    """Positions, for each slide, of the tiles of a split that hold tissue and enough cells, or :class:`SetupError`.

    With ``other``, slides are of another object than the model's: every such tile of an unseen one is chosen.
    """
    require_choice(split, ("train", "val", "test", "all"), "split")
    chosen = []
    for slide in slides:
        if slide.region is None:
            raise SetupError(f"Image {slide.image_key!r} has no cells to score it by; set up with table_key=…")
        role = data.roles.of(slide)
        usable = data.usable(slide, slide.tiles)
        everything = split == "all" or (other and (role == "unseen").all())
        chosen.append(np.flatnonzero(usable if everything else usable & (role == split)))
    if not any(map(len, chosen)):
        new = [slide.name for slide in slides if not data.roles.has_roles(slide)]
        if new:
            raise SetupError(
                f"{', '.join(new)}: new to the model, so without split={split!r}. split='all' takes every tile."
            )
        raise SetupError(
            f"No tile belongs to split={split!r}: the model was trained with split={data.roles.split!r}, and a tile needs "
            f"{data.config.min_cells} cells and stained tissue. split='all' takes every tile that has them."
        )
    return chosen
