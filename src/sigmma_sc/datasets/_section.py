"""The plan of a simulated section and its H&E image, painted directly in the pixel frame of the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

COMPARTMENTS = ("tumor", "stroma", "exocrine")
NEIGHBORHOODS = ("diffuse", "rosette", "lymphoid")
NICHES = {  # factors on nuclear area, haematoxylin and length/width; fibres and haematoxylin haze of the ground
    "tumor_nest": (1.15, 0.90, 1.00, 0.10, 0.04),
    "tumor_gland": (0.85, 1.15, 1.35, 0.10, 0.02),
    "stroma_fibrous": (0.90, 1.08, 1.15, 1.00, 0.00),
    "stroma_lymphoid": (1.12, 0.95, 0.90, 0.25, 0.06),
    "exocrine_acinar": (1.00, 1.00, 1.00, 0.15, 0.03),
    "exocrine_inflamed": (1.20, 0.82, 1.00, 0.55, 0.01),
}
"""In the order 2 · compartment + (0 for its usual neighbourhood, 1 for its patches)."""
GLAND = 1  # GLAND and ACINAR are the niches of rosettes
ACINAR = 4
NEIGHBORHOOD_OF = np.array([0, 1, 0, 2, 1, 2])  # each occurs in two compartments, so one does not determine the other
TYPES = {
    # nucleus: area µm², length/width, haematoxylin, pale centre, clumped chromatin, nucleolus
    # cell body: area (nuclei), eosin, haematoxylin, paleness of its border
    "tumor": (62, 1.30, 0.92, 0.45, 0.22, 0.80, 2.6, 0.40, 0.15, 0.5),
    "ductal": (40, 1.45, 1.15, 0.20, 0.18, 0.00, 3.0, 0.34, 0.05, 0.6),
    "acinar": (33, 1.06, 1.12, 0.25, 0.20, 0.45, 5.0, 0.55, 0.17, 0.5),
    "fibroblast": (29, 3.70, 1.15, 0.05, 0.14, 0.00, 3.0, 0.45, 0.01, 0.0),
    "endothelial": (22, 2.80, 1.35, 0.05, 0.10, 0.00, 2.2, 0.50, 0.01, 0.0),
    "T cell": (25, 1.10, 1.75, 0.02, 0.15, 0.00, 1.7, 0.20, 0.08, 0.2),
    "B cell": (30, 1.08, 1.50, 0.15, 0.30, 0.00, 1.8, 0.20, 0.12, 0.2),
    "macrophage": (44, 1.60, 0.80, 0.35, 0.18, 0.15, 4.0, 0.34, 0.03, 0.3),
}
STAINS = np.array([[0.57, 0.75, 0.33], [0.08, 0.93, 0.31]])
"""Optical density in red, green, blue per unit of haematoxylin and eosin: Ruifrok's, a little warmer."""
MARGIN = 50.0  # µm of glass around the section
PATCH = 51.0  # µm between the centres of neighbouring patches, which are a little smaller
TILE = 512  # px painted at a time, so that every intermediate array stays small
NODE = 2.0  # µm between the nodes on which slowly varying fields are evaluated


def texture(rng: np.random.Generator, sigma: tuple[float, float], size: int = 512) -> np.ndarray:
    """Periodic noise ``(size, size)`` of zero mean and unit variance, smooth over ``sigma`` (rows, columns)."""
    noise = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def spread(xy: np.ndarray, diameter: np.ndarray, rounds: int, mobility: np.ndarray | float = 1.0) -> np.ndarray:
    """Push points ``(n, 2)`` apart that are closer than their ``diameter`` ``(n,)``."""
    for _ in range(rounds):
        i, j = cKDTree(xy).query_pairs(diameter.max(), output_type="ndarray").T
        gap = xy[i] - xy[j]
        distance = np.hypot(*gap.T) + 1e-9
        push = 0.4 * gap * (((diameter[i] + diameter[j]) / 2 - distance).clip(0) / distance)[:, None]
        step = [np.bincount(i, p, len(xy)) - np.bincount(j, p, len(xy)) for p in push.T]
        xy = xy + mobility * np.stack(step, -1)
    return xy


def thin(xy: np.ndarray, spacing: float) -> np.ndarray:
    """Mask of the points that have no earlier point within ``spacing``."""
    keep = np.ones(len(xy), bool)
    keep[cKDTree(xy).query_pairs(spacing, output_type="ndarray").max(1)] = False
    return keep


@dataclass(frozen=True)
class Layout:
    """Plan of a section: compartments, round patches in them, direction of the fibres; lengths in µm."""

    side: float
    compartments: np.ndarray
    noise: list[np.ndarray]
    turn: np.ndarray
    centre: np.ndarray
    radius: np.ndarray
    niche: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, side: float) -> Layout:
        """Draw a section of ``side`` µm."""
        size = int((side + 2 * MARGIN) / 8) + 2  # smooth fields live on a lattice of 8 µm
        fields = np.stack([texture(rng, (12, 12), size) + 0.15 * texture(rng, (3, 3), size) for _ in COMPARTMENTS])
        for _ in range(80):  # offsets until the compartments share the section evenly
            fields += 0.2 * (1 / 3 - np.bincount(fields.argmax(0).ravel(), minlength=3) / fields[0].size)[:, None, None]
        noise = [texture(rng, (scale / 8,) * 2, size) for scale in (14, 70, 70, 25)]
        tilt = rng.uniform(0, np.pi)
        turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
        # One patch far away, so that look-ups are defined on sections too small for any.
        bare = cls(side, fields, noise, turn, np.full((1, 2), -1e6), np.ones(1), np.zeros(1, int))
        place = MARGIN + rng.uniform(0, side, (int(1.15 * (side / PATCH) ** 2) + 1, 2))
        place = spread(place, np.full(len(place), PATCH + 2), 20)
        place = place[thin(place, PATCH - 2) & (bare.depth(place) > 26)]
        niche = bare.locate(place)[0]
        niche += rng.random(len(place)) < np.array([0.65, 0.60, 0.42])[niche // 2]
        is_patch = NEIGHBORHOOD_OF[niche] != 0  # the diffuse neighbourhood has none
        centre = np.r_[bare.centre, place[is_patch]]
        return cls(side, fields, noise, turn, centre, rng.uniform(20, 24.5, len(centre)), np.r_[0, niche[is_patch]])

    @property
    def ring(self) -> np.ndarray:
        """Whether a patch is a rosette of cells around a lumen."""
        return NEIGHBORHOOD_OF[self.niche] == 1

    @property
    def lumen(self) -> np.ndarray:
        """Radius of the lumen of a rosette: wide in tumour glands, narrow in acini."""
        return np.where(self.niche == GLAND, self.radius - 12.0, 2.5)

    def _read(self, field: np.ndarray, points: np.ndarray) -> np.ndarray:
        return map_coordinates(field, points.T[::-1] / 8, order=1, mode="nearest")

    def wobble(self, points: np.ndarray) -> np.ndarray:
        """Factor on distances to a patch, because patches are not quite round."""
        return 1 + 0.10 * self._read(self.noise[0], points)

    def locate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Niche of each point ``(n, 2)``, its nearest patch, and how far it is from the centre of that patch."""
        reach, site = cKDTree(self.centre).query(points)
        reach = reach * self.wobble(points)
        usual = 2 * np.argmax([self._read(field, points) for field in self.compartments], axis=0)
        return np.where(reach < self.radius[site], self.niche[site], usual), site, reach

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Distance inside the wavy edge of the section, negative outside."""
        half = self.side / 2
        square = (((points - MARGIN - half) / half) ** 8).sum(1) ** (1 / 8)  # with round corners
        return half * (1 - square) + 8 * self._read(self.noise[3], points).clip(-2, 2)

    def fibres(self, points: np.ndarray) -> np.ndarray:
        """Wavy coordinates ``(n, 2)`` along and across the collagen fibres, which also run round the patches."""
        along, across = (points @ self.turn.T).T
        reach, site = cKDTree(self.centre).query(points)
        shell = np.exp(-(((reach - self.radius[site]).clip(0) / 16) ** 2))
        along = along + 45 * self._read(self.noise[1], points)
        across = across + 55 * self._read(self.noise[2], points) + 26 * shell + 1.5 * np.sin(2 * np.pi * along / 28)
        return np.stack([along, across], -1)

    def fibre_angle(self, points: np.ndarray) -> np.ndarray:
        """Direction of the fibres in radians."""
        slope = [self.fibres(points + shift)[:, 1] - self.fibres(points - shift)[:, 1] for shift in np.eye(2)]
        return np.arctan2(slope[1], slope[0]) + np.pi / 2


@dataclass(frozen=True)
class Cells:
    """The cells of a section, one row each; lengths in µm, angles in radians."""

    xy: np.ndarray
    cell_type: np.ndarray
    niche: np.ndarray
    pair: np.ndarray
    activity: np.ndarray  # of the single cell: larger, paler nucleus and more transcripts
    nucleus_area: np.ndarray
    aspect: np.ndarray
    orientation: np.ndarray
    look: np.ndarray  # haematoxylin, pale centre, clumped chromatin, nucleolus
    radius: np.ndarray


def paint_nuclei(
    rng: np.random.Generator, cells: Cells, centre: np.ndarray, turn: float, mpp: float, canvas: np.ndarray
) -> None:
    """Add the haematoxylin of all nuclei, at ``centre`` ``(n, 2)`` px, to ``canvas`` ``(height, width)``."""
    major = np.sqrt(cells.nucleus_area * cells.aspect / np.pi) / mpp
    chromatin = texture(rng, (0.55 / mpp,) * 2)
    lobes = rng.uniform(0, 2 * np.pi, len(major))
    nucleolus = rng.normal(0, 0.22, (2, len(major)))
    columns = (cells.orientation - turn, major, major / cells.aspect, lobes, *nucleolus, *cells.look.T)
    table = np.stack(columns).astype(np.float32)[:, :, None, None]
    # Nuclei of similar extent share one stamp size, so that small ones do not get large stamps.
    for idx in np.array_split(np.argsort(major, kind="stable"), -(-len(major) // 512)):
        half = int(1.15 * major[idx].max()) + 3
        pixel = np.floor(centre[idx]).astype(int)[:, :, None] + np.arange(-half, half + 1)
        dx, dy = (pixel + 0.5 - centre[idx, :, None]).astype(np.float32).transpose(1, 0, 2)
        # Each nucleus reads the chromatin texture from a different place.
        place = (pixel + 37 * idx[:, None, None] * np.array([[1], [3]])) % len(chromatin)
        grain = chromatin[place[:, 1, :, None], place[:, 0, None, :]]
        stamp = _stamp(dx[:, None, :], dy[:, :, None], grain, table[:, idx])
        on = (pixel >= 0) & (pixel < np.array(canvas.shape)[::-1, None])
        on = on[:, 1, :, None] & on[:, 0, None, :] & (stamp > 0.01)
        where = (pixel[:, 1, :, None] * canvas.shape[1] + pixel[:, 0, None, :])[on]
        # Overlapping nuclei hide each other rather than add up: sections are thinner than a nucleus.
        np.maximum.at(canvas.reshape(-1), where, stamp[on])


def _stamp(dx: np.ndarray, dy: np.ndarray, grain: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Haematoxylin ``(n, k, k)`` of nuclei around their centres; lengths in px."""
    angle, major, minor, lobes, spot_along, spot_across, density, pale, clumps, spot = table
    along = (dx * np.cos(angle) + dy * np.sin(angle)) / major
    across = (dy * np.cos(angle) - dx * np.sin(angle)) / minor + 0.12 * np.cos(2 * along + lobes)  # bends the outline
    radius2 = along**2 + across**2
    stain = 1 + clumps * grain + pale * (np.minimum(radius2, 1) - 0.5)
    stain += spot * np.exp(-((along - spot_along) ** 2 + (across - spot_across) ** 2) / 0.05)
    return density * np.maximum(stain, 0.2) * np.clip((1 - np.sqrt(radius2)) * minor / 1.6 + 0.5, 0, 1)


def slow_fields(layout: Layout, cells: Cells, tree: cKDTree, um: np.ndarray) -> np.ndarray:
    """Evaluate the slowly varying fields, ``(7, rows, columns)``, at nodes ``um`` ``(rows, columns, 2)``.

    Eosin and haematoxylin of the ground, fibres, distance into a lumen, depth in the section, two fibre coordinates.
    """
    points = um.reshape(-1, 2)
    niche, site, reach = layout.locate(points)
    distances, neighbours = tree.query(points, k=2)
    distance, second = distances.T
    nearest = neighbours[:, 0]
    pink, blue, border = np.array(list(TYPES.values()))[cells.cell_type[nearest], 7:].T
    fibres, haze = np.array(list(NICHES.values()))[niche, 3:].T
    # A cell body ends some µm from its nucleus; beyond it is matrix.
    cover = np.clip((cells.radius[nearest] * 1.3 - distance) / 2.5, 0, 1) * (1 - 0.75 * fibres)
    border = border * np.exp(-(((second - distance) / 1.6) ** 2)) * cover
    ring = layout.ring[site]
    lumen = layout.lumen[site]
    # Acini: zymogen towards the lumen is pink, the cytoplasm below the nuclei blue.
    height = np.where(ring & (niche == ACINAR), (reach - lumen) / (layout.radius[site] - lumen), 2)
    apical = np.where(height < 1, 1.3 - 2 * height, 0).clip(-1, 1)
    eosin = cover * (pink + 0.28 * apical) + (1 - cover) * (0.24 + 0.26 * fibres) - 0.25 * border
    haematoxylin = cover * (blue - 0.13 * apical) + haze
    gap = np.where(ring, lumen - reach, -20.0).clip(-20, 20)
    fields = [eosin, haematoxylin, fibres * (1 - cover), gap, layout.depth(points), *layout.fibres(points).T]
    stack = np.stack(fields).astype(np.float32).reshape(-1, *um.shape[:2])
    return np.concatenate([gaussian_filter(stack[:3], (0, 0.6, 0.6), truncate=3), stack[3:]])


def enlarge(nodes: np.ndarray, step: int) -> np.ndarray:
    """Linear interpolation of ``(k, rows, columns)`` nodes at the centres of ``step`` px between neighbours."""
    t = (np.arange(step, dtype=np.float32)[:, None] + 0.5) / step
    for _ in range(2):
        low = nodes[:, :-1, None]
        rise = np.diff(nodes, axis=1)[:, :, None]
        nodes = (low + rise * t).reshape(len(nodes), -1, nodes.shape[2]).swapaxes(1, 2)
    return nodes


def paint_ground(field: np.ndarray, grain: np.ndarray, bundles: np.ndarray) -> np.ndarray:
    """Haematoxylin and eosin ``(2, rows, columns)`` behind the nuclei."""
    eosin, haematoxylin, fibres, gap, depth, along, across = field
    # Bundles: noise stretched along the local fibre direction, read every 0.5 µm.
    strand = bundles[(across / 0.5).astype(int) % len(bundles), (along / 0.5).astype(int) % len(bundles)]
    cleft = fibres * (1 - np.clip((strand + 1.5) * 2, 0, 1)) * 0.8
    tissue = np.clip(depth / 3 + 0.3 * grain, 0, 1) * np.clip(0.5 - (gap + 0.7 * grain) / 1.6, 0, 1) * (1 - cleft)
    mucin = 0.05 * np.clip(gap / 4, 0, 1) * (1 + 0.8 * grain)
    eosin = np.maximum(eosin * (1 + 0.10 * grain) + 0.20 * fibres * strand, 0)
    return np.stack([haematoxylin * (1 + 0.15 * grain) * tissue + mucin, eosin * tissue + 0.4 * mucin])


def expose(rng: np.random.Generator, ground: np.ndarray, nuclei: np.ndarray, stains: np.ndarray) -> np.ndarray:
    """RGB ``(3, rows, columns)`` uint8 from stain amounts ``(2, rows, columns)`` and nuclei, by Beer-Lambert."""
    haematoxylin = ground[0] + nuclei
    eosin = ground[1] * (1 - 0.55 * np.minimum(nuclei, 1))
    grit = 1.5 * rng.standard_normal(nuclei.shape, dtype=np.float32)
    light = [245 * np.exp(-(h * haematoxylin + e * eosin)) + grit for h, e in stains.astype(np.float32).T]
    return np.clip(light, 0, 255).astype(np.uint8)


def image_frame(side: float, mpp: float, angle: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Affine ``(3, 3)`` from H&E px to µm, and the height and width in px that hold the section and its margin."""
    cos = np.cos(np.radians(angle))
    sin = np.sin(np.radians(angle))
    linear = mpp * np.array([[cos, -sin], [sin, cos]])
    corners = (side + 2 * MARGIN) * np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) @ np.linalg.inv(linear).T
    affine = np.eye(3)
    affine[:2, :2] = linear
    affine[:2, 2] = linear @ corners.min(0)
    width, height = np.ceil(np.ptp(corners, axis=0)).astype(int)
    return affine, (int(height), int(width))


def render_he(
    seed: np.random.SeedSequence, layout: Layout, cells: Cells, affine: np.ndarray, shape: tuple, stains: np.ndarray
) -> np.ndarray:
    """RGB image ``(3, height, width)`` uint8 of a section.

    ``affine`` ``(3, 3)`` maps image px (x, y, 1) to µm, a rotation and a scale; ``stains`` is as :data:`STAINS`.
    """
    rng = np.random.default_rng(seed)
    mpp = np.hypot(affine[0, 0], affine[1, 0])
    turn = np.arctan2(affine[1, 0], affine[0, 0])
    nuclei = np.zeros(shape, np.float32)
    paint_nuclei(rng, cells, (cells.xy - affine[:2, 2]) @ np.linalg.inv(affine[:2, :2]).T, turn, mpp, nuclei)
    bundles = 0.8 * texture(rng, (2.2, 40)) + 0.5 * texture(rng, (7, 70))
    grain = 0.75 * texture(rng, (0.9 / mpp,) * 2, TILE) + 0.65 * texture(rng, (5 / mpp,) * 2, TILE)
    tree = cKDTree(cells.xy)
    step = max(1, round(NODE / mpp))
    node = np.stack(np.meshgrid(*[step * np.arange(-(-TILE // step) + 1)] * 2), -1)
    image = np.empty((3, *shape), np.uint8)
    for corner in np.ndindex(-(-shape[0] // TILE), -(-shape[1] // TILE)):
        top, left = TILE * corner[0], TILE * corner[1]
        window = np.s_[top : top + TILE, left : left + TILE]
        rows, cols = nuclei[window].shape
        um = (node + (left, top)) @ affine[:2, :2].T + affine[:2, 2]
        field = enlarge(slow_fields(layout, cells, tree, um), step)[:, :rows, :cols]
        ground = paint_ground(field, grain[:rows, :cols], bundles)
        image[(slice(None), *window)] = expose(rng, ground, nuclei[window], stains)
    return image
