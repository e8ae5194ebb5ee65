"""What the niches of a tissue are, so that other cells can be given the same ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc._checks import is_number, require_key, require_whole
from sigmma_sc._files import fresh_file, writing
from sigmma_sc.config import LARGEST_SEED
from sigmma_sc.errors import ExistsError, MissingKeyError, SetupError
from sigmma_sc.niches.standardise import standardise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

N_CENTRES = 50
"""Most centres of a niche: 20 agree less with joint clustering, 100 no better (page *Cohorts*)."""

CELLS_PER_CENTRE = 20
"""Fewest cells of a niche for each of its centres, on average."""

N_STEPS = 25
"""Steps of k-means at most. Until it ended, on pancreas, it took twice as long, and held-out cells were assigned no better."""

MOST_CELLS = 20_000
"""Most cells of a niche that its centres are computed from."""

CHUNK = 8192
"""Number of cells that are compared with all centres at once."""

METADATA = "sigmma_sc"


@dataclass(frozen=True, eq=False)
class ScalePrototypes:
    """Niches of one scale."""

    names: tuple[str, ...]  # niches in the order of the categories
    centres: NDArray[np.float32]  # centres of all niches in the embedding, (n_centres, d)
    niche: NDArray[np.int64]  # position in names of the niche of each centre, (n_centres,), ascending
    limits: NDArray[np.float64]  # distance from the nearest centre beyond which a cell is unlike the niche, (n_names,)
    key: str = ""  # of obsm with the embedding; that of the model's at this scale where none is named

    def distances(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance of each cell to the nearest centre of each niche, ``(n, n_names)``; inf for a niche without centres."""
        from scipy.spatial.distance import cdist

        out = np.full((len(x), len(self.names)), np.inf)
        for start in range(0, len(x), CHUNK):
            some = slice(start, start + CHUNK)
            every = cdist(x[some], self.centres.astype(np.float64))
            for k in np.unique(self.niche):
                out[some, k] = every[:, self.niche == k].min(axis=1)
        return out


class NichePrototypes:
    """Niches as centres in the embedding: enough to give other cells of the same model the same niches.

    Each niche of a scale is described by up to 50 centres, found by k-means among its cells. A cell gets the niche of the
    nearest centre. It is ``"unlike any"`` if it is farther from it than nearly all cells of that niche were. Prototypes of
    three scales of ten niches at width 128 take 0.8 MB.

    Prototypes come from :func:`sigmma_sc.tl.niches` or :meth:`fit`. Set as ``model.niches``, they are saved with the model.

    Parameters
    ----------
    scales
        Centres and limits by name of the scale.
    by_sample
        Whether the embedding was standardised within each sample.
    quantile
        Share of the cells of a niche that are within its limit.

    See Also
    --------
    sigmma_sc.tl.assign_niches : Give the niches to cells.

    Examples
    --------
    >>> x = adata.obsm["X_sigmma_meso"]
    >>> prototypes = sg.NichePrototypes.fit({"meso": x}, {"meso": adata.obs["niche"]})
    >>> prototypes
    NichePrototypes(meso: 6 niches, width 64)
    >>> niche, score = prototypes.assign("meso", x)
    >>> niche.categories[-1]
    'unlike any'
    >>> bool((niche.astype(str) == adata.obs["niche"].astype(str)).mean() > 0.5)
    True
    """

    def __init__(self, scales: Mapping[str, ScalePrototypes], by_sample: bool = False, quantile: float = 0.99):
        self.scales = dict(scales)
        self.by_sample = bool(by_sample)
        self.quantile = float(quantile)

    def __repr__(self) -> str:
        told = [f"{s}: {len(p.names)} niches, width {p.centres.shape[1]}" for s, p in self.scales.items()]
        return f"NichePrototypes({'; '.join(told)}{'; by sample' * self.by_sample})"

    @classmethod
    def fit(
        cls,
        embeddings: Mapping[str, ArrayLike],
        labels: Mapping[str, ArrayLike],
        *,
        by_sample: bool = False,
        quantile: float = 0.99,
        seed: int = 0,
    ) -> NichePrototypes:
        """Find the centres and limits of niches.

        Parameters
        ----------
        embeddings
            Embedding of the cells by scale, ``(n, d)``. Cells with NaN are left out.
        labels
            Niche of each cell by scale, ``(n,)``; the categories of a categorical are kept. Cells without one are left out.
        by_sample
            Whether the embeddings are standardised within each sample, so that those of other cells have to be.
        quantile
            Share of the cells of a niche that are within its limit, above 0 and at most 1.
        seed
            Seed of k-means.

        Returns
        -------
        The prototypes of these scales.

        Raises
        ------
        SetupError
            Shapes do not match, no cell of a scale has both an embedding and a niche, or an argument is out of range.
        """
        if not is_number(quantile) or not 0 < quantile <= 1:
            raise SetupError(f"quantile={quantile!r} must be above 0 and at most 1.")
        require_whole(seed, "seed", 0, most=LARGEST_SEED)
        for what, given in (("embeddings", embeddings), ("labels", labels)):
            if not isinstance(given, Mapping) or not given:
                raise SetupError(f"{what}={given!r} must be a dict by scale, such as {{'meso': …}}.")
        found = {}
        for scale, matrix in embeddings.items():
            require_key(scale, labels, "labels of scale")
            x = np.asarray(matrix, np.float64)
            niche = pd.Categorical(labels[scale])
            if x.ndim != 2 or len(niche) != len(x):
                raise SetupError(
                    f"Scale {scale!r}: embedding {x.shape} and {len(niche)} labels must name the same cells."
                )
            names = tuple(str(name) for name in niche.categories)
            if _keys.UNLIKE_ANY in names or len(set(names)) < len(names):
                raise SetupError(
                    f"Niches of scale {scale!r} are named {', '.join(map(repr, names))}. Give each a name of its own, other than "
                    f"{_keys.UNLIKE_ANY!r}."
                )
            known = np.isfinite(x).all(axis=1) & (niche.codes >= 0)
            if not known.any():
                raise SetupError(f"No cell of scale {scale!r} has both an embedding and a niche.")
            found[scale] = _fit(x[known], niche.codes[known], names, quantile, seed)
        return cls(found, by_sample, quantile)

    def assign(
        self, scale: str, x: ArrayLike, samples: ArrayLike | None = None
    ) -> tuple[pd.Categorical, NDArray[np.float64]]:
        """Niche of each cell, and how clearly it is the nearest.

        Parameters
        ----------
        scale
            Name of the scale.
        x
            Embedding of the cells at this scale, ``(n, d)``.
        samples
            Sample of each cell, ``(n,)``, where the prototypes are of embeddings standardised by sample.

        Returns
        -------
        Niche of each cell, with ``"unlike any"`` as the last category; missing for cells with NaN. And the score
        1 - (distance to this niche) / (distance to the next one), ``(n,)``: 0 halfway between two niches, 1 on a centre. It
        is NaN where the niche is missing or ``"unlike any"``, or where there is one niche alone.

        Raises
        ------
        MissingKeyError
            There are no prototypes of this scale.
        SetupError
            The embedding has another width, or samples are given or lacking against ``by_sample``.
        """
        require_key(scale, self.scales, "scale")
        own = self.scales[scale]
        if x is None:
            raise SetupError("x=None must be the embedding of the cells, (n, d).")
        z = np.asarray(x, np.float64)
        if z.ndim != 2 or z.shape[1] != own.centres.shape[1]:
            raise SetupError(
                f"The embedding of scale {scale!r} has shape {z.shape}, the prototypes have {own.centres.shape[1]} columns. Embed the "
                "cells with the model that the niches are of."
            )
        self.require_samples(samples is not None)
        if samples is not None:
            z = standardise(x, samples)
        finite = np.isfinite(z).all(axis=1)
        code = np.full(len(z), -1)
        score = np.full(len(z), np.nan)
        if finite.any():
            distance = own.distances(z[finite])
            code[finite], score[finite] = _nearest(distance, own.limits)
        return pd.Categorical.from_codes(code, [*own.names, _keys.UNLIKE_ANY]), score

    def require_samples(self, given: bool) -> None:
        """Raise :class:`SetupError` unless samples are given just where the prototypes need them."""
        if self.by_sample and not given:
            raise SetupError("The niches are of embeddings standardised by sample. Pass the samples: sample_key=….")
        if given and not self.by_sample:
            raise SetupError("The niches are of embeddings that were not standardised by sample. Leave sample_key out.")

    def to_dict(self) -> dict[str, Any]:
        """Values and arrays that AnnData writes to h5ad and zarr."""
        scales = {}
        for name, p in self.scales.items():
            arrays = {"centres": p.centres, "niche": p.niche, "limits": p.limits}
            scales[name] = {"names": list(p.names), "key": p.key, **arrays}
        # Groups of a file come back in alphabetical order.
        order = list(self.scales)
        return {"by_sample": self.by_sample, "quantile": self.quantile, "order": order, "scales": scales}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> NichePrototypes:
        """Prototypes from the result of :meth:`to_dict`, also after a round trip through a file."""
        scales = {}
        for name in map(str, stored["order"]):
            part = stored["scales"][name]
            scales[name] = ScalePrototypes(
                tuple(str(niche) for niche in part["names"]),
                np.asarray(part["centres"], np.float32),
                np.asarray(part["niche"], np.int64),
                np.asarray(part["limits"], np.float64),
                str(part.get("key", "")),  # files of before have none
            )
        return cls(scales, bool(stored["by_sample"]), float(stored["quantile"]))

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write one safetensors file, completely or not at all; what are no arrays is JSON in its header.

        Parameters
        ----------
        path
            File to write.
        overwrite
            Replace a file.

        Raises
        ------
        ExistsError
            The file exists.
        WriteError
            It cannot be written.
        """
        from safetensors.numpy import save_file

        path = Path(path).expanduser()
        if path.exists() and not overwrite:
            raise ExistsError(f"{path} exists. Pass overwrite=True to replace it.")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        described = self.to_dict()
        tensors = {}
        for scale, part in described["scales"].items():
            for name in ("centres", "niche", "limits"):
                # Others would be written as they lie in memory, which is another array when it is read.
                tensors[f"{scale}.{name}"] = np.ascontiguousarray(part.pop(name))
        with fresh_file(path) as file:
            save_file(tensors, file, metadata={METADATA: json.dumps(described)})

    @classmethod
    def load(cls, path: str | Path) -> NichePrototypes:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path
            File to read; it cannot execute anything.

        Returns
        -------
        The prototypes.

        Raises
        ------
        MissingKeyError
            There is no such file.
        SetupError
            The file was not written by :meth:`save`.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path).expanduser()
        if not path.is_file():
            raise MissingKeyError(f"{path} does not exist. Give the file of NichePrototypes.save().")
        try:
            with safe_open(path, "np") as file:
                described = json.loads((file.metadata() or {})[METADATA])
                for scale, part in described["scales"].items():
                    part |= {name: file.get_tensor(f"{scale}.{name}") for name in ("centres", "niche", "limits")}
            return cls.from_dict(described)
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise SetupError(f"{path} was not written by NichePrototypes.save(), or is damaged: {error}.") from error


def fit_prototypes(
    adata: AnnData,
    embeddings: Mapping[str, NDArray],
    key: str = "sigmma_niche",
    keys: Mapping[str, str] | None = None,
    by_sample: bool = False,
    quantile: float = 0.99,
    seed: int = 0,
) -> NichePrototypes:
    """Prototypes of the niches in ``obs[f"{key}_{scale}"]``, also stored in ``uns["sigmma"]``.

    ``embeddings`` ``(n, d)`` of each scale are what was clustered, and ``keys`` their keys of ``obsm``; ``by_sample`` if each
    sample was standardised before.
    """
    labels = {scale: adata.obs[f"{key}_{scale}"] for scale in embeddings}
    found = NichePrototypes.fit(embeddings, labels, by_sample=by_sample, quantile=quantile, seed=seed)
    for scale, own in found.scales.items():
        found.scales[scale] = replace(own, key=(keys or {}).get(scale, ""))
    stored = adata.uns.setdefault(_keys.UNS, {})
    kept = _others(stored.get(_keys.prototypes(key)), found)
    stored[_keys.prototypes(key)] = NichePrototypes(kept | found.scales, by_sample, quantile).to_dict()
    return found


def _others(stored: Mapping[str, Any] | None, found: NichePrototypes) -> dict[str, ScalePrototypes]:
    """Prototypes of other scales that an earlier call stored, where they are of embeddings of the same kind."""
    if stored is None:
        return {}
    before = NichePrototypes.from_dict(stored)
    if (before.by_sample, before.quantile) != (found.by_sample, found.quantile):
        return {}
    return {scale: own for scale, own in before.scales.items() if scale not in found.scales}


def require_prototypes(prototypes: object, scales: Sequence[str], width: int) -> None:
    """Raise :class:`SetupError` unless these are prototypes of embeddings of such scales and width."""
    if not isinstance(prototypes, NichePrototypes):
        raise SetupError(f"niches is a {type(prototypes).__name__}. Set the result of sg.tl.niches, or None.")
    for scale, own in prototypes.scales.items():
        if scale not in scales or own.centres.shape[1] != width:
            raise SetupError(
                f"The niches are of scale {scale!r} and width {own.centres.shape[1]}, the model embeds {', '.join(map(repr, scales))} "
                f"in width {width}. Find them on the embeddings of this model."
            )


def _fit(
    x: NDArray[np.float64], code: NDArray[np.int8], names: tuple[str, ...], quantile: float, seed: int
) -> ScalePrototypes:
    from scipy.spatial.distance import cdist
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    centres = []
    limits = np.full(len(names), np.nan)
    for k in range(len(names)):
        cells = x[code == k]
        if not len(cells):
            continue
        if len(cells) > MOST_CELLS:
            cells = cells[np.sort(np.random.default_rng(seed).choice(len(cells), MOST_CELLS, replace=False))]
        n_centres = min(N_CENTRES, max(1, len(cells) // CELLS_PER_CENTRE), len(np.unique(cells, axis=0)))
        # Threads would add up in the order in which they end, and the last bits would vary.
        with threadpool_limits(1):
            fitted = KMeans(n_centres, n_init=1, max_iter=N_STEPS, random_state=seed).fit(cells)
        found = fitted.cluster_centers_.astype(np.float32)
        limits[k] = np.quantile(cdist(cells, found.astype(np.float64)).min(axis=1), quantile)
        centres.append((k, found))
    niche = np.concatenate([np.full(len(found), k) for k, found in centres])
    return ScalePrototypes(names, np.concatenate([found for _, found in centres]), niche.astype(np.int64), limits)


def _nearest(
    distance: NDArray[np.float64], limits: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Nearest niche of each row, one beyond the last where it is beyond the limit, and the score."""
    row = np.arange(len(distance))
    code = distance.argmin(axis=1)
    nearest = distance[row, code]
    others = distance.copy()
    others[row, code] = np.inf
    following = others.min(axis=1)
    score = np.full(len(distance), np.nan)
    # Two niches may share a centre: a cell on it belongs to neither more than to the other.
    score[following == 0] = 0
    some = np.isfinite(following) & (following > 0)
    score[some] = 1 - nearest[some] / following[some]
    unlike = nearest > limits[code]
    score[unlike] = np.nan
    code[unlike] = distance.shape[1]
    return code, score
