"""The directive ``encoder-table``: the registry of image encoders as a table, read when the documentation is built."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from sigmma_sc.encoders.registry import REGISTRY, Entry

COLUMNS = (
    "Name",
    "Library, network",
    "Dimension",
    "Input, px",
    "Pooling",
    "Mean; standard deviation",
    "Terms",
    "Citation",
)


def _row(name: str, entry: Entry) -> list[str]:
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (entry.mean, entry.std))
    link = f"[{entry.licence}]({entry.page})" if entry.page.startswith("https:") else entry.licence
    return [
        f"`{name}`",
        f"{entry.source}: {entry.architecture}",
        str(entry.dim),
        str(entry.input_size),
        entry.pooling,
        f"{mean}; {std}",
        link + (", gated" if entry.gated else ""),
        entry.citation,
    ]


class EncoderTable(SphinxDirective):
    """A table of every registered encoder."""

    def run(self) -> list[nodes.Node]:
        """Write the table in Markdown and have it parsed."""
        rows = [COLUMNS, ["---"] * len(COLUMNS), *(_row(name, entry) for name, entry in REGISTRY.items())]
        return self.parse_text_to_nodes("\n".join(f"| {' | '.join(row)} |" for row in rows))


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the directive known."""
    app.add_directive("encoder-table", EncoderTable)
    return {"parallel_read_safe": True}
