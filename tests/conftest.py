import os
import subprocess
import sys
import warnings
from pathlib import Path

# Workers of `pytest -n` share the cores, and threads that wait for a core spin: read when numpy, torch and numba are imported.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")
if numba := sys.modules.get("numba"):  # imported before by another package's plugin: it cannot be told another number
    os.environ["NUMBA_NUM_THREADS"] = str(numba.config.NUMBA_NUM_THREADS)
# Results are the same to the last bit on a CPU alone. Name a device in the environment to run the tests on it.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

# The same examples in every run: a property that fails does so for whoever runs the tests next.
hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("same")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Fresh networks draw their weights from torch's global state: the same ones, whatever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def torch_on_the_cpu():
    """Many tests compare features with those of torch, to the last bit. Tests of ONNX Runtime ask for it."""
    from sigmma_sc import settings

    settings.cpu_runtime = "torch"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A small simulated slide and a model trained on it for a few epochs; tests must not change either."""
    from sigmma_sc import SIGMMA
    from sigmma_sc.datasets import simulate_tissue

    sdata = simulate_tissue(n_cells=5000, seed=0)
    SIGMMA.setup_spatialdata(sdata)
    model = SIGMMA(sdata, n_latent=64, seed=0, cache_dir=tmp_path_factory.mktemp("features"))
    model.train(max_epochs=120, lr=3e-3, batch_size=64, enable_progress_bar=False)
    return sdata, model


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Build a development data set by name, once a session, or take it from SIGMMA_STORES."""
    data = Path(os.environ.get("SIGMMA_DATA", ROOT.parent / "shared" / "data"))
    if not (data / "build.py").exists():
        pytest.skip(f"the development tissue is not at {data}; set SIGMMA_DATA")
    folder = Path(os.environ.get("SIGMMA_STORES") or tmp_path_factory.mktemp("real"))

    def build(name):
        import spatialdata

        store = folder / f"{name}.zarr"
        if not store.exists():
            subprocess.run([sys.executable, data / "build.py", name, store], check=True, cwd=folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return spatialdata.read_zarr(store)

    return build


@pytest.fixture(scope="session")
def mobilenet():
    weights = Path(os.environ.get("SIGMMA_WEIGHTS", ROOT.parent / "shared" / "weights")) / "mobilenetv2_100.safetensors"
    if not weights.exists():
        pytest.skip(f"the pretrained encoder is not at {weights}; set SIGMMA_WEIGHTS")
    from sigmma_sc import ImageEncoder

    return ImageEncoder.from_timm(
        "mobilenetv2_100", weights=weights, input_size=112, mean=(0.5,) * 3, std=(0.5,) * 3, pad_type="same"
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def mean_encoder(gain=1.0, input_size=16, std=(1.0, 1.0, 1.0)):
    """Six numbers a crop, in no time; ``gain`` makes another encoder of it."""
    import torch

    from sigmma_sc import ImageEncoder

    class MeanAndSpread(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(gain))

        def forward(self, x):
            return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1) * self.gain

    return ImageEncoder(MeanAndSpread(), name="mean", input_size=input_size, mean=(0.0, 0.0, 0.0), std=std)


@pytest.fixture(scope="session")
def encoder():
    return mean_encoder


@pytest.fixture(scope="session")
def tiny():
    """A simulated slide of some hundred tiles of 64 µm; tests must not change it."""
    from sigmma_sc import SIGMMA
    from sigmma_sc.datasets import simulate_tissue

    sdata = simulate_tissue(n_cells=1500, seed=0)
    SIGMMA.setup_spatialdata(sdata, tile_size=64)
    return sdata
