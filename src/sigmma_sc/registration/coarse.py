"""Coarse search: R² of colour on expression for every shift at once, by Fourier transform, under many turns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from sigmma_sc.registration.explain import LEAST_ON_TISSUE, RIDGE, score_of
from sigmma_sc.registration.pose import displacement, similarity, spread
from sigmma_sc.tissue.frame import apply_affine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sigmma_sc.registration.colour import ColourMap
    from sigmma_sc.registration.squares import Squares

N_COMPONENTS = 6
"""Number of components of the coarse search: cost grows with its square, and later ones vary over less than a square."""

MAX_TURN = np.deg2rad(15.0)
"""Largest turn about each of the eight turns and mirrorings."""

STEPS_PER_SQUARE = 4
"""Pixels of the rasters along a side of a square."""

PER_TURN = 6
"""Number of best shifts kept of each turn."""

N_RIVALS = 3
FAR = 4.0
"""Number of best poses elsewhere that are kept in any case, and how many squares away from the best that is."""

CHUNK = 2**15
"""Number of shifts whose normal equations are solved at once."""


@dataclass(frozen=True)
class Candidate:
    """A pose with its score."""

    pose: NDArray[np.float64]
    score: float


def search(squares: Squares, colours: ColourMap, scales: tuple[float, float], n_best: int) -> list[Candidate]:
    """Best poses over eight turns and mirrorings, 15° about each, a range of scales, and every shift.

    Poses differ by more than a square of ``colours`` (root mean square over the section), best first. The best elsewhere
    are among them, because a certificate compares with these.
    """
    image = _Image.of(colours)
    middle, radius = spread(squares.xy)
    found: list[Candidate] = []
    for angle, scale, mirrored in turns(radius, colours.side, scales):
        pose = similarity(angle, scale, mirrored, middle, (0.0, 0.0))
        found += image.best_shifts(squares, pose, colours.side)
    best = distinct(found, squares.xy, colours.side, n_best)
    return best + rivals(found, best, squares.xy, colours.side)


def rivals(found: list[Candidate], best: list[Candidate], xy: NDArray[np.float64], side: float) -> list[Candidate]:
    """The :data:`N_RIVALS` best candidates far from the first of ``best``, without those that are among ``best``.

    Where colour varies slowly, all of the best may be neighbours of the first.
    """
    some = xy[:: max(1, len(xy) // 200)]
    far = [one for one in found if displacement(one.pose, best[0].pose, some) > FAR * side] if best else []
    known = {id(one) for one in best}
    return [one for one in distinct(far, xy, side, N_RIVALS) if id(one) not in known]


def turns(radius: float, side: float, scales: tuple[float, float]) -> Iterator[tuple[float, float, bool]]:
    """Angle, scale and mirroring, so close that cells at ``radius`` are at most 0.4 squares from the next pose."""
    step = 0.8 * side / radius
    low, high = np.log(scales)
    n_scales = 1 + int((high - low) / step)
    scale_steps = np.exp(np.linspace(low, high, 2 * n_scales + 1)[1::2])
    n_turns = 1 + int(2 * MAX_TURN / step)
    angles = np.linspace(-MAX_TURN, MAX_TURN, 2 * n_turns + 1)[1::2]
    for mirrored, quarter, scale, angle in product((False, True), range(4), scale_steps, angles):
        yield quarter * np.pi / 2 + angle, scale, mirrored


def distinct(found: list[Candidate], xy: NDArray[np.float64], apart: float, n_best: int) -> list[Candidate]:
    """The best candidates that are more than ``apart`` µm from every better one."""
    some = xy[:: max(1, len(xy) // 200)]
    kept: list[Candidate] = []
    for candidate in sorted(found, key=lambda c: -c.score):
        if all(displacement(candidate.pose, other.pose, some) > apart for other in kept):
            kept.append(candidate)
        if len(kept) == n_best:
            break
    return kept


@dataclass(frozen=True)
class _Image:
    """Colours on the raster of the search."""

    layers: NDArray[np.float32]  # colours times mask, (n_channels, h, w)
    squares: NDArray[np.float32]  # sum of squared colours times mask, (h, w)
    mask: NDArray[np.float32]  # squares on tissue, (h, w)
    microns: float
    origin: tuple[float, float]  # upper left corner of the raster (x, y), µm

    @classmethod
    def of(cls, colours: ColourMap) -> _Image:
        step = max(1, round(colours.side / STEPS_PER_SQUARE / colours.microns))
        some = np.s_[step // 2 :: step, step // 2 :: step]
        mask = (colours.tissue[some] > 0.5).astype(np.float32)
        layers = np.moveaxis(colours.colours[some], -1, 0) * mask
        return cls(layers, (layers**2).sum(axis=0), mask, step * colours.microns, colours.origin)

    def best_shifts(self, squares: Squares, pose: NDArray[np.float64], side: float) -> list[Candidate]:
        """Shifts of a pose with the largest scores."""
        moved = apply_affine(pose, squares.xy)
        low = moved.min(axis=0)
        x, mask = _rasterised(moved - low, squares, self.microns, side)
        score = self._scores(x, mask, side)
        candidates = []
        for row, column, value in _peaks(score, PER_TURN, STEPS_PER_SQUARE):
            matrix = pose.copy()
            # Raster (row, column) of the cells lies on that of the image, shifted; sizes of the cells' raster come first.
            shift = np.array([column - mask.shape[1] + 1, row - mask.shape[0] + 1]) * self.microns
            matrix[:2, 2] += shift - low + self.origin
            candidates.append(Candidate(matrix, value))
        return candidates

    def _scores(self, x: NDArray[np.float32], mask: NDArray[np.float32], side: float) -> NDArray[np.float64]:
        """Score at every shift of the cells' raster ``(n_components, h, w)`` on the image's; -1 for little overlap."""
        from scipy.fft import irfft2, next_fast_len, rfft2

        shape = [next_fast_len(a + b - 1, real=True) for a, b in zip(mask.shape, self.mask.shape, strict=True)]
        full = tuple(a + b - 1 for a, b in zip(mask.shape, self.mask.shape, strict=True))
        image = rfft2(np.concatenate([self.mask[None], self.squares[None], self.layers]), shape)

        def correlated(layer: NDArray, which: NDArray) -> NDArray:
            # Turned by half, so that a product of transforms correlates; shift k is at index k + size - 1.
            turned = rfft2(layer[::-1, ::-1], shape)
            return irfft2(turned * which, shape)[..., : full[0], : full[1]]

        p = len(x)
        n, y2, *sums = correlated(mask, image)
        enough = np.flatnonzero(n.ravel() > LEAST_ON_TISSUE * mask.sum())
        n = n.ravel()[enough].astype(float)
        y = np.stack([s.ravel()[enough] for s in sums], axis=-1).astype(float)
        mean = np.empty((len(enough), p))
        cross = np.empty((len(enough), p, y.shape[1]))
        normal = np.empty((len(enough), p, p))
        for i in range(p):
            first, _, *products = correlated(x[i], image)
            mean[:, i] = first.ravel()[enough]
            cross[:, i] = np.stack([s.ravel()[enough] for s in products], axis=-1)
            for j in range(i, p):
                normal[:, i, j] = normal[:, j, i] = correlated(x[i] * x[j], image[0]).ravel()[enough]
        total = y2.ravel()[enough] - (y**2).sum(axis=1) / n
        normal -= mean[:, :, None] * mean[:, None] / n[:, None, None]
        cross -= mean[:, :, None] * y[:, None] / n[:, None, None]
        normal[:, np.arange(p), np.arange(p)] *= 1 + RIDGE
        explained = np.empty(len(enough))
        for start in range(0, len(enough), CHUNK):
            some = slice(start, start + CHUNK)
            beta = np.linalg.solve(normal[some], cross[some])
            explained[some] = (beta * cross[some]).sum(axis=(1, 2))
        independent = (self.microns / side) ** 2
        scores = np.full(full[0] * full[1], -1.0)
        r2 = explained / np.maximum(total, 1e-6)
        scores[enough] = score_of(r2, n * independent, float(mask.sum()) * independent, p)[0]
        return scores.reshape(full)


def _rasterised(
    xy: NDArray[np.float64], squares: Squares, microns: float, side: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smoothed components ``(n, h, w)`` on a raster, 0 where there are no cells, and the mask of cells ``(h, w)``."""
    from scipy.ndimage import gaussian_filter

    column, row = np.floor(xy / microns).astype(np.int64).T
    width, height = column.max() + 1, row.max() + 1
    sigma = side / np.sqrt(12) / microns
    values = squares.values[:, :N_COMPONENTS]
    rasters = []
    for layer in np.column_stack([np.ones(len(xy)), values]).T * squares.weight:
        raster = np.bincount(row * width + column, layer, height * width).reshape(height, width)
        rasters.append(gaussian_filter(raster.astype(np.float32), sigma, mode="constant"))
    weight, *layers = rasters
    mask = weight > 0.3 * np.median(weight[row, column])
    x = np.stack(layers) / np.where(mask, weight, 1)
    x -= x[:, mask].mean(axis=1)[:, None, None]
    x /= np.maximum(x[:, mask].std(axis=1), 1e-6)[:, None, None]
    return x * mask, mask.astype(np.float32)


def _peaks(score: NDArray[np.float64], n: int, apart: int) -> list[tuple[int, int, float]]:
    """Rows, columns and heights of the highest local maxima."""
    from scipy.ndimage import maximum_filter

    top = (score == maximum_filter(score, 2 * apart + 1, mode="constant", cval=-1.0)) & (score > 0)
    places = np.argwhere(top)
    order = np.argsort(-score[top], kind="stable")[:n]
    return [(int(r), int(c), float(score[r, c])) for r, c in places[order]]
