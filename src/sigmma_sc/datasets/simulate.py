"""Simulated Xenium sections with H&E: every scale has a distinct pattern, and the truth is known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from sigmma_sc._checks import is_number, require_positive, require_whole
from sigmma_sc.datasets._section import (
    ACINAR,
    COMPARTMENTS,
    GLAND,
    MARGIN,
    NEIGHBORHOOD_OF,
    NEIGHBORHOODS,
    NICHES,
    STAINS,
    TYPES,
    Cells,
    Layout,
    image_frame,
    render_he,
    spread,
    thin,
)
from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

TYPE_NAMES = tuple(TYPES)
NICHE_NAMES = tuple(NICHES)
PAIRS = ("none", "single", "contact")
T_CELL = TYPE_NAMES.index("T cell")
MACROPHAGE = TYPE_NAMES.index("macrophage")
PER_TILE = 85  # cells in 128 µm × 128 µm, on average
DENSITY = np.array([0.0056, 0.0, 0.0036, 0.0120, 0.0042, 0.0100])  # relative, of the cells outside rosettes, per niche
MIXTURE = np.array(  # rows as NICHES, then the interstitium between acini; columns as TYPES
    [
        [0.86, 0.00, 0.00, 0.07, 0.07, 0.00, 0.00, 0.00],
        [0.82, 0.18, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00],
        [0.00, 0.03, 0.00, 0.77, 0.20, 0.00, 0.00, 0.00],
        [0.00, 0.00, 0.00, 0.05, 0.07, 0.45, 0.43, 0.00],
        [0.00, 0.12, 0.88, 0.00, 0.00, 0.00, 0.00, 0.00],
        [0.00, 0.05, 0.20, 0.15, 0.10, 0.35, 0.15, 0.00],
        [0.00, 0.08, 0.54, 0.20, 0.18, 0.00, 0.00, 0.00],
    ]
)
DEPTH = 75.0  # expected counts of the median cell
DISPERSION = 2.5  # of the negative binomial: variance = mean + mean² / DISPERSION
GENES = {
    "tumor": "EPCAM KRT19 KRT7 CEACAM6 MUC1 TFF1 LCN2 CLDN4",
    "ductal": "CFTR SOX9 SLC4A4 AQP1 SPP1 HNF1B MMP7 ANXA4",
    "acinar": "PRSS1 CPA1 CELA3A CTRB1 PNLIP AMY2A REG1A SPINK1",
    "fibroblast": "COL1A1 COL1A2 COL3A1 DCN LUM PDGFRB FAP ACTA2",
    "endothelial": "PECAM1 VWF CDH5 KDR CLDN5 PLVAP ENG EMCN",
    "T cell": "CD3E CD3D CD2 TRAC IL7R CD8A CCR7 LTB",
    "B cell": "MS4A1 CD79A CD79B CD19 BANK1 PAX5 CR2 FCRL1",
    "macrophage": "CD68 CD163 C1QA C1QB MRC1 CSF1R MSR1 APOE",
    "tumor_nest": "AREG EREG LIF",
    "tumor_gland": "MUC5AC AGR2 TFF3",
    "stroma_fibrous": "CXCL12 POSTN WNT5A",
    "stroma_lymphoid": "CXCL13 CCL19 CCL21",
    "exocrine_acinar": "FGF1 REG3A IL33",
    "exocrine_inflamed": "CCL2 IL6 CXCL8",
    "compartment_tumor": "CXCL2 CXCL6 VEGFA SLC2A1 LDHA CA9",
    "compartment_stroma": "FN1 SPARC TNC TGFB1 BGN FBN1",
    "compartment_exocrine": "XBP1 HSPA5 SEC61B PDIA4 GATM SLC39A14",
    "ligand": "CXCL9 CXCL10",
    "response": "IFNG GZMB",
    "housekeeping": "ACTB GAPDH B2M EEF1A1 RPLP0 RPS18 TUBA1B PGK1 HPRT1 UBC PPIA YWHAZ SDHA TBP HSP90AB1 EIF4A2",
}
"""Panel of 120 genes: markers of types, of niches, of compartments and of contacts, and housekeeping genes."""
GENE_NAMES = " ".join(GENES.values()).split()


def place_cells(rng: np.random.Generator, layout: Layout, n_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids ``(n, 2)`` in µm, and the direction from the lumen for cells of a rosette (NaN for others)."""
    rings = np.flatnonzero(layout.ring)
    gland = layout.niche[rings] == GLAND
    height = layout.radius[rings] - np.where(gland, 5.5, 7.5)
    count = np.round(2 * np.pi * height / np.where(gland, 8.0, 9.0)).astype(int)
    owner = np.repeat(np.arange(len(rings)), count)
    position = np.arange(len(owner)) - (np.cumsum(count) - count)[owner] + rng.normal(0, 0.12, len(owner))
    spoke = 2 * np.pi * position / count[owner]
    arm = np.stack([np.cos(spoke), np.sin(spoke)], -1) * (height[owner] + rng.normal(0, 1, len(owner)))[:, None]
    middle = layout.centre[rings[owner]]
    ring_xy = middle + arm / layout.wobble(middle + arm)[:, None]
    # On small sections the rosettes alone could hold more cells than requested.
    kept = rng.permutation(len(ring_xy))[: int(0.8 * n_cells)]
    ring_xy = ring_xy[kept]
    spoke = spoke[kept]
    n_free = n_cells - len(kept)

    tries = MARGIN + rng.uniform(0, layout.side, (12 * n_cells, 2))
    niche, site, reach = layout.locate(tries)
    closed = layout.ring[site] & (reach < layout.radius[site] + 2)
    weight = DENSITY[niche] * (~closed & (layout.depth(tries) > 12))
    free = tries[rng.choice(len(tries), n_free, replace=False, p=weight / weight.sum())]
    xy = np.r_[ring_xy, free]
    diameter = 0.80 * np.sqrt(1.1547 / np.maximum(DENSITY[layout.locate(xy)[0]], 0.0036))
    xy = spread(xy, diameter, 12, mobility=np.repeat([0.15, 1.0], [len(ring_xy), n_free])[:, None])
    return xy, np.r_[spoke, np.full(n_free, np.nan)]


def assign_types(
    rng: np.random.Generator, xy: np.ndarray, niche: np.ndarray, in_ring: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Type and pair state ``(n,)`` of each cell.

    Macrophages are seeds far from one another. Half of the seeds get a T cell as nearest neighbour (contact), the others
    stay alone. A macrophage with another T cell nearby becomes a resident cell again.
    """
    mixture = MIXTURE.cumsum(1)[np.where((niche == ACINAR) & ~in_ring, len(NICHES), niche), :-1]
    resident = (rng.random(len(xy))[:, None] > mixture).sum(1)
    quiet = rng.permutation(np.flatnonzero(NEIGHBORHOODS.index("lymphoid") != NEIGHBORHOOD_OF[niche]))
    seeds = quiet[thin(xy[quiet], 34.0)]
    distances, neighbours = cKDTree(xy).query(xy[seeds], k=2)
    distance = distances[:, 1]
    nearest = neighbours[:, 1]
    role = rng.choice(["contact", "macrophage", "T cell"], len(seeds), p=[0.5, 0.3, 0.2])
    role[(role == "contact") & (distance > 14)] = "macrophage"
    mate = np.full(len(xy), -1)
    mate[seeds[role == "contact"]] = nearest[role == "contact"]
    cell_type = resident.copy()
    cell_type[seeds] = np.where(role == "T cell", T_CELL, MACROPHAGE)
    cell_type[mate[mate >= 0]] = T_CELL

    macrophages = np.flatnonzero(cell_type == MACROPHAGE)
    t_cells = np.flatnonzero(cell_type == T_CELL)
    near = cKDTree(xy[t_cells]).query_ball_point(xy[macrophages], 20.0)
    lost = [m for m, around in zip(macrophages, near, strict=True) if set(t_cells[around]) - {mate[m]}]
    cell_type[lost] = resident[lost]
    mate[lost] = -1
    pair = np.isin(cell_type, (T_CELL, MACROPHAGE)).astype(int)
    pair[mate >= 0] = pair[mate[mate >= 0]] = PAIRS.index("contact")
    return cell_type, pair


def grow_cells(rng: np.random.Generator, layout: Layout, n_cells: int) -> Cells:
    """Place cells and draw their types; type, niche, contact and chance determine their nuclei."""
    xy, spoke = place_cells(rng, layout, n_cells)
    niche = layout.locate(xy)[0]
    cell_type, pair = assign_types(rng, xy, niche, ~np.isnan(spoke))
    kind = np.array(list(TYPES.values()))[cell_type]
    place = np.array(list(NICHES.values()))[niche]
    swollen = np.where(pair == PAIRS.index("contact"), 1.25, 1.0)
    activity = rng.normal(size=n_cells)
    chance = np.exp(rng.normal(0, [0.14, 0.12, 0.08, 0.10], (n_cells, 4)))
    area = kind[:, 0] * place[:, 0] * swollen * chance[:, 0] * np.exp(0.14 * activity)
    aspect = np.maximum(kind[:, 1] * place[:, 2] * chance[:, 1], 1)
    density = kind[:, 2] * place[:, 1] * chance[:, 2] * np.exp(-0.06 * activity) / np.sqrt(swollen)
    spindle = kind[:, 1] > 2
    free = np.where(spindle, layout.fibre_angle(xy), rng.uniform(0, np.pi, n_cells))
    orientation = np.where(np.isnan(spoke) | spindle, free, spoke) + rng.normal(0, 0.2, n_cells)
    radius = np.sqrt(area * kind[:, 6] * chance[:, 3] / np.pi)
    look = np.column_stack([density, kind[:, 3:6]])
    return Cells(xy, cell_type, niche, pair, activity, area, aspect, orientation, look, radius)


def count_transcripts(
    rng: np.random.Generator, shared: np.random.SeedSequence, batch: np.ndarray, cells: Cells
) -> np.ndarray:
    """Negative-binomial counts ``(n, genes)``; ``batch`` ``(genes,)`` are the factors of the donor."""
    group = np.repeat(list(GENES), [len(names.split()) for names in GENES.values()])
    panel = np.random.default_rng(shared)  # the same on every slide
    strength = panel.gamma(6.0, 1 / 6, len(group))
    tuning = np.exp(panel.normal(0, 0.2, (len(NICHES), len(group))))

    def raised(groups: list[str] | tuple[str, ...], level: float) -> np.ndarray:
        return level * strength * (group == np.array(groups)[:, None])

    by_type = 0.06 * strength + raised(["housekeeping"], 1.2) + raised(TYPE_NAMES, 3.0)
    by_place = raised(NICHE_NAMES, 2.0) + np.repeat(raised([f"compartment_{c}" for c in COMPARTMENTS], 1.0), 2, axis=0)
    # The place affects immune cells less than other cells.
    susceptible = np.array([1.0, 1.0, 1.0, 1.0, 0.7, 0.4, 0.4, 0.8])[cells.cell_type, None]
    mean = by_type[cells.cell_type] * tuning[cells.niche] + susceptible * by_place[cells.niche]
    contact = cells.pair == PAIRS.index("contact")
    sends = cells.cell_type[contact] == MACROPHAGE
    mean[contact] += raised(["response", "ligand"], 3.0)[sends.astype(int)]
    mean *= batch * DEPTH / np.median(mean.sum(1))
    mean *= np.exp(0.15 * cells.activity + rng.normal(0, 0.25, len(mean)))[:, None]
    return rng.poisson(rng.gamma(DISPERSION, mean / DISPERSION)).astype(np.float32)


def cell_names(slide: int, cells: Cells) -> np.ndarray:
    """Names ``(n,)`` of the cells of one slide, as plain objects."""
    return np.array([f"slide{slide}-{i:06d}" for i in range(len(cells.xy))], dtype=object)


def _table(regions: list[str], slides: list[Cells], counts: list[np.ndarray]) -> AnnData:
    """Put the cells and counts of all slides into one table that annotates ``regions``."""
    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_matrix
    from spatialdata.models import TableModel

    def column(codes: np.ndarray, names: Iterable[str]) -> pd.Categorical:
        # Plain objects throughout, because older anndata cannot write the strings of pandas 3.
        return pd.Categorical.from_codes(codes, pd.Index(names, dtype=object))

    def joined(attribute: str) -> np.ndarray:
        return np.concatenate([getattr(cells, attribute) for cells in slides])

    niche = joined("niche")
    slide = np.repeat(np.arange(len(slides)), [len(cells.xy) for cells in slides])
    names = pd.Index(np.concatenate([cell_names(s, c) for s, c in enumerate(slides, 1)]), dtype=object)
    columns = {
        "cell_id": pd.Series(names, index=names, dtype=object),
        "region": column(slide, regions),
        "slide": column(slide, [f"slide{s + 1}" for s in range(len(slides))]),
        "donor": column(slide, [f"donor{s + 1}" for s in range(len(slides))]),
        "cell_type": column(joined("cell_type"), TYPE_NAMES),
        "compartment": column(niche // 2, COMPARTMENTS),
        "neighborhood": column(NEIGHBORHOOD_OF[niche], NEIGHBORHOODS),
        "niche": column(niche, NICHE_NAMES),
        "pair": column(joined("pair"), PAIRS),
        "cell_area": np.pi * joined("radius") ** 2,
        "nucleus_area": joined("nucleus_area"),
    }
    obs = pd.DataFrame(columns, index=names)
    var = pd.DataFrame(index=pd.Index(GENE_NAMES, dtype=object))
    table = AnnData(csr_matrix(np.concatenate(counts)), obs=obs, var=var, obsm={"spatial": joined("xy")})
    return TableModel.parse(table, regions if len(regions) > 1 else regions[0], "region", "cell_id")


def _elements(image: np.ndarray, affine: np.ndarray, cells: Cells, slide: int, pixel_size: float, space: str) -> tuple:
    """Wrap the image and the circles of the cells, both placed in ``space``."""
    from spatialdata.models import Image2DModel, ShapesModel
    from spatialdata.transformations import Affine, Scale

    to_space = Affine(np.diag([1 / pixel_size, 1 / pixel_size, 1]) @ affine, ("x", "y"), ("x", "y"))
    pyramid = {"c_coords": ["r", "g", "b"], "scale_factors": [2, 2, 2], "transformations": {space: to_space}}
    circles = {"geometry": 0, "radius": cells.radius, "index": cell_names(slide, cells)}
    circles["transformations"] = {space: Scale([1 / pixel_size] * 2, ("x", "y"))}
    # In memory: a lazy pyramid would be made anew, from full resolution, at each reading of a coarser level.
    levels = Image2DModel.parse(image, ("c", "y", "x"), **pyramid).persist(scheduler="threads")
    return levels, ShapesModel.parse(cells.xy, **circles)


def _check(n_cells: int, n_slides: int, seed: int, microns_per_pixel: float, angle: float, pixel_size: float) -> None:
    """Raise SetupError unless the arguments make a section."""
    for value, least, what in ((n_cells, 100, "n_cells"), (n_slides, 1, "n_slides"), (seed, 0, "seed")):
        require_whole(value, what, least)
    require_positive(microns_per_pixel, "microns_per_pixel")
    require_positive(pixel_size, "pixel_size")
    if not 0.1 <= microns_per_pixel <= 2:
        raise SetupError(f"microns_per_pixel={microns_per_pixel!r} must be between 0.1 and 2, to resolve nuclei.")
    if not is_number(angle):
        raise SetupError(f"angle={angle!r} must be a finite number of degrees.")


def simulate_tissue(
    n_cells: int = 5000,
    n_slides: int = 1,
    seed: int = 0,
    *,
    microns_per_pixel: float = 0.5,
    angle: float = 17.0,
    pixel_size: float = 0.2125,
) -> SpatialData:
    """Simulate Xenium sections with a registered H&E image, laid out as spatialdata-io does.

    Parameters
    ----------
    n_cells
        Number of cells of each slide, at least 100; 5,000 cells cover about 1 mm × 1 mm.
    n_slides
        Number of slides; each is a different donor, with a stain and an expression batch effect.
    seed
        Seed of images and counts; a slide does not depend on the number of slides after it.
    microns_per_pixel
        Size of an H&E pixel, µm, from 0.1 to 2.
    angle
        Rotation of the H&E image against the morphology image in degrees.
    pixel_size
        Size of a pixel of the morphology image, µm, which is the unit of the coordinate system.

    Returns
    -------
    ``images["he_image"]`` (multi-scale), ``shapes["cell_circles"]`` (µm) and ``tables["table"]`` (raw counts) in the
    coordinate system ``"global"``. If there are several slides, names of images and shapes start with ``"slide1_"``, …,
    the coordinate systems are ``"slide1"``, …, and one table annotates them all.

    ``table.obs`` holds the truth: ``cell_type``, ``compartment`` (regions above 128 µm), ``neighborhood`` (patches below
    64 µm) and ``niche`` (both together). ``pair`` is ``"contact"`` for a macrophage and a T cell that touch, ``"single"``
    for other cells of these types, and ``"none"`` for other types.

    Raises
    ------
    SetupError
        An argument is out of range.

    See Also
    --------
    sigmma_sc.SIGMMA : Set up the section and train on it.

    Examples
    --------
    >>> tissue = sg.datasets.simulate_tissue(n_cells=500, seed=1)
    >>> tissue["table"].shape  # cells and genes
    (500, 120)
    >>> tissue["table"].obs["compartment"].cat.categories.tolist()
    ['tumor', 'stroma', 'exocrine']
    """
    from spatialdata import SpatialData

    _check(n_cells, n_slides, seed, microns_per_pixel, angle, pixel_size)
    shared, *seeds = np.random.SeedSequence(seed).spawn(1 + n_slides)
    images = {}
    shapes = {}
    slides = []
    counts = []
    for slide, slide_seed in enumerate(seeds, start=1):
        for_tissue, for_counts, for_donor, for_image = slide_seed.spawn(4)
        prefix, space = (f"slide{slide}_", f"slide{slide}") if n_slides > 1 else ("", "global")
        tissue = np.random.default_rng(for_tissue)
        donor = np.random.default_rng(for_donor)
        layout = Layout.draw(tissue, 128 * np.sqrt(n_cells / PER_TILE))
        cells = grow_cells(tissue, layout, n_cells)
        stains = STAINS * np.exp(donor.normal(0, 0.14, (2, 1)) + donor.normal(0, 0.07, (2, 3)))
        batch = np.exp(donor.normal(0, 0.15, len(GENE_NAMES)))
        affine, size = image_frame(layout.side, microns_per_pixel, angle)
        image = render_he(for_image, layout, cells, affine, size, stains)
        parts = _elements(image, affine, cells, slide, pixel_size, space)
        images[f"{prefix}he_image"], shapes[f"{prefix}cell_circles"] = parts
        slides.append(cells)
        counts.append(count_transcripts(np.random.default_rng(for_counts), shared, batch, cells))
    return SpatialData(images=images, shapes=shapes, tables={"table": _table(list(shapes), slides, counts)})
