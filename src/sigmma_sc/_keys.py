"""Names of all keys that sigmma-sc writes into a user's object."""

SETUP = "sigmma"
"""``sdata.attrs`` key of the stored setup."""

REGISTRATION = "sigmma_registration"
"""``sdata.attrs`` key of what the registration of each slide found."""


def unregistered(coordinate_system: str) -> str:
    """Coordinate system in which a registered image keeps its transformation from before."""
    return f"{coordinate_system}_unregistered"


UNS = "sigmma"
"""``adata.uns`` key of the parameters that made the embeddings."""

WRITTEN = "written_by"
"""Key in ``uns["sigmma"]`` of the fingerprint of the parameters of the model that wrote the embeddings."""

OBSM = "obsm"
"""Key in ``uns["sigmma"]`` of the names of the embeddings that a model wrote into ``obsm``."""

POSITIONS = "spatial"
"""``adata.obsm`` key of the positions of cells, as of the scverse."""

MICRONS = "microns_per_unit"
"""Key in ``uns["sigmma"]`` of the length in µm of a unit of ``obsm["spatial"]``."""

COVERED = "sigmma_covered"
"""``adata.obs`` column: whether the cell is under the image and so has an embedding."""

ALIKE = "sigmma_alike"
LEAST_ALIKE = "sigmma_least_alike"
"""``obs`` columns of tiles: how alike a tile is to the training tissue, from 0 to 1, and in what it is least alike."""

TILES = "sigmma_tiles"
"""Name of the tile table in ``sdata.tables``."""


def tile_squares(region: str) -> str:
    """Name in ``sdata.shapes`` of a slide's tile squares, unlike that of the table: names of elements are unique."""
    return f"{TILES}_{region}"


UNLIKE_ANY = "unlike any"
"""Niche of a cell that is far from all known niches."""


def prototypes(key: str) -> str:
    """Key in ``adata.uns["sigmma"]`` of the prototypes of the niches in columns that start with ``key``."""
    return f"{key}_prototypes"


REGION = "region"
INSTANCE = "tile_id"

SCALES = ("micro", "meso", "macro")
"""Names of the three default scales, fine to coarse (paper, section 5.1)."""


def scale_names(grids: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the scales of ``grids``: micro, meso, macro for three, ``grid<b>`` otherwise."""
    return SCALES if len(grids) == len(SCALES) else tuple(f"grid{b}" for b in grids)


def obsm_cells(scale: str) -> str:
    """``adata.obsm`` key of the cell embeddings of one scale."""
    return f"X_sigmma_{scale}"
