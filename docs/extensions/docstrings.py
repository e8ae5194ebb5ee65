"""Docstrings as this package writes them.

A returns section is prose or a definition list without a type, and a property says in prose what it is. Napoleon would
read what stands first in them as a type. Types come from annotations instead, those of arrays by their short names.
"""

from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
from numpy.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.ext.napoleon import NumpyDocstring

ARRAY_LIKE = frozenset(get_args(ArrayLike))


def short_type(annotation: Any, _: Any) -> str | None:
    """Name NDArray and ArrayLike, which are lines long when spelt out; None leaves a type to the extension."""
    if get_origin(annotation) is np.ndarray:
        return ":py:class:`~numpy.ndarray`"
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    others = [member for member in members if member not in ARRAY_LIKE]
    if not ARRAY_LIKE or not ARRAY_LIKE.issubset(members) or not all(isinstance(other, type) for other in others):
        return None
    names = [
        "``None``" if other is NoneType else f":py:class:`~{other.__module__}.{other.__qualname__}`" for other in others
    ]
    return " | ".join([":py:data:`~numpy.typing.ArrayLike`", *names])


def _returns(self: NumpyDocstring, section: str) -> list[str]:
    lines = self._dedent(self._consume_to_next_section())
    if lines[:1] == [":"]:  # how sphinx-autodoc-typehints tells napoleon that there is no type
        lines = self._dedent(lines[1:])
    return self._format_block(":returns: ", lines) if lines else []


def _property(self: NumpyDocstring) -> list[str]:
    lines = list(self._lines)
    self._lines.clear()
    return lines


def setup(app: Sphinx) -> dict[str, bool]:
    """Replace napoleon's parsers of returns sections and properties."""
    NumpyDocstring._parse_returns_section = _returns
    NumpyDocstring._parse_attribute_docstring = _property
    return {"parallel_read_safe": True}
