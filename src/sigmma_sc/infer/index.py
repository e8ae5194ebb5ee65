"""Tiles of many slides to search in: both embeddings of each, in a folder of JSON and safetensors."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pandas as pd
import torch

from sigmma_sc import _keys
from sigmma_sc._checks import require_path
from sigmma_sc._files import Saved
from sigmma_sc._schema import require_schema
from sigmma_sc.errors import SetupError, UnlikeWarning
from sigmma_sc.features.data import MIN_TISSUE
from sigmma_sc.infer.alike import Likeness
from sigmma_sc.infer.reference import PREFIX, Reference, reference_tensors, restore_reference
from sigmma_sc.infer.tiles import label_counts, tile_obs
from sigmma_sc.infer.withhold import with_likeness
from sigmma_sc.tissue.setup import obs_of_slide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sigmma_sc.infer.embed import Embedder, SlideEmbedding
    from sigmma_sc.infer.scales import Scales
    from sigmma_sc.nn.towers import TwoTowers
    from sigmma_sc.tissue.frame import Slide

FORMAT = 1
FOLDER = Saved("index.json", "tiles.safetensors", FORMAT, "index", "model.build_index()")
TOWERS = ("image", "transcriptome")


class IndexJson(TypedDict):
    """The JSON of an index."""

    format: int
    checksum: str
    model: str
    tile_size: float
    temperatures: dict[str, float]
    columns: dict[str, list[str] | None]
    labels: dict[str, list[str]]
    genes: list[str]
    library: float


@dataclass(frozen=True, repr=False)
class TileIndex:
    """Tiles of one or many slides to search in, made by :meth:`sigmma_sc.SIGMMA.build_index`.

    An index needs neither the slides nor the model any more. It holds the model's training and validation tiles, by which
    genes are translated to embeddings, and similarities to probabilities.

    Parameters
    ----------
    obs
        Tiles by name: slide, centre in µm from the upper left corner of the image (``x``, ``y``), number of cells, share of
        stained tissue, split, and likeness to the training tissue (NaN where it cannot be told).
    embeddings
        Embeddings ``(n_tiles, d)`` by tower, ``"image"`` or ``"transcriptome"``, and scale. Rows of tiles without cells are
        NaN in the transcriptome.
    shares
        By column of labels, the share ``(n_tiles, n_labels)`` of each label in the cells of each tile. Rows of tiles without
        labelled cells are NaN.
    reference
        Training and validation tiles of the model.
    temperatures
        Temperature of the objective by scale.
    tile_size
        Side of a tile in µm.
    model
        Fingerprint of the weights of the model.

    See Also
    --------
    sigmma_sc.tl.search : Search in it.

    Examples
    --------
    >>> index = model.build_index("index", overwrite=True)
    >>> sg.TileIndex.read("index")  # tiles of glass are left out
    TileIndex(79 tiles of 1 slide, 72 with cells; micro, meso, macro)
    """

    obs: pd.DataFrame
    embeddings: dict[str, dict[str, NDArray[np.float32]]]
    shares: dict[str, pd.DataFrame]
    reference: Reference
    temperatures: dict[str, float]
    tile_size: float
    model: str

    def __repr__(self) -> str:
        n, n_cells = len(self.obs), int(self.has_cells.sum())
        n_slides = self.obs["slide"].nunique()
        labels = f"; labels: {', '.join(self.shares)}" if self.shares else ""
        return (
            f"TileIndex({n:,} tiles of {n_slides:,} slide{'s' * (n_slides != 1)}, {n_cells:,} with cells; "
            f"{', '.join(self.scales)}{labels})"
        )

    @property
    def scales(self) -> tuple[str, ...]:
        """Names of the scales, fine to coarse.

        >>> model.build_index("index", overwrite=True).scales
        ('micro', 'meso', 'macro')
        """
        return tuple(self.temperatures)

    @property
    def genes(self) -> list[str]:
        """Genes that can be searched for.

        >>> "EPCAM" in model.build_index("index", overwrite=True).genes
        True
        """
        return self.reference.genes

    @property
    def has_cells(self) -> NDArray[np.bool_]:
        """Which tiles have an embedding of their cells, ``(n_tiles,)``."""
        return np.isfinite(next(iter(self.embeddings["transcriptome"].values()))[:, 0])

    @classmethod
    def read(cls, path: str | Path) -> TileIndex:
        """Read an index that :meth:`sigmma_sc.SIGMMA.build_index` wrote.

        Parameters
        ----------
        path
            Folder of the index.

        Returns
        -------
        The index, in memory.

        Raises
        ------
        MissingKeyError
            There is no index.
        SetupError
            It is damaged, or of another version.

        Examples
        --------
        >>> model.build_index("index", overwrite=True)
        TileIndex(79 tiles of 1 slide, 72 with cells; micro, meso, macro)
        >>> sg.TileIndex.read("index").obs["x"].iloc[:2].tolist()
        [832.0, 960.0]
        """
        require_path(path, "path")
        described, tensors = FOLDER.read(Path(path).expanduser())
        where = f"{path}: {FOLDER.json}"
        require_schema(described, IndexJson, where, "This is not what model.build_index() writes. Build it again.")
        try:
            return _restored(described, tensors)
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            raise SetupError(
                f"The index in {path} is damaged, or was not written by model.build_index(): {type(error).__name__} {error}."
            ) from error

    def write(self, path: Path) -> None:
        """Write to a folder that is free or may be replaced. A crash leaves the old index or the new one."""
        columns: dict[str, list[str] | None] = {}
        arrays: dict[str, NDArray] = {
            "number": np.array([int(name.rpartition("_")[2]) for name in self.obs.index], np.int64)
        }
        for name in map(str, self.obs.columns):
            column = self.obs[name]
            categorical = isinstance(column.dtype, pd.CategoricalDtype)
            columns[name] = [str(category) for category in column.cat.categories] if categorical else None
            arrays[f"obs.{name}"] = column.cat.codes.to_numpy(np.int64) if categorical else column.to_numpy()
        for tower, scales in self.embeddings.items():
            for scale, values in scales.items():
                arrays[f"{tower}.{scale}"] = values
        for label, share in self.shares.items():
            arrays[f"share.{label}"] = share.to_numpy(np.float32)
        described = {
            "model": self.model,
            "tile_size": float(self.tile_size),
            "temperatures": self.temperatures,
            "columns": columns,
            "labels": {label: list(share.columns) for label, share in self.shares.items()},
            "genes": self.reference.genes,
            "library": float(self.reference.library),
        }
        tensors = {name: torch.from_numpy(np.array(values, order="C")) for name, values in arrays.items()}
        FOLDER.write(path, described, tensors | reference_tensors(self.reference))


def _restored(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> TileIndex:
    arrays = {name: values.numpy() for name, values in tensors.items() if not name.startswith(PREFIX)}
    scales = tuple(described["temperatures"])
    obs = {}
    for name, categories in described["columns"].items():
        values = arrays[f"obs.{name}"]
        obs[name] = values if categories is None else pd.Categorical.from_codes(values, categories)
    embeddings: dict[str, Scales] = {}
    for tower in TOWERS:
        embeddings[tower] = {scale: arrays[f"{tower}.{scale}"] for scale in scales}
    names = [f"{slide}_{number}" for slide, number in zip(obs["slide"], arrays["number"], strict=True)]
    index = TileIndex(
        obs=pd.DataFrame(obs, index=names),
        embeddings=embeddings,
        shares={
            label: pd.DataFrame(arrays[f"share.{label}"], index=names, columns=classes)
            for label, classes in described["labels"].items()
        },
        reference=restore_reference(described, tensors, scales),
        temperatures=described["temperatures"],
        tile_size=described["tile_size"],
        model=described["model"],
    )
    for tower, by_scale in index.embeddings.items():
        for scale, matrix in by_scale.items():
            if matrix.ndim != 2 or len(matrix) != len(names):
                raise ValueError(f"{tower}.{scale} has shape {matrix.shape} for {len(names)} tiles")
    return index


def build(
    embedder: Embedder, slides: Sequence[Slide], reference: Reference, labels: Sequence[str], tile_size: float
) -> TileIndex:
    """Index of the tiles of slides that hold tissue. One slide is embedded after another, and only its tiles are kept."""
    towers = embedder.towers
    likeness = _likeness(reference)
    frames = []
    parts: dict[tuple[str, str], list[NDArray[np.float32]]] = {key: [] for key in product(TOWERS, towers.aligned)}
    shares: dict[str, list[pd.DataFrame]] = {label: [] for label in labels}
    for slide in slides:
        (e,) = embedder.slides([slide])
        frame = _frame(embedder, e, likeness)
        which = np.flatnonzero((frame["tissue"] >= MIN_TISSUE).to_numpy())
        frames.append(frame.iloc[which])
        empty = np.full((len(e.tiles), embedder.data.config.n_latent), np.nan, np.float32)
        enough = (e.tiles.n_cells >= embedder.data.config.min_cells)[:, None]
        for scale in towers.aligned:
            parts["image", scale].append(e.image[scale][which])
            cells = empty if slide.region is None else np.where(enough, e.transcriptome[scale], empty)
            parts["transcriptome", scale].append(cells[which])
        for label in labels:
            shares[label].append(_shares(slide, label).iloc[which])
    embeddings: dict[str, Scales] = {tower: {} for tower in TOWERS}
    for (tower, scale), arrays in parts.items():
        embeddings[tower][scale] = np.concatenate(arrays)
    obs = pd.concat(frames).astype({"slide": "category", "split": "category"})
    return TileIndex(
        obs=obs,
        embeddings=embeddings,
        shares={label: _joined(shares[label]).set_axis(obs.index) for label in shares},
        reference=reference,
        temperatures={scale: float(t) for scale, t in towers.temperatures.items()},
        tile_size=tile_size,
        model=fingerprint(towers),
    )


def fingerprint(towers: TwoTowers) -> str:
    """SHA-256 of what was trained: embeddings of towers with another one cannot be compared."""
    digest = hashlib.sha256()
    for name, value in sorted(towers.trained_state().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _likeness(reference: Reference) -> Likeness | None:
    try:
        return Likeness.of(reference)
    except SetupError as error:
        warnings.warn(f"Searches will withhold no tile. {error}", UnlikeWarning, stacklevel=4)
        return None


def _frame(embedder: Embedder, e: SlideEmbedding, likeness: Likeness | None) -> pd.DataFrame:
    """What is known of the tiles of a slide, their centres in µm."""
    frame = tile_obs(embedder.data, e.slide)
    new = not embedder.data.roles.has_roles(e.slide)
    if likeness is None:
        frame = frame.assign(**{_keys.ALIKE: np.nan})
    else:
        frame = with_likeness(frame, likeness, embedder, e if new else None).drop(columns=_keys.LEAST_ALIKE)
    centres = (e.tiles.origins + e.tiles.side / 2) * e.slide.microns_per_pixel
    return frame.assign(x=centres[:, 0], y=centres[:, 1]).astype({"slide": object, "split": object})


def _shares(slide: Slide, label: str) -> pd.DataFrame:
    """Share of each label in the labelled cells of each tile; no labels on a slide of H&E alone."""
    if slide.region is None:
        return pd.DataFrame(index=range(len(slide.tiles)))
    column = obs_of_slide(slide, label)
    counts = label_counts(slide.tiles, column.cat.codes.to_numpy(), len(column.cat.categories))
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    return pd.DataFrame(share, columns=[str(name) for name in column.cat.categories])


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Shares of all slides: 0 for a label that another slide has, NaN for tiles without labelled cells."""
    known = pd.concat([part.notna().any(axis=1) for part in parts], ignore_index=True)
    joined = pd.concat(parts, ignore_index=True).fillna(0)
    joined[~known] = np.nan
    return joined
