"""Examples in docstrings: every public name has one that runs, and prints what it says."""

import copy
import doctest
import inspect
import re
from operator import attrgetter
from pathlib import Path
from types import FunctionType

import pytest

import sigmma_sc as sg
from sigmma_sc import SIGMMA

API = Path(__file__).resolve().parents[1] / "docs" / "api.md"
NOT_RUN = {
    "io.xenium": "needs the output folder of a Xenium run, and its H&E",
    "io.hest": "needs a local copy of HEST-1k",
    "SIGMMA.push_to_hub": "needs a login at the Hugging Face hub",
}
"""Names whose examples nobody can run here, and why."""


def documented() -> list[str]:
    """Names of docs/api.md; the members of SIGMMA; and what else of a public class has an example."""
    page = API.read_text(encoding="utf-8")
    blocks = re.findall(r"\.\. autosummary::\n(.*?)```", page, flags=re.DOTALL)
    names = [name for block in blocks for name in re.findall(r"^   (\w[\w.]*)$", block, flags=re.MULTILINE)]
    members = [
        f"{name}.{member}"
        for name in names
        if isinstance(cls := attrgetter(name)(sg), type)
        for member, value in vars(cls).items()
        if isinstance(value, (FunctionType, classmethod, property, staticmethod)) and not member.startswith("_")
        if cls is SIGMMA or ">>>" in (value.__doc__ or "")
    ]
    return names + members + re.findall(r"\.\. automodule:: sigmma_sc\.(\w+)", page)


@pytest.fixture(scope="session")
def tissue(trained, tmp_path_factory):
    """Another object of the same elements, with embeddings and niches, and the model on it."""
    from spatialdata import SpatialData

    sdata, model = trained
    own = SpatialData(
        images=dict(sdata.images),
        shapes=dict(sdata.shapes),
        tables={name: table.copy() for name, table in sdata.tables.items()},
        attrs=copy.deepcopy(dict(sdata.attrs)),
    )
    folder = tmp_path_factory.mktemp("docstrings")
    model.save(folder / "model")
    model = SIGMMA.load(folder / "model", own, cache_dir=model.data.cache_dir)
    model.write_embeddings()
    sg.tl.niches(own["table"])
    return own, model


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """A folder to write in, no windows, no progress bars, which doctest takes for output; and no registrations left behind."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    import rich

    from sigmma_sc.benchmark import METHODS
    from sigmma_sc.encoders import registry
    from sigmma_sc.tissue.split import SPLITS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(rich.get_console(), "quiet", True)
    backend, methods, splits = mpl.get_backend(), dict(METHODS), dict(SPLITS)
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)
    for changed, before in ((METHODS, methods), (SPLITS, splits)):
        changed.clear()
        changed.update(before)


def examples_of(name: str, names: dict) -> doctest.DocTest | None:
    """The examples of a name; None if it has none."""
    found = doctest.DocTestFinder(recurse=False).find(attrgetter(name)(sg), name, module=False, globs=names)
    return found[0] if found and found[0].examples else None


def skipped(example: doctest.Example) -> bool:
    return example.options.get(doctest.SKIP, False)


@pytest.mark.parametrize("name", documented())
def test_every_public_name_has_an_example_that_runs(name):
    test = examples_of(name, {})
    assert test is not None, f"{name} has no example. Write one, the last section of its docstring."
    runs = not all(skipped(example) for example in test.examples)
    assert runs or name in NOT_RUN, f"All examples of {name} are skipped. Let one run, or say in NOT_RUN why none can."
    assert not runs or name not in NOT_RUN, f"An example of {name} runs. Take it out of NOT_RUN."


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in documented() if name not in NOT_RUN])
def test_examples_print_what_they_say(name, tissue, quiet):
    import numpy as np

    sdata, model = tissue
    names = {"sg": sg, "SIGMMA": SIGMMA, "sdata": sdata, "model": model, "adata": sdata["table"], "np": np}
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(examples_of(name, names), out=said.append).failed == 0, "".join(said)


@pytest.mark.parametrize("name", documented())
def test_summaries_are_whole(name):
    """Tables of the documentation show the first sentence, which ends at a full stop: that of "Fig. 3" too, not that of "et al."."""
    first = " ".join(inspect.getdoc(attrgetter(name)(sg)).split("\n\n")[0].split())
    summary = re.split(r"(?<=\.)(?<!et al\.) ", first)[0]
    assert summary.endswith(".")
    assert summary.count("(") == summary.count(")"), summary


def test_tables_of_the_page_leave_signatures_out():
    """Sphinx cuts a long signature in the middle; the page of each name has the whole."""
    page = API.read_text(encoding="utf-8")
    assert (
        page.count(".. autosummary::\n   :toctree: generated\n   :nosignatures:\n")
        == page.count(".. autosummary::")
        > 10
    )


def test_names_are_read_from_the_page():
    names = documented()
    assert {"SIGMMA", "SIGMMA.train", "metrics.seam_ratio", "benchmark.run", "errors"} <= set(names)
    assert len(names) == len(set(names))
    assert set(NOT_RUN) <= set(names)
