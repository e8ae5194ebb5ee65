import numpy as np
import pytest
import torch

from sigmma_sc import SIGMMA
from sigmma_sc.baselines import BLEEP, CLIP
from sigmma_sc.baselines.bleep import soft_target_loss
from sigmma_sc.datasets import simulate_tissue
from sigmma_sc.encoders.text import GeneSentenceTower, PretrainedText, ranked_genes
from sigmma_sc.errors import EncoderError, NotTrainedError, SetupError


@pytest.fixture(scope="module")
def slide():
    sdata = simulate_tissue(n_cells=1000, seed=0)
    SIGMMA.setup_spatialdata(sdata, tile_size=64)
    return sdata


@pytest.mark.slow
@pytest.mark.parametrize("method", [BLEEP, CLIP])
def test_leaves_chance_behind(slide, method, tmp_path):
    model = method(slide, "stain-stats")
    model.train(max_epochs=40, split="none", enable_progress_bar=False)
    table = model.evaluate_retrieval(split="train")
    assert set(table.scale) == {"macro"}
    assert (table["recall@5%"] > 3 * table["chance@5%"]).all()
    if method is CLIP:
        last = {k: v.iloc[-1, 0] for k, v in model.history.items()}
        assert last["train_loss_macro"] < 0.8 * last["train_ln_batch"]
    model.save(tmp_path / "model")
    loaded = method.load(tmp_path / "model", slide)
    for modality in ("image", "transcriptome"):
        a, b = (m.get_tile_representation(modality=modality).X for m in (model, loaded))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "switch", [{"cells": "graph"}, {"standardise": "slide"}, {"cell_covariates": True}, {"objective": "mine"}]
)
def test_what_a_published_method_does_not_have_is_refused(slide, switch):
    with pytest.raises(SetupError, match=f"{next(iter(switch))}=.* is not for BLEEP"):
        BLEEP(slide, "stain-stats", **switch)


def test_bleeps_loss_is_its_formula(rng):
    image, genes = rng.normal(size=(2, 6, 4))
    softmax = lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)  # noqa: E731
    for tau in (1.0, 0.5):
        targets = softmax((image @ image.T + genes @ genes.T) / 2 * tau)
        logits = genes @ image.T / tau
        loss = 0.0
        for i in range(6):
            loss -= (targets[i] * np.log(softmax(logits)[i])).sum() / 12
            loss -= (targets[:, i] * np.log(softmax(logits.T)[i])).sum() / 12
        got = soft_target_loss(torch.from_numpy(image), torch.from_numpy(genes), tau)
        assert got.item() == pytest.approx(loss, rel=1e-12)


def test_published_values_are_the_defaults(slide):
    model = BLEEP(slide, "stain-stats")
    assert (model.config.n_latent, model.config.dropout, model.config.temperature) == (256, 0.1, 1.0)
    assert BLEEP.published == {"lr": 1e-3, "weight_decay": 1e-3}
    assert repr(model).startswith("BLEEP (not trained)")
    assert "cells: pooled genes" in repr(model)


def test_text_towers_are_had_before_any_compute(slide, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SetupError, match="text='nope' is not one of 'genes', 'clip', 'plip', 'omiclip'"):
        CLIP(slide, "stain-stats", text="nope")
    with pytest.raises(EncoderError, match="'omiclip' cannot be fetched.*ask for access.*and pass text_weights=path"):
        CLIP(slide, "stain-stats", text="omiclip")
    with pytest.raises(EncoderError, match="'no.pt' is no file"):
        CLIP(slide, "stain-stats", text="plip", text_weights="no.pt")
    torch.save({"text_model.x": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(EncoderError, match="do not fit 'text tower of clip'"):
        CLIP(slide, "stain-stats", text="clip", text_weights=str(tmp_path / "w.pt"))
    with pytest.raises(SetupError, match="text_weights='no.pt' goes with text='clip'"):
        CLIP(slide, "stain-stats", text_weights="no.pt")


def test_a_pretrained_text_tower_reads_the_panel_and_stays_as_it_came(slide, encoder, monkeypatch):
    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(50_000, 4)

        def forward(self, tokens):
            return self.words(tokens).mean(1)

    state = torch.get_rng_state()
    monkeypatch.setattr(
        "sigmma_sc.baselines.clip.text_tower", lambda name, weights, genes: PretrainedText(Tower(), genes, 4)
    )
    model = CLIP(slide, encoder(), n_latent=8, text="clip")
    assert torch.equal(torch.get_rng_state(), state)
    before = model._text.module.words.weight.clone()
    model.train(max_epochs=2, split="none", enable_progress_bar=False)
    trained = model.module.gene_head[0]
    assert trained.names == model.data.node_features.genes
    assert not torch.equal(trained.module.words.weight, before)
    assert torch.equal(model._text.module.words.weight, before)


def test_sentences_name_the_most_expressed_genes():
    genes = torch.tensor([[0.0, 3.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]])
    order, said = ranked_genes(genes, 3)
    assert order[0].tolist() == [1, 3, 2]
    assert said.tolist() == [[True, True, True], [False] * 3, [True, False, False]]
    text = PretrainedText(torch.nn.Identity(), ["KRT7", "CD3E", "INS", "VIM"], 4)
    assert text.sentences(genes) == ["CD3E VIM INS", "", "INS"]
    tokens = text(genes)
    assert tokens.shape == (3, 77)
    assert text.tokenise.decode(tokens[0].tolist()).startswith("<start_of_text>cd 3 e vim ins <end_of_text>")


def test_the_sentence_tower_reads_the_order_and_no_padding():
    torch.manual_seed(0)
    tower = GeneSentenceTower(6).eval()
    genes = torch.tensor([[5.0, 4.0, 0.0, 0.0, 0.0, 0.0], [4.0, 5.0, 0.0, 0.0, 0.0, 0.0]])
    a, b = tower(genes)
    assert (a - b).abs().max() > 1e-4
    # What is not expressed is not said, whatever word stands there.
    with torch.no_grad():
        tower.words.weight[2:] += 10
    torch.testing.assert_close(tower(genes)[0], a)
    assert torch.isfinite(tower(torch.zeros(1, 6))).all()


def test_a_saved_baseline_is_loaded_by_its_own_class(slide, encoder, tmp_path):
    bleep = BLEEP(slide, encoder(), n_latent=8)
    bleep.train(1, 32, "none", enable_progress_bar=False)
    bleep.save(tmp_path / "bleep")
    with pytest.raises(SetupError, match=r"holds a BLEEP, not a SIGMMA\. Load it with BLEEP\.load\(\)"):
        SIGMMA.load(tmp_path / "bleep", slide)
    again = BLEEP.load(tmp_path / "bleep", slide, encoder())
    np.testing.assert_array_equal(again.get_tile_representation().X, bleep.get_tile_representation().X)


def test_nothing_is_moved_before_training(slide):
    with pytest.raises(NotTrainedError):
        BLEEP(slide, "stain-stats", n_latent=8).to_device("cpu")
