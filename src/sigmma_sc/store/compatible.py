"""Whether an object fits a trained model."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sigmma_sc import _keys
from sigmma_sc.errors import SetupError
from sigmma_sc.tissue.setup import Setup, objects_of, stored_setup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spatialdata import SpatialData

    from sigmma_sc.features.node_features import NodeFeatures
    from sigmma_sc.tissue.frame import Slide
    from sigmma_sc.tissue.setup import Tissue

INHERITED = ("tile_size", "grids")

SAME_SIZE = 1e-3
"""Relative difference of pixel sizes that are the same."""

AGAIN = "Make a new model, or set the object up as it was."


def require_table(tissue: Tissue, setup: Setup) -> list[SpatialData]:
    """Raise :class:`SetupError` for an object that was never set up and holds no table: its pixel size is not known."""
    inheriting = []
    for name, sdata in objects_of(tissue).items():
        if stored_setup(sdata) is not None:
            continue
        if setup.table_key is not None and not sdata.tables:
            raise SetupError(
                f"Object {name!r} holds no table and was never set up. Call SIGMMA.setup_spatialdata(sdata, image_key=…, "
                f"table_key=None, microns_per_pixel=…, tile_size={setup.tile_size}, grids={setup.grids}) first."
            )
        inheriting.append(sdata)
    return inheriting


def require_same(slides: Sequence[Slide], before: Sequence[Slide], setup: Setup) -> None:
    """Raise :class:`SetupError` if an object was set up in another way since the model was made of it."""
    sizes = {slide.name: slide.microns_per_pixel for slide in before}
    for slide in slides:
        for field in INHERITED:
            here = getattr(slide.setup, field)
            there = getattr(setup, field)
            if here != there:
                raise SetupError(
                    f"Slide {slide.name!r} was set up again: {field} is {here!r}, and {there!r} in the model. {AGAIN}"
                )
        known = sizes.get(slide.name, slide.microns_per_pixel)
        if abs(slide.microns_per_pixel - known) > SAME_SIZE * known:
            raise SetupError(
                f"Slide {slide.name!r} now has {slide.microns_per_pixel:g} µm per pixel, and {known:g} in the model. {AGAIN}"
            )


@contextmanager
def inherit_setup(tissue: Tissue, setup: Setup) -> Iterator[list[SpatialData]]:
    """Store a model's setup with the objects that have none; they are as before if the block ends with an error."""
    inheriting = require_table(tissue, setup)
    before = [sdata.attrs for sdata in inheriting]
    for sdata in inheriting:
        # A new dict, because subsets of an object share the one that it has.
        sdata.attrs = {**sdata.attrs, _keys.SETUP: setup.to_json()}
    try:
        yield inheriting
    except BaseException:
        for sdata, attrs in zip(inheriting, before, strict=True):
            sdata.attrs = attrs
        raise


def check_compatible(slides: Sequence[Slide], trained: Setup, features: NodeFeatures, cells: bool = True) -> None:
    """Raise :class:`SetupError` unless setup, and genes or features where ``cells`` are embedded, are the model's."""
    objects = {id(slide.sdata): slide for slide in reversed(slides)}
    for slide in reversed(objects.values()):
        wrong = []
        for field in INHERITED:
            here = getattr(slide.setup, field)
            there = getattr(trained, field)
            if here != there:
                wrong.append(f"{field} is {here!r} here and {there!r} in the model")
        if cells and slide.region is not None:
            wrong += _cell_differences(slide, trained, features)
        if wrong:
            raise SetupError(
                f"Slide {slide.name!r} does not fit the model: {'; '.join(wrong)}. Call SIGMMA.setup_spatialdata on its object "
                "with the model's values, or train a model on it."
            )


def _cell_differences(slide: Slide, trained: Setup, features: NodeFeatures) -> Iterator[str]:
    if slide.setup.features_key != trained.features_key:
        yield f"features_key is {slide.setup.features_key!r} here and {trained.features_key!r} in the model"
    else:
        yield from features.differences(slide)
