"""The embedded image encoder: stain and texture statistics of an H&E crop, without weights."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigmma_sc.errors import EncoderError

STAINS = ("haematoxylin", "eosin", "residual")

# Optical density of the pure stains in R, G, B: Ruifrok & Johnston 2001, table of normalised vectors.
_HAEMATOXYLIN = (0.65, 0.70, 0.29)
_EOSIN = (0.07, 0.99, 0.11)

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.95)
_AMOUNTS = (0.12, 0.25, 0.5, 1.0)  # doublings: nuclei measured from 0.2 in a pink scan to 1.2 in a blue one
WHITE = 0.08  # mean optical density below which light passes freely
_WHITE_SOFTNESS = 0.02
_LAGS = (1, 2, 4, 8, 16)  # pixels of the half-size crop
_OCTAVES = 5
_VARIANCE_FLOOR = 1e-4  # (0.01 optical density)²: below one grey level, where ratios would only measure rounding


def optical_density(rgb: Tensor) -> Tensor:
    """Absorbance ``-log10(I / I0)`` of transmitted light ``(B, 3, H, W)`` in [0, 1], with ``I0 = 1``; 0 for white.

    Values darker than one grey level of 8 bits count as one grey level, so black is 2.41 and not infinite.
    """
    # The natural logarithm is vectorised, the decadic one is not: a fifth of the time.
    return rgb.clamp(1 / 255, 1.0).log_().mul_(-1 / math.log(10))


def unmixing_matrix() -> Tensor:
    """``(3, 3)`` matrix taking an optical density (R, G, B) to amounts of haematoxylin, eosin and residual.

    The inverse of the matrix of the stains' unit vectors (Ruifrok & Johnston 2001), the third orthogonal to both.
    """
    stains = F.normalize(torch.tensor([_HAEMATOXYLIN, _EOSIN], dtype=torch.float64), dim=1)
    residual = F.normalize(torch.linalg.cross(stains[0], stains[1]), dim=0)
    return torch.linalg.inv(torch.cat([stains, residual[None]])).T.float().contiguous()


class StainStatistics(nn.Module):
    """Describe H&E crops by what a pathologist would measure, with no weights and no download.

    Colour deconvolution (Ruifrok & Johnston 2001) splits the crop into haematoxylin, eosin and a residual. The features
    measure their distribution, the coarse layout and the white space. They also measure amount, size, number, texture and
    spacing of nuclei, and the fibre alignment of the eosin. Turning a crop by 90° or mirroring it changes none of them.

    Scans differ tenfold in how dark their nuclei are. Hence the nuclear mask has the crop's own threshold (Otsu 1979, over
    tissue only), and the absolute amounts are features of their own. The softness of the masks and the white
    level (brightfield, background above 210 of 255) are this package's choices.

    It is a default that always works, not a substitute for a pathology foundation model.

    References
    ----------
    Ruifrok & Johnston (2001), Quantification of histochemical staining by color deconvolution, Anal Quant Cytol
    Histol 23:291-299. Burt & Adelson (1983), The Laplacian pyramid as a compact image code, IEEE Trans Commun 31.
    Otsu (1979), A threshold selection method from gray-level histograms, IEEE Trans Syst Man Cybern 9:62-66.
    Bigün & Granlund (1987), Optimal orientation detection of linear symmetry, ICCV (structure tensor).
    """

    unmix: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Constants, hence not saved; as buffers they follow the module's device and count in the fingerprint.
        self.register_buffer("unmix", unmixing_matrix(), persistent=False)
        # Raise whenever a feature changes its meaning: features cached by an older version are then computed anew.
        self.register_buffer("version", torch.tensor(1), persistent=False)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What each column of the output measures."""
        return tuple(self.describe(torch.ones(1, 3, 64, 64, device=self.unmix.device)))

    def forward(self, rgb: Tensor) -> Tensor:
        """Measure ``(B, 3, S, S)`` RGB crops in [0, 1], ``S`` a multiple of 16: ``(B, D)`` float32."""
        # On a CPU the maps of four crops stay in the cache, which is worth a third of the time.
        parts = rgb.split(4) if rgb.device.type == "cpu" and len(rgb) else (rgb,)
        return torch.cat([torch.stack(list(self.describe(part).values()), dim=1) for part in parts])

    def describe(self, rgb: Tensor) -> dict[str, Tensor]:
        """Return the same features by name, each ``(B,)``."""
        if rgb.ndim != 4 or rgb.shape[1] != 3 or rgb.shape[2] != rgb.shape[3] or rgb.shape[2] % 16 or not rgb.shape[2]:
            # Halving an odd side would drop a border on one side only, and with it the invariance to rotation.
            raise EncoderError(f"stain-stats needs (B, 3, S, S) with S a multiple of 16, got {tuple(rgb.shape)}.")
        # Statistics of 12,544 pixels lose their digits in half precision, whatever a trainer asks for.
        with torch.autocast(rgb.device.type, enabled=False):
            density = optical_density(rgb.float())
            stains = F.conv2d(density, self.unmix[:, :, None, None])
            half = _halved(stains)
            pair = half[:, :2].contiguous()
            white = density.mean(1, keepdim=True).neg_().add_(WHITE).div_(_WHITE_SOFTNESS).sigmoid_()
            half_white = _halved(white)
            ordered, tissue = _ascending(pair.flatten(2), (1 - half_white).flatten(2).expand(-1, 2, -1))
            matrix, nucleus = _two_classes(ordered[:, 0], tissue[:, 0])
            middle = (nucleus + matrix) / 2
            softness = (0.08 * (nucleus - matrix)).clamp_min(0.03)
            nuclei = (stains[:, :1] - middle[:, None]).div_(softness[:, None]).sigmoid_()
            fine = stains[:, :2] - _blur(stains[:, :2])
            return {
                **_distribution(density, stains, half),
                **_quantiles(ordered, tissue),
                **_mask(white, "white"),
                **_mask(nuclei, "nuclei"),
                **_nuclei(stains, fine, nuclei, white),
                "nuclei_contrast": (nucleus - matrix)[:, 0, 0],
                **_octaves(stains[:, :2], fine),
                **_autocorrelation(pair),
                **_orientation(pair, "fine"),
                **_orientation(_halved(pair), "coarse"),
                **_layout(torch.cat([pair, half_white, _halved(nuclei)], dim=1)),
            }


def _halved(maps: Tensor) -> Tensor:
    """Means of 2 x 2 pixels of ``(B, C, S, S)``: avg_pool2d, ten times as fast on a CPU."""
    rows = maps[:, :, ::2] + maps[:, :, 1::2]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def _ascending(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values in ascending order along the last dimension, and the weights >= 0 that go with them."""
    if values.device.type != "cpu" or values.requires_grad:
        ordered, order = values.sort(dim=-1)
        return ordered, weight.gather(-1, order)
    # NumPy sorts whole numbers six times as fast as torch sorts numbers and their places: the bits of a value above those of
    # its weight, with the order of negative values turned round.
    bits = values.contiguous().numpy().view(np.int32)
    pairs = (bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64) << 32
    pairs |= weight.contiguous().numpy().view(np.int32)
    pairs.sort(axis=-1)
    bits = (pairs >> 32).astype(np.int32)
    ordered = torch.from_numpy(bits ^ (bits >> 31 & 0x7FFFFFFF)).view(torch.float32)
    return ordered, torch.from_numpy(pairs.astype(np.int32)).view(torch.float32)


def _parts(maps: Tensor) -> Tensor:
    """Means of 4 x 4 parts of ``(B, C, S, S)``, ``S`` a multiple of 4: ``(B, C, 4, 4)``."""
    side = maps.shape[3] // 4
    rows = maps.unflatten(3, (4, side)).mean(4)
    return rows.unflatten(2, (4, side)).mean(3)


def _mean_of_product(first: Tensor, second: Tensor) -> Tensor:
    """Mean over pixels ``(B, C)`` of the product of ``(B, C, S, S)``, which is never stored."""
    first = first.flatten(2)
    return torch.linalg.vecdot(first, second.flatten(2)) / first.shape[2]


def _named(values: Tensor, names: list[str] | tuple[str, ...]) -> Mapping[str, Tensor]:
    """Columns of ``(B, n)`` under ``names``."""
    return dict(zip(names, values.unbind(1), strict=True))


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation over the last dimension; 0 where either is flat."""
    first = first - first.mean(-1, keepdim=True)
    second = second - second.mean(-1, keepdim=True)
    scale = (first.square().mean(-1) + _VARIANCE_FLOOR) * (second.square().mean(-1) + _VARIANCE_FLOOR)
    return (first * second).mean(-1) / scale.sqrt()


def _log_amplitude(energy: Tensor) -> Tensor:
    """Decades of the root mean square, floored at 0.001 optical density."""
    return torch.log10(energy.clamp_min(0).sqrt() + 1e-3)


def _two_classes(ordered: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Class means ``(B, 1, 1)`` of ascending weighted values ``(B, n)``, cut where Otsu's criterion is largest."""
    mass = weight.cumsum(1)
    moment = (weight * ordered).cumsum(1)
    mass_all = mass[:, -1:] + 1e-6
    moment_all = moment[:, -1:]
    rest = mass_all - mass
    between = (moment_all * mass - moment * mass_all).square() / (mass * rest + 1e-6)
    cut = between.argmax(1, keepdim=True)
    mass = mass.gather(1, cut)
    moment = moment.gather(1, cut)
    rest = rest.gather(1, cut)
    # One pixel's worth of the overall mean: an empty class has to have some mean.
    overall = moment_all / mass_all
    lower = (moment + overall) / (mass + 1)
    upper = (moment_all - moment + overall) / (rest + 1)
    return lower[:, :, None], upper[:, :, None]


def _distribution(density: Tensor, stains: Tensor, half: Tensor) -> Mapping[str, Tensor]:
    """Moments of each stain, standard deviation of each colour, correlations between stains."""
    mean = stains.mean((2, 3))
    centred = stains - mean[:, :, None, None]
    variance = _mean_of_product(centred, centred)
    skew = _mean_of_product(centred.square(), centred) / (variance + _VARIANCE_FLOOR).pow(1.5)
    found: dict[str, Tensor] = {}
    for values, what in ((mean, "mean"), (variance.sqrt(), "sd"), (skew, "skew")):
        found |= _named(values, [f"{stain}_{what}" for stain in STAINS])
    deviation = (_mean_of_product(density, density) - density.mean((2, 3)).square()).clamp_min(0).sqrt()
    found |= _named(deviation, ("red_sd", "green_sd", "blue_sd"))
    small = half.flatten(2)
    pairs = (("haematoxylin_eosin", 0, 1), ("haematoxylin_residual", 0, 2), ("eosin_residual", 1, 2))
    return found | {f"corr_{name}": _correlation(small[:, i], small[:, j]) for name, i, j in pairs}


def _quantiles(ordered: Tensor, tissue: Tensor) -> Mapping[str, Tensor]:
    """Quantiles over tissue of ascending ``(B, 2, n)`` amounts; over all pixels most would only restate the white."""
    rank = tissue.cumsum(2)
    found: dict[str, Tensor] = {}
    for q in _QUANTILES:
        position = torch.searchsorted(rank, q * rank[..., -1:]).clamp_max_(rank.shape[2] - 1)
        found |= _named(ordered.gather(2, position)[..., 0], [f"{s}_q{100 * q:02.0f}" for s in STAINS[:2]])
    return found


def _mask(mask: Tensor, name: str) -> Mapping[str, Tensor]:
    """Share, boundary per area and number of objects of a soft ``(B, 1, S, S)`` mask.

    The total variation of a disc of radius r along rows and columns is 8 r, its area π r². Hence n equal discs
    have (boundary)² π / 64 area = n, whatever their size.
    """
    area = mask.mean((1, 2, 3))
    boundary = mask.diff(dim=3).abs_().mean((1, 2, 3)) + mask.diff(dim=2).abs_().mean((1, 2, 3))
    number = mask.shape[3] ** 2 * boundary.square() * math.pi / (64 * (area + 1e-3))
    found = (area, boundary / (area + 1e-2), torch.log1p(number))
    return dict(zip([f"{name}_{what}" for what in ("fraction", "boundary", "number")], found, strict=True))


def _nuclei(stains: Tensor, fine: Tensor, nuclei: Tensor, white: Tensor) -> Mapping[str, Tensor]:
    """Chromatin inside the nuclear mask, cytoplasm and matrix outside it."""
    pair = stains[:, :2]
    rest = (1 - nuclei).mul_(1 - white)

    def within(values: Tensor, weight: Tensor) -> Tensor:
        # The small constant stands for "no such pixel: 0", and keeps near-empty masks from dividing noise by noise.
        weight = weight.expand_as(values)
        return _mean_of_product(values, weight) / (weight.mean((2, 3)) + 1e-2)

    def std(mean: Tensor, mean_square: Tensor) -> Tensor:
        return (mean_square - mean.square()).clamp_min(0).sqrt()

    square = pair.square()
    inside, inside_square = within(pair, nuclei), within(square, nuclei)
    outside, outside_square = within(pair, rest), within(square, rest)
    texture = within(fine[:, :1].square(), nuclei)
    above = {a: torch.sub(pair[:, :1], a).div_(0.15 * a).sigmoid_().mean((1, 2, 3)) for a in _AMOUNTS}
    return {
        **{f"haematoxylin_above{a:g}": share for a, share in above.items()},
        "chromatin_mean": inside[:, 0],
        "chromatin_sd": std(inside, inside_square)[:, 0],
        "chromatin_texture": _log_amplitude(texture)[:, 0],
        "nuclei_eosin_mean": inside[:, 1],
        "matrix_eosin_mean": outside[:, 1],
        "matrix_eosin_sd": std(outside, outside_square)[:, 1],
        "matrix_haematoxylin_mean": outside[:, 0],
    }


def _blur(image: Tensor) -> Tensor:
    """Binomial 1-4-6-4-1 filter along both axes, borders repeated."""
    blurred = F.pad(image, (2, 2, 2, 2), mode="replicate")
    for dim in (2, 2, 2, 2, 3, 3, 3, 3):  # the filter is four sums of two neighbours
        size = blurred.shape[dim] - 1
        blurred = blurred.narrow(dim, 0, size) + blurred.narrow(dim, 1, size)
    return blurred / 256


def _octaves(pair: Tensor, fine: Tensor) -> Mapping[str, Tensor]:
    """Difference-of-Gaussian amplitude and asymmetry per octave: the size spectrum of nuclei and fibres.

    A dark blob on a pale ground gives positive asymmetry in the octave of its diameter, a hole a negative one.
    """
    found: dict[str, Tensor] = {}
    smooth = pair - fine
    band = fine
    for octave in range(_OCTAVES):
        energy = _mean_of_product(band, band)
        asymmetry = _mean_of_product(band.square(), band) / (energy + _VARIANCE_FLOOR / 10).pow(1.5)
        found |= _named(_log_amplitude(energy), [f"{stain}_dog{octave}" for stain in STAINS[:2]])
        found |= _named(asymmetry, [f"{stain}_blob{octave}" for stain in STAINS[:2]])
        if octave + 1 < _OCTAVES:
            level = _halved(smooth)
            smooth = _blur(level)
            band = level - smooth
    return found


def _autocorrelation(pair: Tensor) -> Mapping[str, Tensor]:
    """Correlate a stain with itself some pixels away, mean of rows and columns, and their difference."""
    centred = pair - pair.mean((2, 3), keepdim=True)
    variance = _mean_of_product(centred, centred) + _VARIANCE_FLOOR
    found: dict[str, Tensor] = {}
    for lag in _LAGS:
        step = min(lag, pair.shape[3] - 1)
        across = (centred[..., step:] * centred[..., :-step]).mean((2, 3)) / variance
        down = (centred[..., step:, :] * centred[..., :-step, :]).mean((2, 3)) / variance
        found |= _named((across + down) / 2, [f"{stain}_lag{lag}" for stain in STAINS[:2]])
        if lag == _LAGS[2]:
            found |= _named((across - down).abs(), [f"{stain}_axis" for stain in STAINS[:2]])
    return found


def _orientation(pair: Tensor, name: str) -> Mapping[str, Tensor]:
    """Structure tensor: gradient amplitude, and coherence in the whole crop and in each of 4 x 4 parts.

    Coherence is the difference of the tensor's eigenvalues over their sum: 0 without direction, 1 for stripes.
    """
    padded = F.pad(pair, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    columns = _parts(across.square()).flatten(2)
    rows = _parts(down.square()).flatten(2)
    energy = columns + rows
    real = columns - rows
    imaginary = 2 * _parts(across.mul_(down)).flatten(2)
    total = energy.mean(2) + _VARIANCE_FLOOR / 10
    whole = (real.mean(2).square() + imaginary.mean(2).square()).sqrt() / total
    local = (real.square() + imaginary.square()).sqrt().mean(2) / total
    found: dict[str, Tensor] = {}
    for values, what in ((_log_amplitude(total), "gradient"), (whole, "coherence"), (local, "local_coherence")):
        found |= _named(values, [f"{stain}_{what}_{name}" for stain in STAINS[:2]])
    return found


def _layout(maps: Tensor) -> Mapping[str, Tensor]:
    """How unevenly stains, white space and nuclei lie over 4 x 4 parts, and whether they sit in the middle."""
    names = ("haematoxylin", "eosin", "white", "nuclei")
    parts = _parts(maps)
    middle = parts[:, :, 1:3, 1:3].mean((2, 3)) - parts.mean((2, 3))
    flat = parts.flatten(2)
    return {
        **_named(flat.std(2, correction=0), [f"{n}_unevenness" for n in names]),
        **_named(middle, [f"{n}_middle" for n in names]),
        "layout_haematoxylin_eosin": _correlation(flat[:, 0], flat[:, 1]),
    }
