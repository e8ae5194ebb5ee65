"""Labels of cells given to tiles of H&E alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc._checks import require_choice, require_key, require_positive
from sigmma_sc.errors import SetupError
from sigmma_sc.infer.predict import retrieve, temperature_of
from sigmma_sc.infer.scales import at_scale, joined
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
    """Labels of the model's own tiles.

    Attributes
    ----------
    classes
        Labels in order.
    keys, share
        Transcriptome embeddings of the training tiles by scale, and the share of each label ``(n, n_labels)``.
    validation, validation_share
        Image embeddings of the validation tiles by scale, and the share of each label.
    """

    classes: list[str]
    keys: Scales
    share: NDArray[np.float32]
    validation: Scales
    validation_share: NDArray[np.float32]


def map_to_image(
    model: SIGMMA,
    sdata: Tissue,
    labels: str = "sigmma_niche_meso",
    scale: str = "all",
    n_neighbors: int = 50,
    key_added: str | None = None,
) -> None:
    """Give tiles of an image the labels of cells, as :meth:`sigmma_sc.SIGMMA.predict_expression` gives them expression.

    A tile's image embedding looks for the training tiles whose transcriptome embedding is nearest. The mean of what these are
    made of, weighted by softmax(cosine similarity / temperature), is the tile's share of each label.

    Parameters
    ----------
    model
        A trained :class:`sigmma_sc.SIGMMA`, on the object it was trained on, whose table holds the labels.
    sdata
        Object, or objects by name, with the tiles of ``model.write_embeddings(sdata)``. Its cells, if any, are not looked at.
    labels
        Column of ``obs`` of the cells: niches, cell types, a pathologist's regions.
    scale
        Embedding to use: one scale, or ``"all"``.
    n_neighbors
        Training tiles that are averaged; all of them if there are fewer.
    key_added
        Name of what is written, ``labels`` by default. Into ``sdata.tables["sigmma_tiles"]``: ``obsm[f"{key_added}_share"]``,
        a frame of tiles × labels whose rows add up to one; ``obs[key_added]``, the label of the largest share; and
        ``uns[key_added]``, how far to trust it: of the ``n_val`` validation tiles of the model, the share ``accuracy`` whose commonest
        label is found from the image alone, and beside it ``accuracy_of_commonest``, that of always naming the commonest label. They speak
        of tissue and stain like the training slides'. NaN without validation tiles. Tiles with little ``obs["tissue"]`` show glass, whose
        labels mean nothing.

    Raises
    ------
    MissingKeyError
        There are no tiles in ``sdata``, or no such column.
    SetupError
        No labelled cell is under a training tile; the tiles have another width; or a column of that name does not come from here.

    Examples
    --------
    >>> sg.tl.map_to_image(model, sdata, labels="niche")
    >>> tiles = sdata["sigmma_tiles"]
    >>> tiles.obsm["niche_share"].shape  # tiles and labels
    (121, 6)
    >>> tiles.uns["niche"]["n_val"]
    5
    """
    require_choice(scale, (*model.embedder.towers.aligned, "all"), "scale")
    require_positive(n_neighbors, "n_neighbors")
    name = labels if key_added is None else key_added
    tables = []
    for one in objects_of(sdata).values():
        require_key(_keys.TILES, one.tables, "table", "Call model.write_embeddings(sdata) first.")
        tables.append(one.tables[_keys.TILES])
        _require_fit(model, tables[-1], name)
    known = _known(model, labels)
    temperature = temperature_of(model.module, scale)

    def shares(image: Scales) -> NDArray[np.float32]:
        keys = at_scale(known.keys, scale)
        return retrieve(at_scale(image, scale), keys, known.share, int(n_neighbors), temperature)

    trust = _trust(shares, known)
    for tiles in tables:
        found = shares({s: np.asarray(tiles.obsm[f"image_{s}"]) for s in known.keys})
        tiles.obsm[f"{name}_share"] = pd.DataFrame(found, index=tiles.obs_names, columns=known.classes)
        tiles.obs[name] = pd.Categorical.from_codes(found.argmax(axis=1), known.classes)
        tiles.uns[name] = {"labels": labels, "scale": scale, "n_neighbors": int(n_neighbors), **trust}


def _require_fit(model: SIGMMA, tiles: AnnData, name: str) -> None:
    """Tiles embedded by such a model, and nothing of the user's or ours to be written over."""
    for scale in model.module.aligned:
        key = f"image_{scale}"
        require_key(key, tiles.obsm, "embedding", "Call model.write_embeddings(sdata, overwrite=True) first.")
        if tiles.obsm[key].shape[1] != model.config.n_latent:
            raise SetupError(
                f"obsm[{key!r}] of the tiles has {tiles.obsm[key].shape[1]} columns, the model embeds in {model.config.n_latent}. Call "
                "model.write_embeddings(sdata, overwrite=True) first."
            )
    if name in tiles.obs and f"{name}_share" not in tiles.obsm:
        raise SetupError(
            f"The tiles have a column {name!r} already. Pass another key_added, such as {name + '_mapped'!r}."
        )


def _known(model: SIGMMA, labels: str) -> Known:
    """What training and validation tiles of the model's object are made of."""
    parts = []
    roles = []
    slides = model.resolve(cells=False)
    columns = [obs_of_slide(slide, labels) for slide in slides]
    classes = list(dict.fromkeys(str(c) for column in columns for c in column.cat.categories))
    embedder = model.embedder
    counts = []
    for slide, column in zip(slides, columns, strict=True):
        role = model.data.roles.of(slide)
        which = np.flatnonzero(np.isin(role, ("train", "val")))
        some = slide.tiles.take(which)
        code = pd.Categorical(column.astype(object).map(str, na_action="ignore"), classes).codes[some.cells]
        count = np.zeros((len(which), len(classes)), np.float32)
        np.add.at(count, (np.repeat(np.arange(len(which)), some.n_cells)[code >= 0], code[code >= 0]), 1)
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
    )


def _trust(shares: Callable[[Scales], NDArray[np.float32]], known: Known) -> dict[str, float]:
    """Validation tiles whose commonest label is found, and how many would be by the label commonest among training tiles."""
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
