"""Options that travel as ``**options``: on the page of a class each of them stands with the named parameters.

They are the fields of :class:`sigmma_sc.Config`, and the text and the default of each are read from there.
"""

import inspect
from dataclasses import fields
from typing import Any

from sphinx.application import Sphinx

from sigmma_sc.config import Config


def field_texts() -> dict[str, list[str]]:
    """Lines of the description of each field."""
    lines = inspect.cleandoc(Config.__doc__ or "").splitlines()
    start = lines.index("Attributes") + 2
    texts: dict[str, list[str]] = {}
    name = ""
    for line in lines[start : lines.index("Raises")]:
        if line and not line.startswith(" "):
            name = line
            texts[name] = []
        elif line:
            texts[name].append(line.strip())
    return texts


def parameters(named: set[str]) -> list[str]:
    """The fields that are not named parameters of a class already, as lines of a numpy docstring."""
    texts = field_texts()
    lines: list[str] = []
    for field in fields(Config):
        if field.name not in named:
            first, *rest = texts[field.name]
            lines += [field.name, f"    *Default* ``{field.default!r}``. {first}", *(f"    {line}" for line in rest)]
    return lines


def _expand(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what != "class" or "**options" not in lines:
        return
    start = lines.index("**options")
    stop = start + 1
    while lines[stop].startswith(" "):
        stop += 1
    lines[start:stop] = parameters(set(inspect.signature(obj).parameters))


def setup(app: Sphinx) -> dict[str, bool]:
    """Expand a docstring before napoleon (priority 500) reads it."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _expand, priority=400)
    return {"parallel_read_safe": True}
