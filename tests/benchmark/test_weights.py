"""Weights of every method are had before any work, those of its defaults too."""

import pytest

from sigmma_sc.benchmark import MethodSpec, run
from sigmma_sc.benchmark.runner import _arguments_of
from sigmma_sc.errors import EncoderError

DATA = {"a": {"simulate": {"n_cells": 900, "seed": 0}, "setup": {"tile_size": 64}}}


@pytest.mark.parametrize(
    ("method", "encoder", "text"),
    [
        ("plip", "plip", "plip"),
        ("omiclip", "omiclip", "omiclip"),
        ("clip", "clip", "clip"),
        ("gene-sentence", "clip", "genes"),
        ("bleep", "resnet50", None),
        ("sigmma-macro", "stain-stats", None),
        ("random", None, None),
    ],
)
def test_what_a_method_takes_by_itself(method, encoder, text):
    found = _arguments_of(MethodSpec(method=method, arguments={"text_weights": "w.pt"}))
    assert found.get("image_encoder") == encoder
    assert found.get("text") == text
    assert found["text_weights"] == "w.pt"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("plip", "'plip' cannot be fetched.*sg.get_encoder"),
        ("bleep", "'resnet50' cannot be fetched"),
        ({"method": "omiclip", "encoder": "stain-stats"}, "'omiclip' cannot be fetched.*text_weights=path"),
        ({"method": "clip", "encoder": "stain-stats", "arguments": {"text_weights": "no.pt"}}, "no.pt' is no file"),
    ],
)
def test_weights_that_cannot_be_had_are_told_before_any_work(method, words, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(EncoderError, match=words):
        run({"datasets": DATA, "methods": ["random", method], "seeds": [0]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
