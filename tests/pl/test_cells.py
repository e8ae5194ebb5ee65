import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from sigmma_sc.errors import SetupError
from sigmma_sc.pl._cells import MISSING, PALETTE, colours_of, each_colour

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "trichromacy": np.eye(3),
}


@pytest.mark.parametrize("vision", VISION)
def test_the_first_ten_colours_differ_for_everyone(vision):
    from skimage.color import deltaE_ciede2000, rgb2lab

    rgb = np.array([mpl.colors.to_rgb(colour) for colour in (*PALETTE, MISSING)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.transpose(VISION[vision])
    seen = np.clip(linear, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
    apart = deltaE_ciede2000(lab[:, None], lab[None])[np.triu_indices(len(lab), 1)]
    assert len(PALETTE) == 10
    assert apart.min() >= 10


def test_colours_are_those_of_the_palette_then_of_the_table_then_ours():
    labels = pd.Series(pd.Categorical(["b", "a", None]), name="type")
    uns = {"type_colors": ["red", "#00ff00"]}
    assert colours_of(labels, uns, {"a": "blue", "b": "k"}) == {"a": "#0000ff", "b": "#000000"}
    assert colours_of(labels, uns) == {"a": "#ff0000", "b": "#00ff00"}
    assert colours_of(labels) == {"a": PALETTE[0], "b": PALETTE[1]}
    assert each_colour(labels, uns) == ["#00ff00", "#ff0000", MISSING]
    with pytest.raises(SetupError, match="no colour for b"):
        colours_of(labels, uns, ["red"])
