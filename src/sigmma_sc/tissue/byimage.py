"""What is computed once of an image."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sigmma_sc.tissue.frame import Slide


class ByImage:
    """Values by image of a slide; each goes when its image does, and an image put in its place has its own."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[Any, weakref.ref]] = {}

    def get(self, slide: Slide, make: Callable[[], Any]) -> Any:
        """Value of a slide's image, made the first time."""
        image = slide.sdata.images[slide.image_key]
        key, mine = id(image), weakref.ref(self)  # neither keeps the other

        def forget(_: weakref.ref) -> None:
            if (alive := mine()) is not None:
                del alive._values[key]

        if key not in self._values:
            self._values[key] = make(), weakref.ref(image, forget)
        return self._values[key][0]
