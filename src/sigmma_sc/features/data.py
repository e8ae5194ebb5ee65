"""Slides of an object as tensors: node features, patch features, roles of tiles."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sigmma_sc.errors import MissingKeyError, SplitWarning, TissueWarning
from sigmma_sc.tissue.byimage import ByImage
from sigmma_sc.tissue.graph import spatial_graph
from sigmma_sc.tissue.identity import slide_identity
from sigmma_sc.tissue.mask import TissueMask, tissue_mask
from sigmma_sc.tissue.setup import get_table, resolve_slides, stored_setup
from sigmma_sc.tissue.split import LEAK, get_split
from sigmma_sc.tissue.tilepixels import TilePixels
from sigmma_sc.tissue.tiling import Tiles, covering_tiles, crops_of_tiles
from sigmma_sc.train.batches import SlideTensors
from sigmma_sc.features.patches import PatchFeatures
from sigmma_sc.features.nodes import CountsPCA, GeneVectors, embedding_of, log_distance
from sigmma_sc.features.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.config import Config
    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.setup import Setup
    from sigmma_sc.tissue.split import Split, SplitJson

FEWEST_TILES = 8
"""Tiles by which a slide can be centred and scaled: a single one would be its own mean, whatever it shows."""

MIN_TISSUE = 0.05
"""Share of a tile that must be stained for it to be trained or scored on."""


class TissueData:
    """What a model knows of its tissue: setup, encoder, node features, and which tile played which role.

    Parameters
    ----------
    setup, encoder, config
        Of the model.
    cache_dir
        Of patch features.
    """

    def __init__(self, setup: Setup, encoder: ImageEncoder, config: Config, cache_dir: str | Path | None = None):
        self.setup, self.config, self.cache_dir = setup, config, cache_dir
        self.pretrained = self.features = PatchFeatures(encoder, cache_dir=cache_dir)
        self.nodes: CountsPCA | GeneVectors | None = None
        self.split: SplitJson | None = None
        self.roles: dict[str, NDArray] = {}
        self.identities: dict[str, str] = {}
        self.typical: dict[str, Moments] = {}
        self._seen, self._masks, self._moments = ByImage(), ByImage(), ByImage()
        self._graphs: dict[str, tuple[NDArray, csr_matrix]] = {}

    def slides(self, tissue: Any) -> list[Slide]:
        """Slides of an object or of objects by name, in order."""
        if not isinstance(tissue, dict):
            return resolve_slides(tissue, stored_setup(tissue) or self.setup)
        return [
            s for name, one in tissue.items() for s in resolve_slides(one, stored_setup(one) or self.setup, f"{name}/")
        ]

    def covering(self, slide: Slide) -> tuple[Tiles, NDArray[np.int64]]:
        """Tiles that cover a slide, and each cell's own."""
        return covering_tiles(slide.xy, slide.width, slide.height, self.side(slide))

    def tile(self, slides: Sequence[Slide], name: str) -> tuple[Slide, Tiles]:
        """Slide and tile of a name as in ``sigmma_tiles``, one of those that cover the slides.

        Raises
        ------
        MissingKeyError
            There is no such tile.
        """
        of, _, number = name.rpartition("_")
        for slide in slides:
            tiles, _ = self.covering(slide)
            if slide.name == of and number.isdecimal() and int(number) < len(tiles):
                return slide, tiles.take(np.array([int(number)]))
        raise MissingKeyError(
            f"Tile {name!r} does not exist. Tiles are named by slide and number, from {slides[0].name}_0 on, as the rows of "
            f"get_tile_representation() are; slides: {', '.join(slide.name for slide in slides)}."
        )

    def side(self, slide: Slide) -> float:
        """Side of a tile in px of the slide."""
        return self.setup.tile_size / slide.microns_per_pixel

    def tissue(self, slide: Slide, tiles: Tiles) -> NDArray[np.float64]:
        """Share of each tile that is stained tissue."""
        mask: TissueMask = self._masks.get(slide, lambda: tissue_mask(slide))
        return mask.share(tiles.origins, tiles.side)

    def usable(self, slide: Slide, tiles: Tiles) -> NDArray[np.bool_]:
        """Tiles fit to be trained and scored on: enough cells, and not on bare glass."""
        return (tiles.n_cells >= self.config.min_cells) & (self.tissue(slide, tiles) >= MIN_TISSUE)

    def assign_roles(self, slides: Sequence[Slide], split: str | Mapping[str, Sequence[str]] | Split) -> None:
        """Decide which tiles of slides that were not trained on before train, validate and test."""
        chosen = get_split(split).resolve([slide.sample for slide in slides], self.config.seed)
        if chosen.leaks:
            warnings.warn(f"split={chosen.name!r} {LEAK}", SplitWarning, stacklevel=4)
        roles = {}
        for slide in slides:
            tiles, _ = self.covering(slide)
            roles[slide.name] = chosen.roles(tiles, self.usable(slide, tiles), slide.sample, self.config.seed)
        if chosen.validates and not any((role == "val").any() for role in roles.values()):
            warnings.warn(
                f"split={chosen.to_json()!r} leaves no validation tile: there is no validation loss and no reliability of predictions. Use a smaller "
                "tile_size or more slides.",
                SplitWarning,
                stacklevel=4,
            )
        self.split = chosen.to_json()
        self.roles = self.roles | roles
        self.identities = self.identities | {slide.name: self._identity(slide) for slide in slides}

    def _identity(self, slide: Slide) -> str:
        return self._seen.get(slide, lambda: slide_identity(slide))

    def knows(self, slide: Slide) -> bool:
        """Whether the tiles of a slide were given roles: the slide itself, not another of its name."""
        return slide.name in self.roles and self.identities[slide.name] == self._identity(slide)

    def roles_of(self, slide: Slide, n_tiles: int) -> NDArray:
        """Role of each covering tile; ``"unseen"`` for a slide that was not trained on."""
        known = self.knows(slide) and len(self.roles[slide.name]) == n_tiles
        return self.roles[slide.name] if known else np.full(n_tiles, "unseen")

    def use_encoder(self, encoder: ImageEncoder) -> None:
        """Take patch features from an encoder that was trained; those of the encoder as it came are :attr:`pretrained`."""
        self.features = PatchFeatures(encoder, cache_dir=self.cache_dir)

    def crops(self, tiles: Tiles) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Distinct crops of tiles.

        Returns
        -------
        crops
            ``(n_crops, 3)`` as (x, y, side) in px.
        sizes
            Side in px at which each reaches the encoder, ``(n_crops,)``.
        index
            Crop of each patch of each tile, ``(n_tiles, n_patches)``.
        """
        crops, index = crops_of_tiles(tiles, self.setup.grids)
        sizes = self.config.crop_sizes or (self.features.encoder.input_size,) * len(self.setup.grids)
        of_grid = dict(zip(self.setup.grids, sizes, strict=True))
        return crops, np.array([of_grid[b] for b in np.round(tiles.side / crops[:, 2]).astype(int)], np.int64), index

    def patches(
        self, slide: Slide, tiles: Tiles, device: torch.device, pretrained: bool = False
    ) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """Features of every distinct patch ``(n_crops, d)``, and which is which patch of each tile, ``(n_tiles, n_patches)``."""
        crops, sizes, index = self.crops(tiles)
        return (self.pretrained if pretrained else self.features)(slide, crops, device, sizes), index

    def fit_nodes(self, slides: Sequence[Slide]) -> None:
        """Fit what is made of the counts on the cells of training tiles alone."""
        if self.config.cells == "graph" and self.setup.features_key is not None:
            return
        parts = []
        for slide in slides:
            tiles, own = self.covering(slide)
            train = np.flatnonzero(self.roles_of(slide, len(tiles)) == "train")
            table = get_table(slide.sdata, stored_setup(slide.sdata) or self.setup)
            if self.config.cells == "genes":
                parts.append((table, slide.rows, tiles.take(train)))
            else:
                parts.append((table, slide.rows[np.isin(own, train)]))
        if self.config.cells == "genes":
            self.nodes = GeneVectors.fit(parts, self.setup.layer, self.config.cell_covariates)
        else:
            self.nodes = CountsPCA.fit(parts, self.setup.layer, self.config.seed, self.config.cell_covariates)

    @property
    def n_components(self) -> int:
        """Leading node features that are components of a PCA."""
        return len(self.nodes.components) if isinstance(self.nodes, CountsPCA) else 0

    def tensors(
        self,
        slide: Slide,
        tiles: Tiles,
        device: torch.device,
        images: bool = True,
        cells: bool = True,
        pixels: bool = False,
    ) -> SlideTensors:
        """Everything that batches of these tiles need, of one modality or both; pixels instead of patch features if asked."""
        out = SlideTensors(tiles, slide.xy, None, None, None, None)
        by_slide = self.config.standardise == "slide"
        if images and pixels:
            out.pixels = TilePixels(slide, tiles.origins, tiles.side, self.setup.grids)
        elif images:
            out.patches, out.patch_index = self.patches(slide, tiles, device)
            if by_slide and self.config.regime == "frozen":
                out.patch_moments = self._patch_moments(slide, device)
        if not cells or slide.region is None:
            return out
        setup = stored_setup(slide.sdata) or self.setup
        table = get_table(slide.sdata, setup)
        nodes = self.nodes
        if isinstance(nodes, GeneVectors):
            out.genes = nodes.transform(table, slide.rows, tiles, setup.layer)
            if by_slide:
                own = self._tiles_with_cells(slide)
                out.gene_moments = self._own_or_typical(
                    "genes", slide, len(own), lambda: Moments.of(nodes.transform(table, slide.rows, own, setup.layer))
                )
            return out
        if nodes is None:
            values = embedding_of(table, slide.rows, setup)
        else:
            values = nodes.transform(table, slide.rows, setup.layer)
        if self.config.cell_covariates:
            values = np.column_stack([values, log_distance(slide.xy * slide.microns_per_pixel)])
        out.nodes = torch.from_numpy(values)
        if by_slide:
            own = self._tiles_with_cells(slide)
            out.node_moments = self._own_or_typical(
                "nodes", slide, len(own), lambda: Moments.of(values, self.n_components)
            )
            out.nodes = out.node_moments(out.nodes)
        out.adjacency = self._graph(slide)
        return out

    def _tiles_with_cells(self, slide: Slide) -> Tiles:
        every, _ = self.covering(slide)
        return _chosen(every, every.n_cells >= self.config.min_cells)

    def _patch_moments(self, slide: Slide, device: torch.device) -> Moments:
        """Mean and spread of a frozen encoder's features over the tiles of an image that hold tissue, computed once."""
        every, _ = self.covering(slide)
        tiles = _chosen(every, self.tissue(slide, every) >= MIN_TISSUE)

        def make() -> Moments:
            return Moments.of_patches(*self.patches(slide, tiles, device), [b * b for b in self.setup.grids])

        return self._own_or_typical("patches", slide, len(tiles), lambda: self._moments.get(slide, make))

    def _own_or_typical(self, kind: str, slide: Slide, n_tiles: int, own: Callable[[], Moments]) -> Moments:
        """What a slide is centred and scaled by: itself or, for a new one of a few tiles, what training slides are on average."""
        if n_tiles >= FEWEST_TILES or kind not in self.typical or self.knows(slide):
            return own()
        warnings.warn(
            f"Slide {slide.name!r} has {n_tiles} tile{'s' * (n_tiles != 1)} of tissue, too few to be centred and scaled by itself; it is by "
            "the mean and spread of the slides trained on. Its stain and batch then show in the embeddings.",
            TissueWarning,
            stacklevel=2,
        )
        return self.typical[kind]

    def learn_typical(self, slides: Sequence[SlideTensors]) -> None:
        """Remember what slides are centred and scaled by, on average, for those too small to tell."""
        found = {
            k: [m for one in slides if (m := one.moments_of(k)) is not None] for k in ("patches", "nodes", "genes")
        }
        self.typical = {kind: Moments.average(moments) for kind, moments in found.items() if moments}

    def _graph(self, slide: Slide) -> csr_matrix:
        """Spatial graph of a slide, built once as long as its cells stay where they are."""
        xy = slide.xy * slide.microns_per_pixel
        known, graph = self._graphs.get(slide.name, (None, None))
        if known is None or not np.array_equal(known, xy):
            graph = spatial_graph(xy, self.config.n_neighs, self.config.radius)
            self._graphs[slide.name] = xy, graph
        return graph


def _chosen(tiles: Tiles, which: NDArray[np.bool_]) -> Tiles:
    """Tiles that a slide is standardised by; all of them if none would do."""
    return tiles.take(np.flatnonzero(which | ~which.any()))
