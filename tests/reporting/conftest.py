import base64
import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import sigmma_sc as sg

SCALES = ("micro", "meso", "macro")
HOSTILE = "<b>n</b></script>&\"'"


class Page(HTMLParser):
    """Elements, texts and the JSON of a report."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.json = [], [], None
        self._in_data = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in_data = dict(attrs).get("id") == "data"

    def handle_data(self, data):
        if self._in_data:
            self.json = json.loads(data)
            self._in_data = False
        else:
            self.texts.append(data)


def unpacked(array):
    kind = {"u8": np.uint8, "u16": "<u2", "u32": "<u4"}[array["type"]]
    return np.frombuffer(base64.b64decode(array["data"]), kind)


@pytest.fixture(scope="session")
def page_of():
    return Page


@pytest.fixture(scope="session")
def decode():
    return unpacked


@pytest.fixture(scope="session")
def run(encoder):
    """A slide with niches, and the model trained on it; names of niches, genes and cell types are markup."""
    sdata = sg.datasets.simulate_tissue(n_cells=700, seed=0, microns_per_pixel=1.0)
    table = sdata["table"]
    table.var_names = [f"{HOSTILE}{k}" if k < 2 else name for k, name in enumerate(table.var_names)]
    table.obs["kind"] = table.obs["cell_type"].cat.rename_categories({"tumor": HOSTILE})
    sg.SIGMMA.setup_spatialdata(sdata, tile_size=64)
    model = sg.SIGMMA(sdata, encoder(), n_latent=8)
    model.train(max_epochs=1, enable_progress_bar=False)
    model.write_embeddings(n_offsets=1)
    rng = np.random.default_rng(0)
    for k, scale in enumerate(SCALES):
        codes = table.obs["niche"].cat.codes.to_numpy() % (5 - k)
        codes[: 7 * k] = -1
        names = [HOSTILE, *map(str, range(1, 5 - k))]
        table.obs[f"sigmma_niche_{scale}"] = pd.Categorical.from_codes(codes, names)
        confidence = rng.random(table.n_obs).astype(np.float32)
        table.obs[f"sigmma_niche_{scale}_confidence"] = np.where(codes < 0, np.float32(np.nan), confidence)
    return sdata, model
