import logging

import pytest
import torch

from sigmma_sc import SIGMMA
from sigmma_sc.train import device as module
from sigmma_sc.train.device import autocast_type, chunk_of, describe_device, precision_of

CPU = torch.device("cpu")
QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "batch_size": 32}


class Options:
    def __init__(self, precision):
        self.precision = precision
        self.accelerator = "cpu"
        self.devices = "auto"


@pytest.mark.parametrize(
    ("asked", "hardware", "expected"),
    [("auto", True, "bf16-mixed"), ("auto", False, "32-true"), ("16-mixed", True, "16-mixed"), (32, True, "32")],
)
def test_precision(asked, hardware, expected, monkeypatch):
    monkeypatch.setattr(module, "has_bfloat16", lambda device: hardware)
    assert precision_of(Options(asked)) == expected


def test_types_of_autocast():
    kinds = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16": torch.float16, "16-mixed": torch.float16}
    for precision, kind in kinds.items():
        assert autocast_type(precision) == kind
    assert autocast_type("32-true") == autocast_type("32") == torch.float32


def test_chunks_by_device(monkeypatch):
    class Encoder:
        crop_sizes = (8, 16)
        encoder = "network"

        def to(self, device):
            assert device.type == "cuda"

    monkeypatch.setattr(module, "free_memory", lambda device: 1000)
    monkeypatch.setattr(module, "crops_in_memory", lambda *given: given)
    assert chunk_of(Encoder(), CPU, "32-true") == 4
    assert chunk_of(Encoder(), torch.device("mps"), "32-true") == 16
    # The largest crops decide.
    assert chunk_of(Encoder(), torch.device("cuda", 0), "32-true") == ("network", 16, 1000)


def test_what_was_chosen_is_said_once(tiny, encoder, caplog, monkeypatch):
    monkeypatch.setattr(module, "_told", set())
    data = SIGMMA(tiny, encoder()).data
    with caplog.at_level(logging.INFO, "sigmma_sc"):
        for _ in range(2):
            describe_device(CPU, "32-true", data, None)
        describe_device(torch.device("mps"), "16-mixed", data, 8)
    assert caplog.messages == [
        "Training on the CPU: precision 32-true, features of the image encoder in float32",
        "Training on mps: precision 16-mixed, features of the image encoder in float32, 8 crops at once",
    ]


@pytest.mark.parametrize(
    ("precision", "single"), [("auto", False), ("32-true", True), (32, True), ("bf16-mixed", False)]
)
def test_precision_of_training_is_that_of_the_features(tiny, encoder, precision, single, tmp_path):
    model = SIGMMA(tiny, encoder(), n_latent=8)
    model.train(max_epochs=1, split="none", precision=precision, **QUIET)
    assert model.data.single_precision is single
    model.save(tmp_path / "model")
    assert SIGMMA.load(tmp_path / "model", tiny, encoder()).data.single_precision is single
