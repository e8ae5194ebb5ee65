"""Extensions of the documentation that do without a build."""

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from sigmma_sc import SIGMMA, Config

EXTENSIONS = Path(__file__).parents[1] / "docs" / "extensions"
pytest.importorskip("sphinx", reason="needs the extra docs")


@pytest.fixture(autouse=True)
def extensions(monkeypatch):
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    yield
    for name in ("mathml", "no_network", "options_list"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "element",
    [
        '<script defer="defer" src="https://cdn.example/mathjax.js"></script>',
        '<link rel="stylesheet" type="text/css" href="https://cdn.example/a.css" />',
        '<link href="//cdn.example/a.css" rel="stylesheet">',
        '<img alt="x" src="http://example.org/x.png">',
    ],
)
def test_what_needs_a_network_is_seen(element):
    from no_network import loaded

    assert len(loaded(f"<p>{element}</p>")) == 1


@pytest.mark.parametrize(
    "element",
    [
        '<a href="https://arxiv.org/abs/2511.15464">paper</a>',
        '<script src="_static/a.js"></script>',
        '<link rel="index" href="https://example.org/genindex.html">',
        '<img src="_images/x.webp">',
        "&lt;script src=&quot;https://cdn.example/a.js&quot;&gt;",
    ],
)
def test_links_and_own_files_need_none(element):
    from no_network import loaded

    assert loaded(element) == []


def test_every_option_has_a_text_on_the_page_of_the_model():
    from options_list import _expand

    lines = (SIGMMA.__doc__ or "").splitlines()
    lines = [line.removeprefix("    ") for line in lines]
    _expand(None, "class", "sigmma_sc.SIGMMA", SIGMMA, None, lines)
    assert "**options" not in lines
    named = {line for line in lines if line.isidentifier()}
    assert {field.name for field in fields(Config)} <= named
    start = lines.index("n_neighs")
    assert lines[start + 1].startswith("    *Default* ``6``. Number of nearest neighbours")


def test_an_equation_that_cannot_be_read_names_itself():
    from docutils import nodes
    from mathml import _mathml
    from sphinx.errors import ExtensionError

    fraction = _mathml(nodes.math("", r"\frac{1}{2}"), as_block=False)
    assert fraction.startswith("<math")
    assert "<mfrac>" in fraction
    with pytest.raises(ExtensionError, match="frac"):
        _mathml(nodes.math("", r"\frac{1}"), as_block=False)
