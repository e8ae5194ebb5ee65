"""The directive ``layer-list``: the layers of the import-linter contract in pyproject.toml, read when the documentation is built."""

import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def layers(project: Path = PROJECT) -> list[list[str]]:
    """Rooms of each layer, from the top."""
    contracts = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (contract,) = (one for one in contracts if one["type"] == "layers")
    return [layer.replace(" ", "").split("|") for layer in contract["layers"]]


class LayerList(SphinxDirective):
    """A numbered list of layers."""

    def run(self) -> list[nodes.Node]:
        """Write the list in Markdown and have it parsed."""
        self.env.note_dependency(str(PROJECT))
        lines = [f"{k}. {', '.join(f'`{room}`' for room in rooms)}" for k, rooms in enumerate(layers(), start=1)]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the directive known."""
    app.add_directive("layer-list", LayerList)
    return {"parallel_read_safe": True}
