"""Tiles that a model predicts expression from: kept with it, so that it needs none of the slides it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sigmma_sc.errors import SetupError
from sigmma_sc.metrics.expression import log_expression, median_total
from sigmma_sc.tissue.setup import get_table, stored_setup
from sigmma_sc.infer.embed import Embedder
from sigmma_sc.infer.evaluate import chosen_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREFIX = "reference."
"""Of its tensors among those of a saved model."""


@dataclass(frozen=True)
class Reference:
    """Training and validation tiles of a model, with both embeddings and expression.

    Attributes
    ----------
    genes
        Genes in order, those of the table trained on.
    library
        Counts that a tile's are scaled to: the median total of the training tiles.
    expression
        ``(n, n_genes)`` float16, log1p of the counts pooled over a tile's cells and scaled to ``library``.
    image, transcriptome
        Embeddings by scale, ``(n, d)`` float32.
    slide
        Number of each tile's slide, ``(n,)``.
    train
        Which are training tiles, ``(n,)``; the others are validation tiles.
    """

    genes: list[str]
    library: float
    expression: NDArray[np.float16]
    image: dict[str, NDArray[np.float32]]
    transcriptome: dict[str, NDArray[np.float32]]
    slide: NDArray[np.int64]
    train: NDArray[np.bool_]


def reference_of(model: Any) -> Reference:
    """A model's reference: the one it carries, else built from the object that it works on.

    Raises
    ------
    SetupError
        The object holds none of the training tiles, or no raw counts.
    """
    if model._reference is None:
        model._reference = _build(model)
    return model._reference


def _build(model: Any) -> Reference:
    data, chosen, roles = model.data, [], []
    embedder = Embedder(data, model.module)
    for slide in data.slides(model.sdata):
        tiles, _ = data.covering(slide)
        role = data.roles_of(slide, len(tiles))
        which = np.flatnonzero(np.isin(role, ("train", "val")))
        if len(which):
            # Only these: the others may never have been encoded.
            chosen.append((embedder.tiles(slide, tiles.take(which)), np.arange(len(which))))
            roles.append(role[which])
    if not chosen:
        raise SetupError(
            "The model carries no expression to predict from, and its object holds none of the tiles it was trained on. Load "
            "it on the object it was trained on, save it again, and load that."
        )
    train = np.concatenate(roles) == "train"
    first = chosen[0][0].slide.sdata
    genes = list(map(str, get_table(first, stored_setup(first) or model.setup).var_names))
    counts = chosen_counts(model, chosen, genes)
    library = median_total(counts[train])
    image, transcriptome = (
        {s: np.concatenate([getattr(e, tower)[s] for e, _ in chosen]) for s in model.module.aligned}
        for tower in ("image", "transcriptome")
    )
    slide = np.repeat(np.arange(len(chosen)), [len(which) for _, which in chosen])
    expression = log_expression(counts, library).astype(np.float32).toarray().astype(np.float16)
    return Reference(genes, library, expression, image, transcriptome, slide, train)


def describe_reference(reference: Reference) -> dict[str, Any]:
    """Genes and library as plain JSON; the rest of it is in :func:`reference_tensors`."""
    return {"genes": reference.genes, "library": reference.library}


def reference_tensors(reference: Reference) -> dict[str, torch.Tensor]:
    """Expression, embeddings, slides and roles."""
    arrays = {name: getattr(reference, name) for name in ("expression", "slide", "train")}
    for tower in ("image", "transcriptome"):
        arrays |= {f"{tower}.{scale}": values for scale, values in getattr(reference, tower).items()}
    return {PREFIX + name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}


def restore_reference(
    described: dict[str, Any], tensors: dict[str, torch.Tensor], scales: tuple[str, ...]
) -> Reference:
    """Take up what :func:`describe_reference` and :func:`reference_tensors` gave."""

    def array(name: str) -> NDArray:
        return tensors[PREFIX + name].numpy().copy()

    image, transcriptome = ({s: array(f"{tower}.{s}") for s in scales} for tower in ("image", "transcriptome"))
    parts = (array("expression"), image, transcriptome, array("slide"), array("train"))
    return Reference(described["genes"], described["library"], *parts)
