"""Labels of cells and their colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

# Paul Tol's muted scheme, distinguishable with common colour-vision deficiencies; beyond ten, palettes of scanpy.
PALETTE = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#777777")
MISSING = "#DDDDDD"


def colours_of(labels: pd.Series, uns: Mapping | None = None) -> dict[str, str]:
    """Colour of each category, by its name: those that ``uns`` of the table keeps for the column, as scanpy does, or ours."""
    from matplotlib.colors import is_color_like, to_hex
    from scanpy.plotting import palettes

    names = list(map(str, labels.cat.categories))
    kept = list((uns or {}).get(f"{labels.name}_colors", ()))
    if len(kept) >= len(names) and all(map(is_color_like, kept)):
        return {name: to_hex(colour) for name, colour in zip(names, kept, strict=False)}
    choices = (PALETTE, palettes.default_20, palettes.default_28, palettes.default_102)
    colours = next((c for c in choices if len(names) <= len(c)), palettes.default_102)
    return {name: colours[k % len(colours)] for k, name in enumerate(names)}


def each_colour(labels: pd.Series, uns: Mapping | None = None) -> list[str]:
    """Colour of each cell, grey for those without a label."""
    colours = colours_of(labels, uns)
    return [colours.get(str(name), MISSING) for name in labels]
