"""Labels of cells and their colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sigmma_sc.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

# Drawn from the schemes of Paul Tol and of Okabe and Ito; any two differ by a CIEDE2000 of 13 or more for protanopes and
# deuteranopes (Machado et al. 2009), which a test computes. Beyond ten, palettes of scanpy, and numbers on the map.
PALETTE = ("#0077BB", "#EE8866", "#009988", "#EE3377", "#99DDFF", "#997700", "#332288", "#F0E442", "#225522", "#000000")
MISSING = "#DDDDDD"


def colours_of(
    labels: pd.Series, uns: Mapping | None = None, palette: Sequence[str] | Mapping[str, str] | None = None
) -> dict[str, str]:
    """Colour of each category, by its name: of ``palette``, or those that ``uns`` of the table keeps, as scanpy does, or ours."""
    from matplotlib.colors import is_color_like, to_hex
    from scanpy.plotting import palettes

    names = list(map(str, labels.cat.categories))
    if palette is not None:
        return _chosen(names, palette)
    kept = list((uns or {}).get(f"{labels.name}_colors", ()))
    if len(kept) >= len(names) and all(map(is_color_like, kept)):
        return {name: to_hex(colour) for name, colour in zip(names, kept, strict=False)}
    choices = (PALETTE, palettes.default_20, palettes.default_28, palettes.default_102)
    colours = next((c for c in choices if len(names) <= len(c)), palettes.default_102)
    return {name: colours[k % len(colours)] for k, name in enumerate(names)}


def _chosen(names: list[str], palette: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Colours that the user names, by category or in their order."""
    from matplotlib.colors import is_color_like, to_hex

    if isinstance(palette, str) or not isinstance(palette, (Mapping, list, tuple)):
        raise SetupError(f"palette={palette!r} must be a list of colours, or a dict of colours by category.")
    given = palette if isinstance(palette, Mapping) else dict(zip(names, palette, strict=False))
    if missing := [name for name in names if name not in given]:
        raise SetupError(
            f"palette has no colour for {', '.join(missing)}. Give one for each of {len(names)} categories."
        )
    if wrong := [str(given[name]) for name in names if not is_color_like(given[name])]:
        raise SetupError(
            f"palette: {', '.join(wrong)} is no colour of matplotlib. Give a name or a code such as '#0077BB'."
        )
    return {name: to_hex(given[name]) for name in names}


def each_colour(labels: pd.Series, uns: Mapping | None = None) -> list[str]:
    """Colour of each cell, grey for those without a label."""
    colours = colours_of(labels, uns)
    return [colours.get(str(name), MISSING) for name in labels]
