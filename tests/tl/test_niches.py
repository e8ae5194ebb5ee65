import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import sigmma_sc as sg
from sigmma_sc.errors import MissingKeyError, SetupError

FRESH = """
import sys
import numpy as np
import pandas as pd
from anndata import AnnData
import sigmma_sc as sg
from numba.core import event

compiled = event.RecordingListener()
event.register("numba:compile", compiled)
rng = np.random.default_rng(0)
adata = AnnData(obs=pd.DataFrame(index=np.arange(9000).astype(str)))
adata.obsm["X_sigmma_meso"] = (rng.normal(size=(9000, 16)) + 9 * np.eye(16)[np.arange(9000) % 3]).astype(np.float32)
sg.tl.niches(adata, ["meso"], resolution=0.05)
print(adata.obs["sigmma_niche_meso"].nunique(), len(compiled.buffer))
print(*[name for name in ("pynndescent", "umap") if name in sys.modules])
"""


def table(embedding):
    adata = AnnData(obs=pd.DataFrame(index=[f"c{k}" for k in range(len(embedding))]))
    adata.obsm["X_sigmma_meso"] = np.asarray(embedding, np.float32)
    return adata


@pytest.fixture
def three(rng):
    """Three groups far apart, 80 cells each, and a cell without an embedding in front."""
    cells = rng.normal(size=(240, 8)) + 20 * np.eye(8)[np.repeat([0, 1, 2], 80)]
    return table(np.concatenate([np.full((1, 8), np.nan), cells]))


def test_groups_far_apart_are_niches(three):
    sg.tl.niches(three, ["meso"], resolution=0.1)
    labels = three.obs["sigmma_niche_meso"]
    assert pd.isna(labels.iloc[0])
    assert list(labels.cat.categories) == ["0", "1", "2"]
    truth = pd.Series(np.repeat([0, 1, 2], 80), index=three.obs_names[1:])
    assert (pd.crosstab(labels.iloc[1:], truth) > 0).sum(axis=1).tolist() == [1, 1, 1]


def test_own_neighbour_graph_and_key_are_left_alone(three):
    three.uns["neighbors"] = {"mine": 1}
    sg.tl.niches(three, ["meso"], key_added="mine")
    assert three.uns == {"neighbors": {"mine": 1}}
    assert not three.obsp
    assert list(three.obs) == ["mine_meso"]


def test_same_labels_each_time(three):
    sg.tl.niches(three, ["meso"], resolution=2, seed=4)
    first = three.obs["sigmma_niche_meso"].copy()
    sg.tl.niches(three, ["meso"], resolution=2, seed=4)
    assert first.equals(three.obs["sigmma_niche_meso"])


def test_refusals(three):
    with pytest.raises(MissingKeyError, match="X_sigmma_micro"):
        sg.tl.niches(three)
    for name, value in (("resolution", 0), ("n_neighbors", 1), ("n_neighbors", 1.5)):
        with pytest.raises(SetupError, match=f"{name}={value}"):
            sg.tl.niches(three, ["meso"], **{name: value})
    with pytest.raises(SetupError, match=r"need 2 cells with an embedding; obsm\['X_sigmma_meso'\] has 1"):
        sg.tl.niches(three[:2].copy(), ["meso"])
    assert not list(three.obs)


def test_a_fresh_process_compiles_nothing_for_many_cells():
    run = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    counts, *imported = run.stdout.splitlines()
    assert counts.split() == ["3", "0"]
    assert imported == [""]
