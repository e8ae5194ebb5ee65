import torch

import sigmma_sc as sg
from sigmma_sc.reporting.settings import settings_of


def test_settings_name_seed_versions_and_options(run):
    sdata, model = run
    found = settings_of(model, model.setup, sdata["table"], "sigmma-sc train x")
    assert found["command"] == "sigmma-sc train x"
    assert found["seed"] == "0"
    assert found["tile_size"] == "64"
    assert found["option n_latent"] == "8"
    assert torch.__version__.startswith(found["torch"])
    assert found["sigmma-sc"] == sg.__version__
    assert "command" not in settings_of(model, model.setup, sdata["table"], None)
