"""Labels of cells for tiles of H&E alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc._checks import (
    require_choice,
    require_interval,
    require_key,
    require_model,
    require_stored_name,
    require_whole,
    require_withhold,
)
from sigmma_sc.errors import SetupError, UnlikeWarning
from sigmma_sc.infer.interval import calibration_blocks, half_widths, require_level
from sigmma_sc.infer.scales import at_scale, joined
from sigmma_sc.infer.tiles import label_counts
from sigmma_sc.infer.withhold import sentence, unlike, warn_unlike
from sigmma_sc.tissue.setup import objects_of, obs_of_slide

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import NDArray

    from sigmma_sc.infer.scales import Scales
    from sigmma_sc.model import SIGMMA
    from sigmma_sc.tissue.setup import Tissue


@dataclass(frozen=True)
class Known:
    """Labels of the tiles that the model was trained and validated on."""

    classes: list[str]  # labels in order, n_labels
    keys: Scales  # transcriptome embeddings of the training tiles by scale, (n, d)
    share: NDArray[np.float32]  # share of each label in the cells of each training tile, (n, n_labels)
    validation: Scales  # image embeddings of the validation tiles by scale, (m, d)
    validation_share: NDArray[np.float32]  # share of each label in the cells of each validation tile, (m, n_labels)
    # Corner of each validation tile in tile sides, (m, 2), and the number of its slide, (m,).
    position: NDArray[np.float32]
    slide: NDArray[np.int64]


def map_to_image(
    model: SIGMMA,
    sdata: Tissue,
    labels: str = "sigmma_niche_meso",
    scale: str = "all",
    n_neighbors: int = 50,
    key_added: str | None = None,
    interval: float | None = None,
    withhold: float | None = 0.01,
) -> None:
    """Predict the share of each label of cells in tiles of an image.

    The prediction is by retrieval, as in :meth:`sigmma_sc.SIGMMA.predict_expression`. The image embedding of a tile is
    compared with the transcriptome embeddings of training tiles. The share of each label is the mean over the nearest ones,
    weighted by softmax(cosine similarity / temperature).

    Parameters
    ----------
    model
        Trained :class:`sigmma_sc.SIGMMA`, loaded on the object it was trained on, whose table holds the labels.
    sdata
        Object, or objects by name, with the tiles of ``model.write_embeddings(sdata)``. Its cells are not used.
    labels
        Column of ``obs`` of the cells: niches, cell types, a pathologist's regions.
    scale
        Name of the scale whose embedding is used, or ``"all"``.
    n_neighbors
        Number of training tiles that are averaged; all of them if there are fewer.
    key_added
        Key of the result in ``sdata.tables["sigmma_tiles"]``, ``labels`` by default; see Notes.
    interval
        Share of new tiles whose share of a label is within its interval, such as 0.9; ``None`` for no intervals. See
        :meth:`sigmma_sc.SIGMMA.predict_expression`.
    withhold
        Tiles with ``obs["sigmma_alike"]`` of at most this level are withheld, ``None`` keeps all. The column is that of
        ``model.write_embeddings(sdata)``; tiles of slides trained on are not judged.

    Raises
    ------
    MissingKeyError
        There are no tiles in ``sdata``, or no such column.
    SetupError
        No training tile has a labelled cell, the embeddings of the tiles have another width, or the column exists already.
        Or the interval needs more blocks of validation tiles.

    Warns
    -----
    UnlikeWarning
        Some tiles are withheld, or it cannot be told which tiles of a new slide are unlike those trained on.

    See Also
    --------
    sigmma_sc.tl.transfer_labels : Labels for cells of another slide.

    Notes
    -----
    ``obsm[f"{key_added}_share"]`` is a frame of tiles × labels with rows that add up to one. Names of columns cannot hold a
    slash in a store: the column of ``"T/NK cell"`` is ``"T_NK cell"``. ``obs[key_added]`` is the label of the largest share,
    as it is. Ignore the labels of tiles of glass, which have a low ``obs["tissue"]``.

    ``uns[key_added]`` holds the accuracy on the ``n_val`` validation tiles of the model; NaN if there are none. ``accuracy``
    is the share of tiles with a correct commonest label, ``accuracy_of_commonest`` that of always the commonest training
    label. Both hold for tissue and stain like those of the training slides.

    Withheld tiles have NaN shares and no label; ``uns[key_added]["unlike"]`` is the sentence that sums them up.
    ``obsm[f"{key_added}_lower"]`` and ``obsm[f"{key_added}_upper"]`` hold the intervals.

    Examples
    --------
    >>> sg.tl.map_to_image(model, sdata, labels="niche")
    >>> tiles = sdata["sigmma_tiles"]
    >>> tiles.obsm["niche_share"].shape  # tiles and labels
    (121, 6)
    >>> tiles.uns["niche"]["n_val"]
    5
    """
    from sigmma_sc.infer.predict import retrieve, temperature_of  # niches need no PyTorch

    require_model(model)
    require_choice(scale, (*model.embedder.towers.aligned, "all"), "scale")
    require_whole(n_neighbors, "n_neighbors")
    require_interval(interval)
    require_withhold(withhold)
    name = labels if key_added is None else key_added
    require_stored_name(name, "labels" if key_added is None else "key_added", "Pass another key_added=…")
    tables = []
    for one in objects_of(sdata).values():
        require_key(_keys.TILES, one.tables, "table", "Call model.write_embeddings(sdata) first.")
        tables.append(one.tables[_keys.TILES])
        _require_fit(model, tables[-1], name)
    known = _known(model, labels)
    temperature = temperature_of(model.embedder.towers, scale)

    def shares(image: Scales) -> NDArray[np.float32]:
        keys = at_scale(known.keys, scale)
        return retrieve(at_scale(image, scale), keys, known.share, int(n_neighbors), temperature)

    told = {"labels": labels, "scale": scale, "n_neighbors": int(n_neighbors)}
    half = None
    if interval is not None:
        blocks = calibration_blocks(known.position, known.slide)
        require_level(interval, len(np.unique(blocks)))
        half = half_widths((known.validation_share - shares(known.validation)).astype(np.float64), blocks, interval)
        told |= {"interval": interval, "n_interval_blocks": len(np.unique(blocks))}
    told |= _accuracy(shares, known)
    for tiles in tables:
        found = shares({s: np.asarray(tiles.obsm[f"image_{s}"]) for s in known.keys})
        _write(tiles, name, known.classes, found, half, _withheld(tiles, withhold), told)


def _withheld(tiles: AnnData, level: float | None) -> NDArray[np.bool_]:
    """Which tiles are withheld; warn where tiles of new slides were not judged."""
    if level is None:
        return np.zeros(len(tiles), bool)
    if _keys.ALIKE in tiles.obs:
        return unlike(tiles.obs, level)
    if (tiles.obs["split"] == "unseen").any():
        warnings.warn(
            f"No tile is withheld: the tiles have no column {_keys.ALIKE!r}. model.write_embeddings(sdata) writes it, if the "
            "model has raw counts and enough tissue.",
            UnlikeWarning,
            stacklevel=3,
        )
    return np.zeros(len(tiles), bool)


def _write(
    tiles: AnnData,
    name: str,
    classes: list[str],
    found: NDArray[np.float32],
    half: NDArray[np.float64] | None,
    withheld: NDArray[np.bool_],
    told: dict[str, object],
) -> None:
    """Write the shares of labels ``(n_tiles, n_labels)``, their intervals of half a width ``(n_labels,)``, and labels."""
    values = {"share": found}
    if half is not None:
        values |= {"lower": np.clip(found - half, 0, 1), "upper": np.clip(found + half, 0, 1)}
    for kind in ("share", "lower", "upper"):
        tiles.obsm.pop(f"{name}_{kind}", None)  # those of an earlier call
    for kind, shares in values.items():
        frame = pd.DataFrame(shares.astype(np.float32), index=tiles.obs_names, columns=_columns(classes))
        frame[withheld] = np.nan
        tiles.obsm[f"{name}_{kind}"] = frame
    tiles.obs[name] = pd.Categorical.from_codes(np.where(withheld, -1, found.argmax(axis=1)), classes)
    told = dict(told)
    if _keys.ALIKE in tiles.obs:
        words = sentence(tiles.obs, withheld)
        warn_unlike(words, stacklevel=3)
        told["unlike"] = words
    tiles.uns[name] = told


def _require_fit(model: SIGMMA, tiles: AnnData, name: str) -> None:
    """Check that the model embedded the tiles, and that no other column has this name."""
    for scale in model.embedder.towers.aligned:
        key = f"image_{scale}"
        require_key(key, tiles.obsm, "embedding", "Call model.write_embeddings(sdata, overwrite=True) first.")
        if tiles.obsm[key].shape[1] != model.config.n_latent:
            raise SetupError(
                f"obsm[{key!r}] of the tiles has {tiles.obsm[key].shape[1]} columns, the model embeds in {model.config.n_latent}. Call "
                "model.write_embeddings(sdata, overwrite=True) first."
            )
    told = tiles.uns.get(name)
    ours = isinstance(told, Mapping) and "labels" in told
    kept = {f"{name}_{kind}" for kind in ("share", "lower", "upper")} & set(tiles.obsm)
    if not ours and (name in tiles.obs or kept or told is not None):
        raise SetupError(f"The tiles have a column {name!r} already. Pass a key_added, such as {name + '_mapped'!r}.")


def _columns(classes: list[str]) -> list[str]:
    """Name of the column of each label, without what a name in a store cannot hold."""
    names: list[str] = []
    for label in classes:
        plain = label.replace("/", "_")
        name = plain if plain.strip(".") else f"label{plain}"
        k = 2
        while name in names or (name != label and name in classes):
            name = f"{plain}_{k}"
            k += 1
        names.append(name)
    return names


def _known(model: SIGMMA, labels: str) -> Known:
    """Labels in the training and validation tiles of the object of the model."""
    parts = []
    roles = []
    counts = []
    slides = model.resolve(cells=False)
    columns = [obs_of_slide(slide, labels) for slide in slides]
    classes = list(dict.fromkeys(str(name) for column in columns for name in column.cat.categories))
    embedder = model.embedder
    for slide, column in zip(slides, columns, strict=True):
        role = model.data.roles.of(slide)
        which = np.flatnonzero(np.isin(role, ("train", "val")))
        some = slide.tiles.take(which)
        code = pd.Categorical(column.astype(object).map(str, na_action="ignore"), classes).codes
        count = label_counts(some, code, len(classes))
        known = np.flatnonzero(count.sum(axis=1) > 0)
        if len(known):
            parts.append((embedder.tiles(slide, some.take(known)), np.arange(len(known))))
            roles.append(role[which][known])
            counts.append(count[known])
    if not any((role == "train").any() for role in roles):
        raise SetupError(
            f"No training tile of the model's object has a cell with a label {labels!r}. Load the model on the object it was "
            "trained on, with the labels in its table."
        )
    train = np.concatenate(roles) == "train"
    count = np.concatenate(counts)
    share = count / count.sum(axis=1, keepdims=True)
    return Known(
        classes=classes,
        keys={scale: z[train] for scale, z in joined(parts, "transcriptome").items()},
        share=share[train],
        validation={scale: z[~train] for scale, z in joined(parts, "image").items()},
        validation_share=share[~train],
        position=np.concatenate([e.tiles.origins / e.tiles.side for e, _ in parts]).astype(np.float32)[~train],
        slide=np.repeat(np.arange(len(parts)), [len(which) for _, which in parts])[~train],
    )


def _accuracy(shares: Callable[[Scales], NDArray[np.float32]], known: Known) -> dict[str, float]:
    """Accuracy of the commonest label on validation tiles, and that of the commonest label of training tiles."""
    truth = known.validation_share
    if not len(truth):
        return {"n_val": 0, "accuracy": np.nan, "accuracy_of_commonest": np.nan}
    top = truth.argmax(axis=1)
    commonest = np.bincount(known.share.argmax(axis=1)).argmax()
    return {
        "n_val": len(truth),
        "accuracy": float((shares(known.validation).argmax(axis=1) == top).mean()),
        "accuracy_of_commonest": float((top == commonest).mean()),
    }
