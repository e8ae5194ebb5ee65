import pytest
import torch
from torch import nn

from sigmma_sc import SIGMMA, ImageEncoder
from sigmma_sc.errors import EncoderError, NotTrainedError, SetupError
from sigmma_sc.tissue.split import Blocks

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "batch_size": 32}


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.crops = 0

    def forward(self, x):
        self.crops += len(x)
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"precision": "bf16-true"}, SetupError, "precision='bf16-true' is not one of"),
        ({"precision": "float16"}, SetupError, "precision='float16'"),
        ({"weight_decay": -1.0}, SetupError, "weight_decay=-1.0 must be 0 or more"),
        ({"split": "bloks"}, SetupError, "split='bloks' is not one of"),
        ({"split": Blocks()}, SetupError, "must be a name. Call sg.register_split and pass 'blocks'"),
        ({"max_epochs": 2.5}, SetupError, "max_epochs=2.5 must be a whole number"),
        ({"max_epoch": 5}, SetupError, "max_epoch"),
        ({"strategy": "dpp"}, ValueError, "dpp"),
        ({"ckpt_path": "last"}, KeyError, "Give checkpoint_dir"),
    ],
)
def test_what_cannot_be_is_refused_before_a_crop_is_encoded(tiny, arguments, error, words):
    module = Counting()
    model = SIGMMA(tiny, ImageEncoder(module, name="counting", input_size=16), n_latent=8)
    done = module.crops
    with pytest.raises(error, match=words):
        model.train(**{"max_epochs": 1, "split": "none", **QUIET, **arguments})
    with pytest.raises(NotTrainedError):
        model.evaluate_retrieval()
    assert module.crops == done


def network(seed=0):
    torch.manual_seed(seed)
    blocks = [nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.GELU()), nn.Sequential(nn.Conv2d(8, 12, 3, 2), nn.GELU())]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 12)]
    return ImageEncoder(nn.Sequential(*blocks, *pool), name="net", input_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_arguments_of_training_an_encoder_that_is_frozen(tiny):
    model = SIGMMA(tiny, network(), n_latent=16)
    for argument in ({"encoder_lr": 1e-5}, {"augment": True}, {"chunk_size": 4}):
        with pytest.raises(SetupError, match=f"{next(iter(argument))}=.*regime='lora'"):
            model.train(**argument)
    with pytest.raises(EncoderError, match="no weights to train"):
        SIGMMA(tiny, "stain-stats", regime="full")
