"""Values that are computed once for an image."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from sigmma_sc.tissue.frame import Slide

Value = TypeVar("Value")


class ByImage:
    """Values of one kind by image of a slide; a value is deleted with its image, and another image has another value."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[object, weakref.ref]] = {}

    def get(self, slide: Slide, make: Callable[[], Value]) -> Value:
        """Value of a slide's image, made the first time."""
        image = slide.sdata.images[slide.image_key]
        key = id(image)
        mine = weakref.ref(self)  # neither keeps the other alive

        def forget(_: weakref.ref) -> None:
            if (alive := mine()) is not None:
                alive.forget(key)

        if key not in self._values:
            self._values[key] = make(), weakref.ref(image, forget)
        return cast("Value", self._values[key][0])

    def forget(self, key: int) -> None:
        """Delete the value of an image by its ``id``."""
        del self._values[key]
