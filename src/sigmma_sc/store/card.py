"""The card of a model on the hub: what it is, what it was trained on, and how well it does on tissue held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sigmma_sc._version import __version__
from sigmma_sc.encoders.registry import REGISTRY
from sigmma_sc.infer.evaluate import slide_names
from sigmma_sc.infer.interval import calibration_blocks
from sigmma_sc.infer.scales import joined
from sigmma_sc.metrics.retrieval import PERCENTS, chance_level, tile_ranks, within_percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sigmma_sc.features.data import TissueData
    from sigmma_sc.infer.embed import SlideEmbedding
    from sigmma_sc.store.model import SavedModel
    from sigmma_sc.tissue.frame import Slide

TAGS = ["sigmma-sc", "spatial-transcriptomics", "histology", "single-cell"]
N_DRAWS = 1000
NORMAL = 1.959964
"""Half the width of a 95 % interval in standard deviations."""
NOT_STATED = "not stated"


@dataclass(frozen=True)
class CardText:
    """What only the person who trained a model can tell; ``None`` where it is not stated."""

    tissue: str | None
    licence: str | None
    data_licence: str | None


def recall_intervals(scored: list[tuple[SlideEmbedding, NDArray[np.int64]]]) -> pd.DataFrame:
    """Recall of all scales together among chosen tiles of each slide, with 95 % intervals by bootstrap over spatial blocks.

    One row a slide, direction and percentage: ``slide``, ``direction``, ``percent``, ``recall``, ``low``, ``high``, ``chance``,
    ``pool``, ``blocks``. Limits are NaN for a slide of one block. Ranks stay those in the whole pool. Blocks are squares of tiles,
    because neighbouring tiles are alike.
    """
    ranks, slides = tile_ranks(joined(scored, "image"), joined(scored, "transcriptome"), slide_names(scored))
    position = np.concatenate([e.tiles.origins[tiles] / e.tiles.side for e, tiles in scored]).astype(np.float32)
    n_scales = len({scale for _, scale in ranks})
    rows = []
    for name, tiles in slides:
        block = calibration_blocks(position[tiles], np.zeros(len(tiles), np.int64))
        for (direction, scale), all_ranks in ranks.items():
            if scale == "all" or n_scales == 1:
                for percent in PERCENTS:
                    hit = within_percent(all_ranks[tiles], len(tiles), percent)
                    low, high = _interval(hit, block)
                    chance = chance_level(percent, len(tiles))
                    rows.append((name, direction, percent, hit.mean(), low, high, chance, len(tiles), block.max() + 1))
    columns = ["slide", "direction", "percent", "recall", "low", "high", "chance", "pool", "blocks"]
    return pd.DataFrame(rows, columns=columns)


def _interval(hit: NDArray[np.bool_], block: NDArray[np.int64]) -> tuple[float, float]:
    """Limits of the share of hits: 1.96 standard deviations of what blocks drawn anew give. NaN for one block."""
    n = np.bincount(block)
    if len(n) < 2:
        return np.nan, np.nan
    times = np.random.default_rng(0).multinomial(len(n), np.full(len(n), 1 / len(n)), size=N_DRAWS)
    half = NORMAL * float(np.std(times @ np.bincount(block, weights=hit) / (times @ n), ddof=1))
    return max(0.0, hit.mean() - half), min(1.0, hit.mean() + half)


def model_card(
    repo_id: str,
    saved: SavedModel,
    data: TissueData,
    slides: Sequence[Slide],
    recall: pd.DataFrame | None,
    text: CardText,
) -> str:
    """The card as Markdown, with the hub's metadata on top."""
    from huggingface_hub import ModelCardData

    metadata: dict[str, Any] = {"library_name": "sigmma-sc", "tags": TAGS}
    if text.licence is not None:
        metadata["license"] = text.licence
    parts = [
        f"# {repo_id.split('/')[1]}",
        "Aligns H&E images with single-cell spatial transcriptomics at several scales "
        f"(`{saved.kind}` of sigmma-sc {__version__}, {saved.epochs} epochs).",
        _usage(repo_id, saved),
        "## Tissue",
        text.tissue or "The origin of the tissue is not stated.",
        _table(_slides_table(data, slides)),
        f"The split is `{_plain(data.roles.split)}`. Tiles of the role *test* took no part in training.",
        _panel(saved),
        "## Retrieval on tissue held out",
        _recall_text(recall),
        "## Licences",
        _licences(saved, text),
    ]
    return f"---\n{ModelCardData(**metadata)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _usage(repo_id: str, saved: SavedModel) -> str:
    return (
        f'```python\nimport sigmma_sc as sg\n\nmodel = sg.{saved.kind}.load({repo_id!r}, sdata, revision="…")  # a commit, for the same model always\n'
        "```"
    )


def _slides_table(data: TissueData, slides: Sequence[Slide]) -> pd.DataFrame:
    """Tiles of each slide by role; samples, cells and resolution where the slide is at hand."""
    at_hand = {data.roles.name_of(slide): slide for slide in slides}
    rows = []
    for name, roles in data.roles.by_slide.items():
        row: dict[str, object] = {"slide": name}
        for role in ("train", "val", "test"):
            row[f"{role} tiles"] = int((roles == role).sum())
        if name in at_hand:
            slide = at_hand[name]
            row |= {"samples": ", ".join(slide.samples), "cells": len(slide.rows)}
            row["µm per px"] = f"{slide.microns_per_pixel:.4g}"
        rows.append(row)
    return pd.DataFrame(rows).astype(object).fillna("")


def _panel(saved: SavedModel) -> str:
    size = (
        f"Tiles are {saved.setup.tile_size:g} µm wide, with grids of {', '.join(map(str, saved.setup.grids))} a side."
    )
    if saved.reference is None:
        return f"{size} The model holds no expression."
    return (
        f"{size} The model holds the expression of {len(saved.reference.genes):,} genes in each training and validation tile "
        "(`weights.safetensors`), from which it predicts expression for new H&E. Share it only if the tissue's terms allow that."
    )


def _recall_text(recall: pd.DataFrame | None) -> str:
    if recall is None or recall.empty:
        return "No tile was held out, so that nothing can be said."
    shown = recall.assign(
        **{
            "recall (95 % interval)": [
                f"{value:.3f} ({low:.3f} to {high:.3f})" if np.isfinite(low) else f"{value:.3f}"
                for value, low, high in zip(recall["recall"], recall["low"], recall["high"], strict=True)
            ],
            "chance": [f"{value:.3f}" for value in recall["chance"]],
            "of the pool": [f"{value:g} %" for value in recall["percent"]],
        }
    )
    columns = ["slide", "direction", "of the pool", "recall (95 % interval)", "chance", "pool", "blocks"]
    return (
        "Share of test tiles whose partner is among the most similar tiles of the slide, all scales together. Intervals are by "
        "bootstrap over spatial blocks: other tissue of the same slides could have given these, other patients may differ more.\n\n"
        f"{_table(shown[columns])}"
    )


def _licences(saved: SavedModel, text: CardText) -> str:
    name = saved.encoder["name"]
    entry = REGISTRY.get(name)
    known = f"{entry.licence}, {entry.page}" if entry is not None and entry.licence else NOT_STATED
    trained = (
        "its trained weights are stored here"
        if saved.config["regime"] != "frozen"
        else "its weights are not stored here"
    )
    return "\n".join(
        [
            f"- model: {text.licence or NOT_STATED}",
            f"- tissue: {text.data_licence or NOT_STATED}",
            f"- image encoder `{name}`: {known}; {trained}",
        ]
    )


def _table(frame: pd.DataFrame) -> str:
    """A frame as a table of Markdown; bars in its texts would end a cell."""
    rows = [list(frame.columns), ["---"] * frame.shape[1], *frame.astype(str).to_numpy().tolist()]
    lines = []
    for row in rows:
        cells = [_cell(value) for value in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return _plain(value).replace("|", r"\|")


def _plain(value: object) -> str:
    """On one line, without what would start markup."""
    return " ".join(str(value).replace("`", "'").replace("<", "&lt;").split())
