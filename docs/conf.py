"""Sphinx configuration. Builds offline: `sphinx-build -W --keep-going -b html docs docs/_build/html`."""

import os
import shutil
import sys
import warnings
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

from docstrings import short_type  # noqa: E402

# sphinx-autodoc-typehints calls what Sphinx 10 will drop; that is for its authors to mend.
warnings.filterwarnings("ignore", category=DeprecationWarning, module="sphinx_autodoc_typehints")

project = "sigmma-sc"
author = "The sigmma-sc developers"
copyright = f"2026, {author}"
release = version = installed("sigmma-sc")

extensions = [
    "myst_nb",
    "docstrings",
    "encoder_table",
    "layer_list",
    "mathml",
    "no_network",
    "options_list",
    "own_names",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "jupyter_execute", "**/.ipynb_checkpoints"]

# Docstrings
autosummary_generate = True
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # sphinx-autodoc-typehints writes them
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
typehints_defaults = "braces"
typehints_document_rtype_none = False
always_use_bars_union = True
typehints_formatter = short_type

# Pages and notebooks
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # .ci/run executes the notebooks
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_math_renderer = "mathml"
html_theme = "sphinx_book_theme"
html_title = "sigmma-sc"
html_theme_options = {"navbar_persistent": []}  # the sidebar has the search
html_static_path = ["_static"]
html_css_files = ["custom.css"]

# Links. The inventories of other projects need a network, so they are read where there is one.
if os.environ.get("READTHEDOCS") or os.environ.get("SIGMMA_DOCS_INTERSPHINX"):
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
        "sklearn": ("https://scikit-learn.org/stable/", None),
        "spatialdata": ("https://spatialdata.scverse.org/en/stable/", None),
        "spatialdata-io": ("https://spatialdata.scverse.org/projects/io/en/stable/", None),
        "squidpy": ("https://squidpy.readthedocs.io/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

suppress_warnings = ["config.cache"]  # typehints_formatter is a function and cannot be cached
nitpicky = True
nitpick_ignore_regex = [
    # Names of other projects link when their inventories are read; offline nobody can resolve them, and some
    # inventories list a name only under another path than the one it is defined at. Our own names are never ignored:
    # extensions/own_names.py looks each of them up.
    (
        r"py:.*",
        r"Ellipsis|(abc|anndata|collections|distributed|lightning|matplotlib|np|numpy|os|pandas|pathlib|pd|scanpy|scipy|scvi|sklearn|spatialdata"
        r"|spatialdata_io|squidpy|timm|torch|typing|xarray)\..*",
    ),
]


TUTORIALS = {
    "quick_start": "the whole job on simulated tissue, in two minutes and without a download",
    "paad_niches": "a Xenium section, from the registration check to niches at three scales and their genes",
    "another_scanner": "an H&E without an alignment, put on its cells and certified",
    "several_slides": "five sections in one object: training, testing on the fifth, niches across them, labels from slide to slide",
    "from_he_alone": "expression and niches of tissue without transcripts, and how right they were",
    "own_encoder_and_cells": "UNI and others by name, from a file, a module of your own; scVI and others for the cells",
    "benchmark": "methods compared on your slide, with intervals",
    "big_slides": "features by Dask or torchrun, training that survives a kill",
}
INDEX = """# Tutorials

Notebooks, run from top to bottom by CI. Those on real tissue read stores that you make of public data; the others need no download.

{list}

```{{toctree}}
:hidden:

{names}
```
"""


def copy_tutorials() -> None:
    """Bring the notebooks of ../tutorials under this folder, where Sphinx can read them."""
    target = HERE / "tutorials"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    notebooks = sorted((HERE.parent / "tutorials").glob("*.ipynb"))
    for notebook in notebooks:
        shutil.copy(notebook, target)
    names = sorted((path.stem for path in notebooks), key=lambda name: (*TUTORIALS, name).index(name))
    lines = [f"- {{doc}}`{name}`: {TUTORIALS[name]}" for name in names]
    (target / "index.md").write_text(INDEX.format(list="\n".join(lines), names="\n".join(names)))


copy_tutorials()
