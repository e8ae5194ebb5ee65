"""Pretrained text towers at their true shapes, against the library's own call on a checkpoint of random weights."""

import pytest
import torch

from sigmma_sc.encoders.text import text_tower
from sigmma_sc.errors import EncoderError, SetupError

open_clip = pytest.importorskip("open_clip", reason="the extra 'encoders' is not installed")

NAMES = ["KRT7", "CD3E", "INS", "VIM"]
GENES = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, 0.0]])
SENTENCES = ["CD3E VIM INS", "KRT7"]


@torch.no_grad()
def same(tower, expected):
    assert tower.sentences(GENES) == SENTENCES
    got = tower.eval()(GENES)
    assert got.shape == expected.shape == (2, tower.width)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert (got[0] - got[1]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "plip"])
def test_clip(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra 'encoders' is not installed")
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig()).eval()
    model.save_pretrained(tmp_path)
    tokens = open_clip.SimpleTokenizer()(SENTENCES)
    # transformers' own padding is the end of text, and so is the id by which it finds the end.
    own = tokens.clone()
    own[own == 0] = 49407
    model.config.text_config.eos_token_id = 49407
    model.text_model.eos_token_id = 49407
    with torch.no_grad():
        found = model.get_text_features(input_ids=own)
    same(text_tower(name, str(tmp_path), NAMES), getattr(found, "pooler_output", found))


@pytest.mark.slow
def test_omiclip(tmp_path):
    torch.manual_seed(0)
    config = open_clip.get_model_config("coca_ViT-L-14")
    config["vision_cfg"] |= {"layers": 1}
    config["multimodal_cfg"] |= {"layers": 1}
    whole = open_clip.CoCa(**{k: v for k, v in config.items() if k != "custom_text"}).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "checkpoint.pt")
    with torch.no_grad():
        expected = whole.encode_text(open_clip.get_tokenizer("coca_ViT-L-14")(SENTENCES), normalize=False)
    same(text_tower("omiclip", str(tmp_path / "checkpoint.pt"), NAMES), expected)


def test_what_is_no_text_tower(tmp_path):
    with pytest.raises(SetupError, match="text='uni' is not one of"):
        text_tower("uni", None, NAMES)
    torch.save({"text_model.x": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(EncoderError, match="do not fit"):
        text_tower("clip", str(tmp_path / "w.pt"), NAMES)
