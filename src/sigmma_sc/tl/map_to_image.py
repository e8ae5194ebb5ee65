"""Labels of cells given to tiles of H&E alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sigmma_sc import _keys
from sigmma_sc._checks import require_choice, require_key, require_positive
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.setup import objects_of, obs_of_slide
from sigmma_sc.infer.embed import Embedder
from sigmma_sc.infer.predict import retrieve, temperature_of
from sigmma_sc.store.write import at_scale

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    Scales = dict[str, NDArray[np.float32]]


def map_to_image(
    model: Any,
    sdata: Any,
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
    require_choice(scale, (*model._trained().aligned, "all"), "scale")
    require_positive(n_neighbors, "n_neighbors")
    name = labels if key_added is None else key_added
    tables = []
    for one in objects_of(sdata).values():
        require_key(_keys.TILES, one.tables, "table", "Call model.write_embeddings(sdata) first.")
        tables.append(one.tables[_keys.TILES])
        _require_fit(model, tables[-1], name)
    keys, made_of, classes, held = _known(model, labels)
    temperature = temperature_of(model, scale)

    def shares(image: Scales) -> NDArray[np.float32]:
        return retrieve(at_scale(image, scale), at_scale(keys, scale), made_of, int(n_neighbors), temperature)

    trust = _trust(shares, held, made_of)
    for tiles in tables:
        found = shares({s: np.asarray(tiles.obsm[f"image_{s}"]) for s in keys})
        tiles.obsm[f"{name}_share"] = pd.DataFrame(found, index=tiles.obs_names, columns=classes)
        tiles.obs[name] = pd.Categorical.from_codes(found.argmax(axis=1), classes)
        tiles.uns[name] = {"labels": labels, "scale": scale, "n_neighbors": int(n_neighbors), **trust}


def _require_fit(model: Any, tiles: AnnData, name: str) -> None:
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


def _known(
    model: Any, labels: str
) -> tuple[Scales, NDArray[np.float32], list[str], tuple[Scales, NDArray[np.float32]]]:
    """Of training tiles the transcriptome embeddings and shares of labels; the labels; of validation tiles image embeddings and shares."""
    data, parts = model.data, []
    slides = data.slides(model.sdata)
    columns = [obs_of_slide(slide, labels, model.setup) for slide in slides]
    classes = list(dict.fromkeys(str(c) for column in columns for c in column.cat.categories))
    embedder = Embedder(data, model.module)
    for slide, column in zip(slides, columns, strict=True):
        tiles, _ = data.covering(slide)
        role = data.roles_of(slide, len(tiles))
        which = np.flatnonzero(np.isin(role, ("train", "val")))
        some = tiles.take(which)
        code = pd.Categorical(column.astype(object).map(str, na_action="ignore"), classes).codes[some.cells]
        counts = np.zeros((len(which), len(classes)), np.float32)
        np.add.at(counts, (np.repeat(np.arange(len(which)), some.n_cells)[code >= 0], code[code >= 0]), 1)
        known = counts.sum(axis=1) > 0
        if known.any():
            e = embedder.tiles(slide, some.take(np.flatnonzero(known)))
            parts.append((e, role[which][known] == "train", counts[known]))
    if not any(train.any() for _, train, _ in parts):
        raise SetupError(
            f"No training tile of the model's object has a cell with a label {labels!r}. Load the model on the object it was "
            "trained on, with the labels in its table."
        )
    train, counts = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
    made_of = counts / counts.sum(axis=1, keepdims=True)
    transcriptome, image = (
        {s: np.concatenate([getattr(e, tower)[s] for e, _, _ in parts]) for s in model.module.aligned}
        for tower in ("transcriptome", "image")
    )
    keys, held = ({s: z[rows] for s, z in of.items()} for of, rows in ((transcriptome, train), (image, ~train)))
    return keys, made_of[train], classes, (held, made_of[~train])


def _trust(shares: Any, held: tuple[Scales, NDArray[np.float32]], made_of: NDArray[np.float32]) -> dict[str, float]:
    """Validation tiles whose commonest label is found, and how many would be by the label commonest among training tiles."""
    image, truth = held
    if not len(truth):
        return {"n_val": 0, "accuracy": np.nan, "accuracy_of_commonest": np.nan}
    top = truth.argmax(axis=1)
    commonest = np.bincount(made_of.argmax(axis=1)).argmax()
    return {
        "n_val": len(truth),
        "accuracy": float((shares(image).argmax(axis=1) == top).mean()),
        "accuracy_of_commonest": float((top == commonest).mean()),
    }
