"""Look up names of this package that have no page under the path they are written with.

A class is documented where users import it (``sigmma_sc.ImageEncoder``) but annotated by where it is defined
(``sigmma_sc.encoders.encoder.ImageEncoder``): link it to its page. An internal name has no page: show it without a link if it
exists. A name that does not exist still fails a nitpicky build.
"""

import sys
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode


def _find(target: str, home: str | None) -> Any:
    """The object that a dotted name means, absolute or as written in module ``home``; None if there is none."""
    loaded = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "sigmma_sc"}
    roots = [(loaded[name], target[len(name) + 1 :]) for name in loaded if target.startswith(f"{name}.")]
    roots += [(module, target) for name, module in loaded.items() if home and name.startswith(home)]
    roots += [(loaded["sigmma_sc.errors"], target)]
    for found, path in roots:
        try:
            for part in path.split("."):
                found = getattr(found, part)
        except AttributeError:
            continue
        return found
    return None


def _resolve(app: Sphinx, env: Any, node: nodes.Element, text: nodes.TextElement) -> nodes.Node | None:
    if node.get("refdomain") != "py":
        return None
    found = _find(node["reftarget"], node.get("py:module"))
    if found is None:
        return None
    last = node["reftarget"].split(".")[-1]
    for name, entry in env.domains.python_domain.objects.items():
        if name.split(".")[-1] == last and _find(name, None) is found:
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, text, name)
    return text


def setup(app: Sphinx) -> dict[str, bool]:
    """Be asked about every name that was not found."""
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True}
