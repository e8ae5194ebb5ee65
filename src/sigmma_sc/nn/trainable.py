"""The image encoder in training: from the pixels of tiles to patch features, within bounded memory (paper, section 5.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from sigmma_sc._random import generator
from sigmma_sc.encoders.device import fewer_crops
from sigmma_sc.encoders.stain import optical_density, unmixing_matrix
from sigmma_sc.nn.chunks import features_in_chunks

if TYPE_CHECKING:
    from sigmma_sc.encoders.encoder import ImageEncoder

STAIN_JITTER = 0.15
"""Standard deviation of the factors of haematoxylin and eosin (our choice)."""


class TrainableEncoder(nn.Module):
    """An image encoder in training, over every patch of every grid.

    The contrastive batch needs the features of all its crops at once, thousands of them. They are computed in chunks of
    ``chunk_size``. What a chunk's gradient needs is not kept, but computed again in the backward pass. Memory then
    holds one chunk whatever the batch, and the gradient is that of the whole batch (Gao et al. 2021, GradCache). Where a
    chunk does not fit into memory, ``chunk_size`` is halved with a warning. With ``augment`` tiles are turned, mirrored
    and restained while the towers train. ``crop_sizes`` are sides in px, one a grid.
    """

    def __init__(self, encoder: ImageEncoder, grids: tuple[int, ...], crop_sizes: tuple[int, ...]):
        super().__init__()
        self.encoder, self.grids, self.crop_sizes = encoder.eval(), grids, crop_sizes
        self.restained = StainJitter()
        self.chunk_size, self.augment = 32, False

    def train(self, mode: bool = True) -> TrainableEncoder:
        """Keep the encoder in evaluation mode; ``mode`` only decides whether tiles are augmented."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, tiles: Tensor) -> Tensor:
        """Features ``(t, n_patches, d)`` of tiles ``(t, 3, p, p)`` uint8, grids in order, row-major within a grid."""
        if self.training and self.augment:
            tiles = self.restained(turned(tiles))
        weights = [p for p in self.encoder.parameters() if p.requires_grad]
        # Patches stay at the size of the slide; only a chunk of them is resampled at a time.
        groups = [patches_of(tiles, grid) for grid in self.grids]
        features = features_in_chunks(self._encode, groups, weights, self)
        parts = [
            part.view(len(tiles), grid * grid, part.shape[1]) for part, grid in zip(features, self.grids, strict=True)
        ]
        return torch.cat(parts, 1)

    def halve(self) -> None:
        """Take half as many crops at once, or raise :class:`~sigmma_sc.errors.EncoderError` after a single one."""
        self.chunk_size = fewer_crops(self.chunk_size, self.encoder.name)

    def _encode(self, patches: Tensor, grid: int) -> Tensor:
        """Features of patches of the grid of this number."""
        return self.encoder.features(resampled(patches, self.crop_sizes[grid]))


def patches_of(tiles: Tensor, grid: int) -> Tensor:
    """Cut tiles ``(t, 3, p, p)`` into ``(t * grid * grid, 3, p / grid, p / grid)``, row-major within a tile."""
    t, channels, p, _ = tiles.shape
    side = p // grid
    cut = tiles.view(t, channels, grid, side, grid, side).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(t * grid * grid, channels, side, side)


def resampled(patches: Tensor, size: int) -> Tensor:
    """Patches ``(n, 3, s, s)`` uint8 at another size, bicubic with antialiasing as the reader of slides resamples."""
    if patches.shape[-1] == size:
        return patches
    out = functional.interpolate(patches.float(), (size, size), mode="bicubic", antialias=True)
    return out.round().clamp(0, 255).to(torch.uint8)


def turned(tiles: Tensor) -> Tensor:
    """Each tile in one of the eight orientations of a square, drawn at random."""
    for flip in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)):
        chosen = torch.rand(len(tiles), device=tiles.device, generator=generator(tiles.device)) < 0.5
        tiles = torch.where(chosen[:, None, None, None], flip(tiles), tiles)
    return tiles


class StainJitter(nn.Module):
    """The haematoxylin and the eosin of each tile multiplied by random factors of standard deviation ``std``.

    As Tellez et al. 2018 jitter stains: colours are unmixed in optical density (Ruifrok & Johnston 2001), and mixed again.
    The matrices of both go with the module to its device. Single precision whatever the trainer asks for: in half, a
    factor of 1 would change one grey value in six.
    """

    unmix: Tensor
    mix: Tensor

    def __init__(self, std: float = STAIN_JITTER):
        super().__init__()
        self.std = std
        self.register_buffer("unmix", unmixing_matrix(), persistent=False)
        self.register_buffer("mix", torch.linalg.inv(self.unmix), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles ``(t, 3, p, p)`` uint8, restained."""
        with torch.autocast(tiles.device.type, enabled=False):
            factors = 1 + self.std * torch.randn(len(tiles), 3, device=tiles.device, generator=generator(tiles.device))
            factors[:, 2] = 1  # what neither stain explains stays
            # One 3 × 3 map a tile: amounts = unmix · density, density' = unmix⁻¹ · (factors ∘ amounts).
            change = self.mix @ (factors[:, :, None] * self.unmix)
            density = optical_density(tiles.float() / 255)
            mixed = torch.einsum("tij,tjyx->tiyx", change, density)
            return (255 * 10**-mixed).round().clamp(0, 255).to(torch.uint8)
