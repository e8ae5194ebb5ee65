"""Scale bars, and the units of positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sigmma_sc import _keys
from sigmma_sc._checks import require_positive

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def scale_bar(ax: Axes, microns_per_unit: float = 1.0) -> None:
    """Draw a scale bar of a round length into a corner of a map."""
    from matplotlib_scalebar.scalebar import ScaleBar

    bar = ScaleBar(
        microns_per_unit,
        "um",
        location="lower right",
        box_alpha=0.75,
        font_properties={"size": 8},
        width_fraction=0.012,
    )
    ax.add_artist(bar)


def microns_of(adata: AnnData, basis: str, microns_per_unit: float | None) -> float | None:
    """Length in µm of a unit of ``obsm[basis]``: that of the user, or what the model measured; None if nobody knows."""
    if microns_per_unit is not None:
        require_positive(microns_per_unit, "microns_per_unit")
        return float(microns_per_unit)
    written = adata.uns.get(_keys.UNS)
    if basis != _keys.POSITIONS or not isinstance(written, Mapping):
        return None
    return written.get(_keys.MICRONS)
