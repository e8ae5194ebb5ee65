"""Pictures that are stored with the repository: in full colour, since a palette merges colours that a legend tells apart."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
FULL = {"RGB", "RGBA"}
RENEWED = ("another_scanner", "benchmark", "quick_start", "several_slides")
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


@pytest.mark.parametrize("name", ["architecture.png", "demo.png"])
def test_figures_of_the_site_have_all_their_colours(name):
    assert Image.open(ROOT / "docs" / "_static" / name).mode in FULL


def test_a_picture_of_few_colours_is_seen():
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).quantize(8).save(file, "PNG")
    assert palettes([file.getvalue()]) == ["P"]
