"""Slides of an object as tensors: node features, patch features, roles of tiles."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import torch

from sigmma_sc.errors import TissueWarning
from sigmma_sc.features.moments import Moments
from sigmma_sc.features.patches import PatchFeatures
from sigmma_sc.features.registry import node_features_of
from sigmma_sc.features.roles import Roles
from sigmma_sc.features.tensors import (
    GraphTensors,
    PatchTensors,
    PixelTensors,
    ProfileTensors,
    SlideTensors,
    TileTensors,
)
from sigmma_sc.nn.layout import limits_of
from sigmma_sc.tissue.byimage import ByImage
from sigmma_sc.tissue.graph import spatial_graph
from sigmma_sc.tissue.mask import TissueMask, tissue_mask
from sigmma_sc.tissue.tilepixels import TilePixels
from sigmma_sc.tissue.tiling import Tiles, crops_of_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from sigmma_sc.config import Config
    from sigmma_sc.encoders.encoder import ImageEncoder
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.setup import Setup
    from sigmma_sc.tissue.split import Split

FEWEST_TILES = 8
"""Tiles by which a slide can be centred and scaled: a single one would be its own mean, whatever it shows."""

MIN_TISSUE = 0.05
"""Share of a tile that must be stained for it to be trained or scored on."""


class DataState(TypedDict):
    """What :meth:`TissueData.state` gives: JSON values, and arrays where ``Any`` stands."""

    split: str | dict[str, Any] | None
    roles: dict[str, list[Literal["train", "val", "test", "guard", "unused"]]]
    identities: dict[str, str]
    node_features: dict[str, Any]
    training_moments: dict[str, dict[str, Any]]
    single_precision: bool
    even_lattices: bool


BEFORE = {"even_lattices": False}
"""What states of earlier versions lack, as it was then."""


class TissueData:
    """The tissue of a model: setup, encoder, node features, and the role of each tile.

    ``features`` are patch features of the image encoder, trained if it was; ``pretrained`` those of the encoder as it
    came. ``training_moments`` are mean and standard deviation of the training slides on average, by modality.
    ``single_precision`` computes patch features in float32 on any device.
    """

    def __init__(self, setup: Setup, encoder: ImageEncoder, config: Config, cache_dir: str | Path | None = None):
        self.setup = setup
        self.config = config
        self.cache_dir = cache_dir
        self.features = PatchFeatures(encoder, cache_dir=cache_dir)
        self.pretrained = self.features
        self.node_features = node_features_of(config, setup)
        self.roles = Roles()
        self.training_moments: dict[str, Moments] = {}
        self.single_precision = False
        self._masks = ByImage()
        self._moments = ByImage()
        self._graphs: dict[str, tuple[NDArray, csr_matrix]] = {}

    def copy(self) -> TissueData:
        """Data whose state can change without a change of this one's; what is computed of images is shared."""
        data = copy.copy(self)
        data.node_features = copy.copy(self.node_features)
        data.roles = self.roles.copy()
        data.training_moments = dict(self.training_moments)
        return data

    def state(self) -> dict[str, Any]:
        """All that training changes, as JSON values and NumPy arrays; the image encoder's weights aside."""
        moments = {kind: {"mean": m.mean, "std": m.std} for kind, m in self.training_moments.items()}
        return {
            **self.roles.state(),
            "node_features": self.node_features.state(),
            "training_moments": moments,
            "single_precision": self.single_precision,
            "even_lattices": self.node_features.even_lattices,
        }

    def restore(self, state: dict[str, Any], setup: Setup) -> None:
        """Set what :meth:`state` gave, of a model that was trained on an object with this setup."""
        self.roles.restore(state)
        self.node_features = node_features_of(self.config, setup)
        self.node_features.restore(state["node_features"])
        self.node_features.even_lattices = state["even_lattices"]
        self.single_precision = state["single_precision"]
        self.training_moments = {}
        for kind, moments in state["training_moments"].items():
            self.training_moments[kind] = Moments(np.asarray(moments["mean"]), np.asarray(moments["std"]))

    def tissue_share(self, slide: Slide, tiles: Tiles) -> NDArray[np.float64]:
        """Share of each tile that is stained tissue."""
        mask: TissueMask = self._masks.get(slide, lambda: tissue_mask(slide))
        return mask.share(tiles.origins, tiles.side)

    def usable(self, slide: Slide, tiles: Tiles) -> NDArray[np.bool_]:
        """Tiles fit to be trained and scored on: enough cells, and not on bare glass."""
        return (tiles.n_cells >= self.config.min_cells) & (self.tissue_share(slide, tiles) >= MIN_TISSUE)

    def assign_roles(self, slides: Sequence[Slide], split: str | Mapping[str, Sequence[str]] | Split) -> None:
        """Decide which tiles of slides that were not trained on before train, validate and test."""
        self.roles.assign(slides, split, self.config.seed, self.usable)

    def fit_node_features(self, slides: Sequence[Slide]) -> None:
        """Fit node features on training tiles alone."""
        training = [(slide, np.flatnonzero(self.roles.of(slide) == "train")) for slide in slides]
        self.node_features.fit_checked(training)

    def require_values(self, slides: Sequence[Slide]) -> None:
        """Raise :class:`SetupError` for values of any slide that cannot be used, before the image of any is encoded.

        The first slide is read before its own image is, so that a single one is read once.
        """
        for slide in slides[1:]:
            if slide.region is not None:
                self.node_features.check(slide)

    def use_encoder(self, encoder: ImageEncoder) -> None:
        """Take patch features from an encoder that was trained."""
        self.features = PatchFeatures(encoder, cache_dir=self.cache_dir)

    def crops(self, tiles: Tiles) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Distinct crops ``(n_crops, 3)`` as (x, y, side) in px, and the side in px at which each reaches the encoder.

        The last value is the crop of each patch of each tile, ``(n_tiles, n_patches)``.
        """
        crops, index = crops_of_tiles(tiles, self.setup.grids)
        sizes = self.config.crop_sizes or (self.features.encoder.input_size,) * len(self.setup.grids)
        of_grid = dict(zip(self.setup.grids, sizes, strict=True))
        grids = np.round(tiles.side / crops[:, 2]).astype(int)
        return crops, np.array([of_grid[grid] for grid in grids], np.int64), index

    def patches(
        self, slide: Slide, tiles: Tiles, device: torch.device, pretrained: bool = False
    ) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """Features of every distinct patch ``(n_crops, d)``, and the patches of each tile, ``(n_tiles, n_patches)``."""
        crops, sizes, index = self.crops(tiles)
        features = self.pretrained if pretrained else self.features
        return features(slide, crops, device, sizes, self.single_precision), index

    def crop_features(
        self, slide: Slide, crops: NDArray[np.float64], number: int, device: torch.device
    ) -> torch.Tensor:
        """Features ``(n_crops, d)`` of crops, encoded at the size of the grid of this number; they are not remembered."""
        sizes = self.config.crop_sizes or (self.features.encoder.input_size,) * len(self.setup.grids)
        return self.features.once(slide, crops, device, sizes[number], self.single_precision)

    def standardised(self, slide: Slide, patches: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Patch features ``(n, n_patches, d)``, centred and scaled as those of the tiles of a slide are."""
        if not self._standardises_images:
            return patches
        return self._patch_moments(slide, device)(patches)

    def grid_means(self, slide: Slide, tiles: Tiles, device: torch.device, pretrained: bool = False) -> list[NDArray]:
        """Mean of the patch features over each grid of each tile, ``(n_tiles, d)``."""
        features, index = self.patches(slide, tiles, device, pretrained)
        ends = np.cumsum([grid * grid for grid in self.setup.grids])[:-1]
        patches = np.split(features.float().numpy()[index], ends, axis=1)
        return [part.mean(axis=1) for part in patches]

    def tensors(
        self,
        slide: Slide,
        tiles: Tiles,
        device: torch.device,
        images: bool = True,
        cells: bool = True,
        pixels: bool = False,
    ) -> SlideTensors:
        """All that batches of these tiles need, of one modality or both; pixels instead of patch features if asked."""
        # Cells first: what is wrong with their features is known before an image is encoded.
        transcriptome = self._transcriptome(slide, tiles, device) if cells and slide.region is not None else None
        image = self._image(slide, tiles, device, pixels) if images else None
        return SlideTensors(tiles, image, transcriptome)

    @property
    def _by_slide(self) -> bool:
        return self.config.standardise == "slide"

    @property
    def _standardises_images(self) -> bool:
        """Whether patch features are centred and scaled slide by slide; those of an encoder in training never are."""
        return self._by_slide and self.config.regime == "frozen"

    def _image(self, slide: Slide, tiles: Tiles, device: torch.device, pixels: bool) -> TileTensors:
        if pixels:
            read = TilePixels(slide, tiles.origins, tiles.side, self.setup.grids)
            return PixelTensors(read, self.features.encoder.dim)
        patches, index = self.patches(slide, tiles, device)
        moments = None
        if self._standardises_images:
            moments = self._patch_moments(slide, device)
        return PatchTensors(patches, index, moments)

    def _transcriptome(self, slide: Slide, tiles: Tiles, device: torch.device) -> TileTensors:
        features = self.node_features
        values = features(slide, tiles)
        if features.per_tile:
            moments = self._cell_moments(slide, lambda own: Moments.of(features(slide, own)))
            return ProfileTensors(values, moments)
        nodes = torch.from_numpy(values)
        moments = self._cell_moments(slide, lambda own: Moments.of(values, features.n_components))
        if moments is not None:
            nodes = moments(nodes)
        return GraphTensors(slide.xy, nodes, self._graph(slide), self.setup.grids, moments, limits_of(device))

    def _cell_moments(self, slide: Slide, make: Callable[[Tiles], Moments]) -> Moments | None:
        """Moments of a slide's node features, from its tiles with enough cells; ``None`` where slides are not standardised."""
        if not self._by_slide:
            return None
        tiles = _chosen(slide.tiles, slide.tiles.n_cells >= self.config.min_cells)
        return self._moments_of_slide("cells", slide, len(tiles), lambda: make(tiles))

    def _patch_moments(self, slide: Slide, device: torch.device) -> Moments:
        """Moments of a frozen encoder's features over the tiles of an image that hold tissue, computed once."""
        tiles = _chosen(slide.tiles, self.tissue_share(slide, slide.tiles) >= MIN_TISSUE)
        sizes = [grid * grid for grid in self.setup.grids]

        def make() -> Moments:
            features, index = self.patches(slide, tiles, device)
            return Moments.of_patches(features, index, sizes)

        return self._moments_of_slide("image", slide, len(tiles), lambda: self._moments.get(slide, make))

    def _moments_of_slide(self, kind: str, slide: Slide, n_tiles: int, make: Callable[[], Moments]) -> Moments:
        """Moments of a slide itself or, for a new one of a few tiles, of the training slides on average."""
        if n_tiles >= FEWEST_TILES or kind not in self.training_moments or self.roles.has_roles(slide):
            return make()
        warnings.warn(
            f"Slide {slide.name!r} has {n_tiles} tile{'s' * (n_tiles != 1)} of tissue, too few to be centred and scaled by "
            "itself. It is centred and scaled by the mean and standard deviation of the slides trained on. Its stain and batch "
            "then show in the embeddings.",
            TissueWarning,
            stacklevel=2,
        )
        return self.training_moments[kind]

    def average_moments(self, slides: Sequence[SlideTensors]) -> None:
        """Remember the average moments of training slides, for new slides that are too small to have their own."""
        found: dict[str, list[Moments]] = {"image": [], "cells": []}
        for slide in slides:
            for kind, tensors in (("image", slide.image), ("cells", slide.transcriptome)):
                if tensors is not None and tensors.moments is not None:
                    found[kind].append(tensors.moments)
        self.training_moments = {kind: Moments.average(moments) for kind, moments in found.items() if moments}

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
