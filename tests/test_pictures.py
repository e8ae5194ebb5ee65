"""Pictures that are stored with the repository: in full colour, since a palette merges colours that a legend tells apart."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

import sigmma_sc as sg

ROOT = Path(__file__).parents[1]
FULL = {"RGB", "RGBA"}
RENEWED = ("another_scanner", "benchmark", "paad_niches", "quick_start", "several_slides")
"""Tutorials whose stored figures are all in full colour. The list may only become longer."""


def stored(notebook):
    """Pictures among the outputs of a notebook, as bytes."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            for kind, data in output.get("data", {}).items():
                if kind in ("image/png", "image/jpeg", "image/webp"):
                    yield base64.b64decode("".join(data))


def palettes(pictures):
    return [mode for mode in (Image.open(io.BytesIO(one)).mode for one in pictures) if mode not in FULL]


@pytest.mark.parametrize("name", RENEWED)
def test_figures_of_a_tutorial_have_all_their_colours(name):
    pictures = list(stored(ROOT / "tutorials" / f"{name}.ipynb"))
    assert pictures
    assert palettes(pictures) == []


@pytest.mark.parametrize("name", ["architecture.png", "demo.png", "tile_sizes.webp"])
def test_figures_of_the_site_have_all_their_colours(name):
    assert Image.open(ROOT / "docs" / "_static" / name).mode in FULL


def test_every_plot_has_a_picture_and_a_place_in_the_gallery():
    files = sorted((ROOT / "docs" / "_static" / "pl").iterdir())
    assert [path.name for path in files] == sorted(f"{name}.webp" for name in sg.pl.__all__)
    assert palettes([path.read_bytes() for path in files]) == []
    assert sum(path.stat().st_size for path in files) < 1_200_000
    gallery = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for name in sg.pl.__all__:
        assert f"_static/pl/{name}.webp" in gallery, name
        assert f":pyobject: {name}\n" in gallery, name


def test_a_picture_of_few_colours_is_seen():
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).quantize(8).save(file, "PNG")
    assert palettes([file.getvalue()]) == ["P"]
