"""A report as HTML: sections, and the style and script that come with the package."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sigmma_sc.reporting.scores import DIRECTION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sigmma_sc.reporting.niches import Niche
    from sigmma_sc.reporting.scores import Query

N_GENES = 12
"""Genes shown of the most and of the least reliable ones."""


@dataclass(frozen=True)
class Contents:
    """What a page shows. A text in place of a table or figure says why there is none."""

    title: str
    made: str  # date
    niches: dict[str, list[Niche]]  # by scale, fine to coarse
    markers: dict[str, dict[str, list[str]]]  # genes of each niche by scale and name
    groupby: str | None
    nesting: dict[tuple[str, str], pd.DataFrame]  # by pair of scales
    roles: pd.DataFrame  # tiles, slide × role
    cells: pd.DataFrame  # cells, slide × what is missing
    registration: list[tuple[str, dict[str, Any], str]]  # slide, record, figure
    losses: str  # figure
    retrieval: pd.DataFrame | str
    split: str  # split of the tiles that retrieval is scored on
    queries: list[Query]
    reliability: pd.DataFrame | str
    settings: dict[str, str]
    tile_names: list[str]  # of the table of tiles
    pictures: dict[tuple[int, int], str]  # of tiles, by slide and tile
    slides: list[dict[str, Any]]  # what the map draws
    genes: list[str]  # names that the map shows for cells
    genes_note: str  # why there are no genes


def html_page(contents: Contents) -> str:
    """The whole page. Its policy forbids any request, and any script but its own."""
    script = files("sigmma_sc.reporting").joinpath("page.js").read_text(encoding="utf-8")
    style = files("sigmma_sc.reporting").joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = [
        ("map", "Map", _map(contents)),
        ("niches", "Niches", _niches(contents)),
        ("nesting", "How the scales nest", _nesting(contents)),
        ("tissue", "Tissue", _tissue(contents)),
        ("registration", "Registration", _registration(contents)),
        ("training", "Training", f'<img src="{contents.losses}" alt="Loss of each scale by epoch">'),
        ("retrieval", "Retrieval", _retrieval(contents)),
        ("genes", "Reliability of genes", _reliability(contents)),
        ("settings", "Settings and versions", _settings(contents)),
    ]
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{heading}</h2>{text}</section>' for name, heading, text in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(contents.title)}</title><style>{style}</style></head>"
        f"<body><header><h1>{escape(contents.title)}</h1><p>{_summary(contents)}</p><nav>{links}</nav></header>"
        f'<main>{body}</main><script type="application/json" id="data">{_data(contents)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _data(contents: Contents) -> str:
    """What the script draws, as JSON in which no name can end the element that it stands in."""
    scales = []
    for scale, niches in contents.niches.items():
        named = [{"name": n.name, "colour": n.colour, "cells": n.n_cells} for n in niches]
        scales.append({"name": scale, "niches": named})
    data = {"scales": scales, "slides": contents.slides, "genes": contents.genes}
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _summary(contents: Contents) -> str:
    cells = int(contents.cells["cells"].sum())
    parts = [f"{len(niches)} {escape(scale)}" for scale, niches in contents.niches.items()]
    slides = len(contents.slides)
    plural = "s" if slides > 1 else ""
    return f"{cells:,} cells on {slides} slide{plural}; niches: {', '.join(parts)}. Made on {escape(contents.made)}."


def _map(contents: Contents) -> str:
    options = "".join(
        f'<option value="{k}">{escape(slide["name"])}</option>' for k, slide in enumerate(contents.slides)
    )
    scales = "".join(
        f'<label><input type="radio" name="scale" value="{k}"{" checked" if k == 0 else ""}> {escape(scale)}</label>'
        for k, scale in enumerate(contents.niches)
    )
    note = f"<p>{escape(contents.genes_note)}</p>" if contents.genes_note else ""
    return (
        '<div class="bar">'
        f'<label{" hidden" if len(contents.slides) == 1 else ""}>slide <select id="slide">{options}</select></label>'
        f'<span class="choice" role="group" aria-label="scale">{scales}</span>'
        '<label>cells <input id="opacity" type="range" min="0" max="100" value="80"></label>'
        '<label><input id="image" type="checkbox" checked> H&amp;E</label>'
        '<label><input id="tiles" type="checkbox"> tiles</label>'
        '<span class="choice"><button id="closer" aria-label="zoom in">+</button>'
        '<button id="farther" aria-label="zoom out">−</button><button id="whole">whole slide</button></span></div>'
        '<canvas id="canvas" tabindex="0" role="img" aria-label="Map of the niches on the H&amp;E"></canvas>'
        '<p id="cell" aria-live="polite">Point at a cell for its niche and genes; click to keep it. Drag to move. '
        "Click on the map, then turn the wheel or press + and − to zoom.</p>"
        '<ul id="tile-legend" class="legend" hidden></ul><ul id="legend" class="legend"></ul>'
        f'<div id="print-maps"></div>{note}<noscript><p>The map needs JavaScript, which is part of this file.</p></noscript>'
    )


def _niches(contents: Contents) -> str:
    intro = (
        "<p>Share of the cells that have a niche of the scale. Confidence is the share of clustering runs in which a cell keeps "
        "its niche, mean over cells. Genes are ranked by t-tests against all other cells, the best first; those tests only "
        "rank. The tiles are those with the largest share of the niche.</p>"
    )
    parts = [intro]
    for scale, niches in contents.niches.items():
        cards = [_card(contents, scale, niche) for niche in niches]
        parts.append(f'<h3>{escape(scale)}</h3><div class="cards">{"".join(cards)}</div>')
    return "".join(parts)


def _card(contents: Contents, scale: str, niche: Niche) -> str:
    confidence = f", confidence {niche.confidence:.0%}" if np.isfinite(niche.confidence) else ""
    genes = contents.markers.get(scale, {}).get(niche.name, [])
    rows = []
    for name, share in niche.types:
        rows.append(
            f'<li><span class="share" style="width:{100 * share:.1f}%"></span><span>{escape(name)} {share:.0%}</span></li>'
        )
    pictures = [contents.pictures[place] for place in niche.tiles if place in contents.pictures]
    images = "".join(f'<img src="{picture}" alt="example tile">' for picture in pictures)
    types = f'<ul class="types" aria-label="{escape(contents.groupby or "")}">{"".join(rows)}</ul>' if rows else ""
    return (
        f'<article><h4><span class="dot" style="background:{niche.colour}"></span>{escape(niche.name)}</h4>'
        f"<p>{niche.n_cells:,} cells, {niche.share:.1%}{confidence}</p>"
        f'<p class="genes">{escape(", ".join(genes))}</p>{types}<div class="examples">{images}</div></article>'
    )


def _nesting(contents: Contents) -> str:
    if not contents.nesting:
        return "<p>There is one scale.</p>"
    parts = ["<p>Share of the cells of a finer niche (rows) that are of a coarser one (columns).</p>"]
    for (finer, coarser), shares in contents.nesting.items():
        head = "".join(f"<th>{escape(str(name))}</th>" for name in shares.columns)
        rows = []
        for name, row in shares.iterrows():
            entries = "".join(_shade(float(value)) for value in row)
            rows.append(f"<tr><th>{escape(str(name))}</th>{entries}</tr>")
        parts.append(
            f"<h3>{escape(finer)} in {escape(coarser)}</h3>"
            f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
        )
    return "".join(parts)


def _shade(share: float) -> str:
    text = f"{share:.0%}" if share >= 0.005 else ""
    return f'<td style="background:rgba(0,114,178,{0.6 * share:.2f})">{text}</td>'


def _tissue(contents: Contents) -> str:
    return (
        f"<h3>Cells</h3>{_table(contents.cells)}<h3>Tiles</h3>"
        "<p>Tiles train, validate or test. Those between the parts are guards. Tiles with too little stained tissue or too few "
        f"cells are left out.</p>{_table(contents.roles)}"
    )


def _registration(contents: Contents) -> str:
    if not contents.registration:
        return "<p>The object keeps no record of a registration by sg.pp.register: its image was used as it lay.</p>"
    parts = []
    for slide, record, picture in contents.registration:
        plain = {name: value for name, value in record.items() if isinstance(value, (str, int, float, bool))}
        parts.append(
            f"<h3>{escape(slide)}</h3>{_pairs(plain)}<img src='{picture}' alt='Before and after the registration'>"
        )
    return "".join(parts)


def _retrieval(contents: Contents) -> str:
    if isinstance(contents.retrieval, str):
        return f"<p>{escape(contents.retrieval)}</p>"
    tiles = "test tiles" if contents.split == "test" else "all tiles, as none was held out"
    parts = [
        f"<p>Among the {tiles} of each slide: recall@p % is the share of tiles whose partner in the other modality is among "
        "the most similar p %. In parentheses is that of a random order.</p>",
        _table(_beside_chance(contents.retrieval)),
    ]
    if contents.queries:
        parts.append(
            f"<h3>Examples</h3><p>{DIRECTION[0]}: the H&amp;E of the query, then the H&amp;E of the tiles whose cells are most "
            "similar, with the cosine. The partner of the query has a blue frame.</p>"
        )
    names = [slide["name"] for slide in contents.slides]
    for query in contents.queries:
        shown = [_hit(contents, names, query.row, "query", False)]
        for row, cosine in zip(query.hits, query.similarity, strict=True):
            shown.append(_hit(contents, names, row, f"{cosine:.2f}", row == query.row))
        parts.append(
            f'<p>The partner ranks {query.rank} of {query.pool}.</p><div class="gallery">{"".join(shown)}</div>'
        )
    return "".join(parts)


def _beside_chance(table: pd.DataFrame) -> pd.DataFrame:
    """Recall with its chance level in parentheses, by slide."""
    shown = table[["slide", "direction", "scale"]].copy()
    for column in [name for name in table if name.startswith("recall@")]:
        chance = table[column.replace("recall", "chance")]
        shown[column] = [f"{a:.2f} ({b:.2f})" for a, b in zip(table[column], chance, strict=True)]
    return shown.assign(**{"median rank": table["median_rank"], "tiles": table["pool"]}).set_index("slide")


def _hit(contents: Contents, slides: list[str], row: int, caption: str, partner: bool) -> str:
    slide, _, tile = contents.tile_names[row].rpartition("_")
    picture = contents.pictures[slides.index(slide), int(tile)]
    kind = ' class="partner"' if partner else ""
    name = escape(contents.tile_names[row])
    return f'<figure{kind}><img src="{picture}" alt="tile {name}"><figcaption>{caption}</figcaption></figure>'


def _reliability(contents: Contents) -> str:
    if isinstance(contents.reliability, str):
        return f"<p>{escape(contents.reliability)}</p>"
    known = contents.reliability["reliability"].dropna().sort_values(ascending=False)
    n_tiles = int(contents.reliability["reliability_n_tiles"].max())
    n_unknown = len(contents.reliability) - len(known)
    text = (
        "<p>Pearson correlation of measured expression and of expression predicted from the H&amp;E by retrieval, across the "
        f"{n_tiles} validation tiles. It is known for {len(known):,} of {len(contents.reliability):,} genes"
        f"{f', and not for {n_unknown:,}: they are constant there, or there are too few tiles' if n_unknown else ''}."
    )
    if not len(known):
        return f"{text}</p>"
    quartiles = ", ".join(f"{value:.2f}" for value in known.quantile([0.25, 0.5, 0.75]))
    tables = []
    n = min(N_GENES, -(-len(known) // 2))
    for heading, some in (("Most reliable", known.head(n)), ("Least reliable", known.tail(len(known) - n).tail(n))):
        if len(some):
            shown = some.map("{:.2f}".format).rename("correlation").to_frame().rename_axis("gene")
            tables.append(f"<div><h3>{heading}</h3>{_table(shown)}</div>")
    return f'{text} Quartiles: {quartiles}.</p><div class="columns">{"".join(tables)}</div>'


def _settings(contents: Contents) -> str:
    return _pairs(contents.settings)


def _pairs(values: Mapping[str, object]) -> str:
    rows = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(_text(value))}</dd>" for name, value in values.items())
    return f"<dl>{rows}</dl>"


def _table(frame: pd.DataFrame) -> str:
    """A frame as a table, its index first."""
    head = "".join(f"<th>{escape(str(name))}</th>" for name in (frame.index.name or "", *frame.columns))
    rows = []
    for name, *values in frame.itertuples(name=None):
        entries = "".join(f"<td>{escape(_text(value))}</td>" for value in values)
        rows.append(f"<tr><th>{escape(str(name))}</th>{entries}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _text(value: object) -> str:
    if isinstance(value, (bool, np.bool_, str)):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        return f"{value:.3g}" if np.isfinite(value) else "–"
    return str(value)
