import pytest
import torch

from sigmma_sc._random import drawing
from sigmma_sc.nn.dropout import Dropout

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_numbers_and_gradients_are_those_of_torch(p):
    x = torch.randn(50, 7, requires_grad=True)
    torch.manual_seed(3)
    expected = torch.nn.functional.dropout(x, p)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    torch.manual_seed(4)
    with drawing(3, CPU):
        found = Dropout(p)(x)
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], gradient)


def test_torchs_own_numbers_without_a_generator_and_none_in_evaluation():
    x = torch.ones(100)
    torch.manual_seed(3)
    expected = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), expected)
    with drawing(3, CPU):
        assert torch.equal(Dropout(0.5).eval()(x), x)
