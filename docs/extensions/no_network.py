"""Fail the build where a page would load something from another host: the site has to be whole without a network."""

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

LOADED = re.compile(
    r"<(?:script|img|iframe|source|link(?=[^>]*stylesheet))\b[^>]*?\b(?:src|href)=\"((?:https?:)?//[^\"]+)\""
)

logger = logging.getLogger(__name__)


def loaded(page: str) -> list[str]:
    """Addresses of scripts, styles and pictures of other hosts."""
    return LOADED.findall(page)


def _check(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    for path in sorted(Path(app.outdir).rglob("*.html")):
        for address in loaded(path.read_text(encoding="utf-8")):
            logger.warning("%s loads %s, which needs a network.", path.relative_to(app.outdir), address)


def setup(app: Sphinx) -> dict[str, bool]:
    """Look at all pages once they are written."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True}
