import pytest
import torch
from torch import nn

from sigmma_sc import ImageEncoder
from sigmma_sc.errors import EncoderError, MemoryWarning
from sigmma_sc.nn.chunks import features_in_chunks
from sigmma_sc.nn.trainable import TrainableEncoder


class Limited(nn.Module):
    """Memory for some crops alone, and for fewer with a gradient."""

    def __init__(self, most, most_with_gradient):
        super().__init__()
        self.linear = nn.Linear(48, 5).double()
        self.most, self.most_with_gradient = most, most_with_gradient

    def forward(self, x):
        if len(x) > (self.most_with_gradient if torch.is_grad_enabled() else self.most):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.linear(x.flatten(1)).tanh()


def encoder_of(most, most_with_gradient):
    torch.manual_seed(0)
    encoder = ImageEncoder(Limited(100, 100), "net", 4, dim=5).double()
    encoder.features = lambda crops: encoder.module(crops.double() / 255)
    encoder.module.most, encoder.module.most_with_gradient = most, most_with_gradient
    trainable = TrainableEncoder(encoder, (2, 1), (4, 4))
    trainable.chunk_size = 16
    return trainable


def gradient(trainable, tiles):
    features = trainable(tiles)
    (features * torch.arange(5)).square().sum().backward()
    return features.detach(), [p.grad for p in trainable.parameters()]


@pytest.mark.parametrize(("most", "with_gradient", "left"), [(16, 16, 16), (16, 3, 2), (5, 16, 4), (9, 1, 1)])
def test_chunks_are_halved_where_memory_runs_out(rng, most, with_gradient, left, recwarn):
    tiles = torch.from_numpy(rng.integers(0, 256, (7, 3, 8, 8), dtype="uint8"))
    trainable = encoder_of(most, with_gradient)
    features, gradients = gradient(trainable, tiles)
    expected, expected_gradients = gradient(encoder_of(100, 100), tiles)
    torch.testing.assert_close(features, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-12)
    assert trainable.chunk_size == left
    told = [str(w.message) for w in recwarn if w.category is MemoryWarning]
    assert len(told) == {16: 0, 4: 2, 2: 3, 1: 4}[left]
    assert not told or f"{left} are taken from now on. Give chunk_size={left}" in told[-1]


def test_a_single_crop_that_does_not_fit_is_an_error(rng):
    trainable = encoder_of(0, 0)
    with pytest.warns(MemoryWarning), pytest.raises(EncoderError, match="'net' does not fit .* with a single crop"):
        trainable(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    trainable = encoder_of(100, 0)
    features = trainable(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.warns(MemoryWarning), pytest.raises(EncoderError, match="regime='lora' or 'frozen'"):
        features.sum().backward()


def test_chunks_are_encoded_again_under_the_autocast_of_the_forward_pass():
    seen = []
    weight = torch.randn(3, 2, requires_grad=True)

    def encode(patches, group):
        out = patches @ weight
        seen.append((group, out.dtype))
        return out.float()

    class Limit:
        chunk_size = 2

    groups = [torch.randn(3, 3), torch.randn(1, 3)]
    with torch.autocast("cpu", torch.bfloat16):
        parts = features_in_chunks(encode, groups, [weight], Limit())
    sum(part.sum() for part in parts).backward()
    assert seen == [(number, torch.bfloat16) for number in (0, 0, 1, 1, 0, 0)]
    torch.testing.assert_close(weight.grad, torch.cat(groups).sum(0)[:, None].expand(3, 2), rtol=0.02, atol=0.02)


def test_weights_that_are_not_used_have_no_gradient():
    used, idle = (torch.ones(2, requires_grad=True) for _ in range(2))

    class Limit:
        chunk_size = 2

    (features,) = features_in_chunks(lambda x, _: x * used, [torch.ones(5, 2)], [used, idle], Limit())
    features.sum().backward()
    assert used.grad.tolist() == [5, 5]
    assert idle.grad is None
