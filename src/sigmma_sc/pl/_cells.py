"""Labels of cells and their colours."""

import pandas as pd

# Paul Tol's muted scheme, distinguishable with common colour-vision deficiencies; beyond ten, palettes of scanpy.
PALETTE = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#777777")
MISSING = "#DDDDDD"


def colours_of(labels: pd.Series) -> dict[str, str]:
    """Colour of each category, by its name."""
    from scanpy.plotting import palettes

    names = list(map(str, labels.cat.categories))
    choices = (PALETTE, palettes.default_20, palettes.default_28, palettes.default_102)
    colours = next((c for c in choices if len(names) <= len(c)), palettes.default_102)
    return {name: colours[k % len(colours)] for k, name in enumerate(names)}


def each_colour(labels: pd.Series) -> list[str]:
    """Colour of each cell, grey for those without a label."""
    colours = colours_of(labels)
    return [colours.get(str(name), MISSING) for name in labels]
